import dataclasses
import itertools
import re

import bad_judges
import pytest
import tiny

from t2g_jax.config import SHAPE, TokenizerConfig
from t2g_jax.phases import evaluate, sft
from t2g_jax.phases.sft import demonstrations
from t2g_jax.run.weights import Weights
from t2g_jax.tasks.base import CritiqueLevel, JudgeError
from t2g_jax.training.terms import NLL


def conversations(context, step=0):
    """The rows of a step as pieces of text: (learned?, text)."""
    for item in demonstrations(context, step):
        weights = item.fields["nll_weight"].tolist()
        assert set(weights) <= {0.0, 1.0}
        pieces = itertools.groupby(zip(item.tokens.tolist(), weights, strict=True), lambda p: p[1])
        decode = context.tokenizer.decode
        yield [
            (bool(weight), decode([token for token, _ in piece], skip_special=False))
            for weight, piece in pieces
        ]


def inner(text):
    """What stands between the control tokens."""
    return re.sub(r"<\|\w+\|>", "", text)


def test_the_assistants_turns_are_learned_and_nothing_else(tiny_context):
    by_prompt = {e.prompt: e for e in tiny_context.task.split("train")}
    repaired = 0
    for pieces in conversations(tiny_context):
        assert [learned for learned, _ in pieces] == [False, True] * (len(pieces) // 2)
        for question, answer in zip(pieces[::2], pieces[1::2], strict=True):
            assert question[1].startswith("<|user|>")
            assert question[1].endswith("<|end|><|assistant|>")
            assert answer[1].endswith("}<|end|>")
            assert answer[1].count("<|") == 1
        if len(pieces) == 4:
            repaired += 1
            prompt, first, feedback, _ = (inner(text) for _, text in pieces)
            assert feedback == tiny_context.judge.critique(by_prompt[prompt], first).text
    assert 0 < repaired < 16


def test_the_second_attempt_is_right(tiny_context):
    context = tiny.changed(tiny_context, sft__repair_fraction=1.0)
    by_prompt = {example.prompt: example for example in context.task.split("train")}
    answers = {True: [], False: []}
    for pieces in conversations(context):
        prompt, *_, last = (inner(text) for _, text in pieces)
        score = context.task.score(by_prompt[prompt], last)
        answers[len(pieces) == 4].append(score.correct)
    assert all(answers[True] + answers[False])  # without a second, the first was right
    assert answers[True]


def test_repair_fraction(tiny_context):
    none = tiny.changed(tiny_context, sft__repair_fraction=0.0)
    assert {len(pieces) for pieces in conversations(none)} == {2}


def test_critique_fraction(tiny_context):
    """The policy is asked what is wrong, and learns the judge's words and nothing else."""
    context = tiny.changed(tiny_context, sft__critique_fraction=1.0)
    by_prompt = {example.prompt: example for example in context.task.split("train")}
    for (_, given), (_, critique) in conversations(context):
        said = re.split(r"(?:<\|\w+\|>)+", given)
        _, prompt, first, request, _ = said
        assert request == "Critique the answer."
        expected = tiny_context.judge.critique(by_prompt[prompt], first).text
        assert critique == f"{expected}<|end|>"


def test_nobody_is_asked_about_what_cannot_be_repaired(tiny_context, monkeypatch):
    """A judge may cost money, and its critique would be shown with no answer to it."""
    asked = []
    judge = type(tiny_context.judge)
    critique = judge.critique
    monkeypatch.setattr(judge, "critique", lambda *a: asked.append(a) or critique(*a))
    context = tiny.changed(tiny_context, sft__repair_fraction=1.0)
    assert 4 in {len(pieces) for pieces in conversations(context)}
    assert asked
    asked.clear()
    monkeypatch.setattr(type(context.task), "solve", lambda *_: None)
    assert {len(pieces) for pieces in conversations(context)} == {2}
    assert not asked


def test_a_judge_that_fails_leaves_the_first_attempt(tiny_context, monkeypatch):
    def fail(*_):
        raise JudgeError("no credit left")

    monkeypatch.setattr(type(tiny_context.judge), "critique", fail)
    context = tiny.changed(tiny_context, sft__repair_fraction=1.0)
    assert {len(pieces) for pieces in conversations(context)} == {2}


@pytest.mark.parametrize("share", ["repair_fraction", "critique_fraction"])
def test_another_judge_is_asked_only_if_it_is_told_to(tiny_context, share):
    own = tiny.changed(tiny_context, **{f"sft__{share}": 1.0})
    judge = bad_judges.all_is_well(own.task, CritiqueLevel.WHERE)
    config = tiny.with_values(own.config, judge__name="bad_judges:all_is_well")
    context = dataclasses.replace(own, config=config, judge=judge)
    assert list(conversations(context)) == list(conversations(own))
    assert judge.calls == 0
    told = tiny.changed(context, sft__critiques="judge")
    assert list(conversations(told)) == list(conversations(own))
    assert judge.calls > 0


def test_a_pretrained_model_is_looked_at_first(tiny_context, monkeypatch, capsys):
    turns = [tiny.turn(tiny_context, "0", ended=False) for _ in range(4)]
    monkeypatch.setattr(evaluate, "attempt", lambda *_, **__: turns)
    monkeypatch.setattr(Weights, "initial", lambda _: {})
    monkeypatch.setattr(sft, "run_training", lambda *_: ({}, {}))
    for steps, warned in ((0, True), (3, False)):
        config = tiny.with_values(tiny_context.config, sft__steps=3)
        config = dataclasses.replace(
            config,
            model=dataclasses.replace(config.model, **SHAPE, pretrained="models/x"),
            tokenizer=TokenizerConfig(),
            sft=dataclasses.replace(config.sft, steps=steps),
        )
        sft.train(dataclasses.replace(tiny_context, config=config))
        said = capsys.readouterr().err
        assert "the pretrained model answers 0% of 4 test prompts rightly" in said
        assert "100% are cut off" in said
        assert ("Raise sampling.max_new_tokens" in said) == warned


def test_examples_are_the_only_ones_demonstrated(tiny_context):
    everything = tiny_context.task.split("train")
    for count in (3, 24):
        context = tiny.changed(tiny_context, sft__examples=count)
        shown = {pieces[0][1] for step in range(6) for pieces in conversations(context, step)}
        assert shown == {
            f"<|user|>{example.prompt}<|end|><|assistant|>" for example in everything[:count]
        }


def test_steps_differ_and_repeat(tiny_context):
    rows = [list(conversations(tiny_context, step)) for step in (0, 1, 0)]
    assert rows[0] == rows[2] != rows[1]


@pytest.mark.parametrize("batch_size", [1, 5])
def test_batch_size(tiny_context, batch_size):
    context = tiny.changed(tiny_context, sft__batch_size=batch_size)
    assert len(demonstrations(context, 0)) == batch_size


def test_settings_of_training(tiny_context, monkeypatch):
    given = []

    def training(*arguments):
        given.append(arguments[-1])
        return {}, {}

    monkeypatch.setattr(sft, "run_training", training)
    optimizer = tiny.with_values(tiny_context.config, sft__optimizer__b1=0.5).sft.optimizer
    changes = {"sft__steps": 7, "sft__micro_batches": 2, "sft__optimizer": optimizer}
    sft.train(tiny.changed(tiny_context, **changes))
    (plan,) = given
    assert (plan.steps, plan.micro_batches, plan.optimizer) == (7, 2, optimizer)
    assert (plan.epochs, plan.minibatches, plan.objective.terms) == (1, 1, (NLL(),))
