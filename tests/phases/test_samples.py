import dataclasses

import numpy as np
import pytest
import tiny

from t2g_jax.phases.samples import SAMPLES, chosen, episode_sample, sample_of
from t2g_jax.spans.quotes import Quote
from t2g_jax.tasks.base import Critique, JudgeError


@pytest.mark.parametrize(
    ("values", "steps"),
    [
        ({"steps": 9}, [0, 4, 8]),
        ({"steps": 2}, [0, 1]),
        ({"steps": 1}, [0]),
        ({"steps": 9, "token_budget": 100, "eval_every": 3}, [0, 3, 6]),
        ({"steps": 9, "token_budget": 100, "eval_every": 0}, [0]),
    ],
)
def test_which_steps_are_shown(tiny_run, values, steps):
    settings = dataclasses.replace(tiny_run.config.grpo, **values)
    kept = [step for step in range(settings.steps) if chosen(settings, step, 8)]
    assert kept == steps


def test_one_of_each_group_is_shown_but_no_more_than_a_few(tiny_run):
    settings = dataclasses.replace(tiny_run.config.grpo, group_size=3)
    assert list(chosen(settings, 0, 12)) == [0, 3, 6, 9]
    assert list(chosen(settings, 0, 300)) == [3 * i for i in range(SAMPLES)]


@pytest.fixture
def example(tiny_context):
    return tiny_context.task.split("train")[0]


def texts(cells):
    return "".join(cell.text for cell in cells)


def test_a_conversation(tiny_context, example):
    """Quotes become labels, failures become words, and what nobody was asked stays empty."""
    turns = [
        tiny.turn(tiny_context, text, example=example, reward=reward)
        for text, reward in (("one two", -0.1), ("two one", 0.0), ("three", 1.0))
    ]
    critiques = [Critique("Not one.", (Quote("one", -1.0),)), JudgeError("no credit left")]
    advantages = [-0.5, np.arange(len(turns[1].tokens)), 2.0]
    sample = episode_sample(
        tiny_context, turns, critiques, method="rltf-sd", step=4, advantages_per_turn=advantages
    )
    assert (sample.title, sample.method, sample.step) == ("rltf-sd, step 5", "rltf-sd", 5)
    assert sample.prompt == example.prompt
    attempts = [sample, *sample.retries]
    assert [texts(attempt.tokens) for attempt in attempts] == [
        "one two<|end|>", "two one<|end|>", "three<|end|>",
    ]  # fmt: skip
    said = [attempt.critique for attempt in attempts]
    assert said == ["Not one.", "(no critique: no credit left)", ""]
    assert [attempt.reward for attempt in attempts] == [-0.1, 0.0, 1.0]
    assert [attempt.correct for attempt in attempts] == [False, False, True]
    marked = "".join(cell.text for cell in sample.tokens if cell.true == -1)
    assert marked == "one"
    assert {cell.true for attempt in attempts[1:] for cell in attempt.tokens} == {None}
    assert {cell.advantage for cell in sample.tokens} == {-0.5}
    assert [cell.advantage for cell in attempts[1].tokens] == list(range(len(turns[1].tokens)))
    assert {cell.advantage for cell in attempts[2].tokens} == {2.0}


def test_a_single_attempt_is_a_conversation_too_and_the_judge_is_not_asked(
    tiny_context, example, monkeypatch
):
    def fail(*_):
        raise AssertionError("asked")

    monkeypatch.setattr(type(tiny_context.judge), "critique", fail)
    turn = tiny.turn(tiny_context, "one", example=example)
    sample = episode_sample(tiny_context, [turn], method="grpo", step=0)
    assert (sample.retries, sample.critique) == ((), "")
    assert {(c.predicted, c.true, c.advantage) for c in sample.tokens} == {(None, None, None)}


def test_what_does_not_fit_together_is_refused(tiny_context, example):
    turn = tiny.turn(tiny_context, "one", example=example)
    for turns, critiques in (([], []), ([turn], [None, None])):
        with pytest.raises(ValueError, match="critiques of"):
            episode_sample(tiny_context, turns, critiques, method="grpo", step=0)
    with pytest.raises(ValueError, match="zip"):
        episode_sample(tiny_context, [turn], method="grpo", step=0, advantages_per_turn=[1.0, 2.0])


def test_a_sample_of_nobody_in_particular(tiny_context, example):
    turn = tiny.turn(tiny_context, tiny_context.task.solve(example), example=example, reward=1.0)
    sample = sample_of(tiny_context, turn)
    assert (sample.title, sample.method, sample.step) == ("", "", None)
    assert sample.critique == tiny_context.judge.critique(example, turn.text).text
    assert 1.0 in {cell.true for cell in sample.tokens}
    named = sample_of(tiny_context, turn, method="text2grad", step=2)
    assert (named.title, named.step) == ("text2grad, step 3", 3)
