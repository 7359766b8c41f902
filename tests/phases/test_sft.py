import itertools
import re

import pytest
import tiny

from t2g_jax.judges.base import JudgeError
from t2g_jax.phases import sft
from t2g_jax.phases.sft import demonstrations


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


def test_a_judge_that_fails_leaves_the_first_attempt(tiny_context, monkeypatch):
    def fail(*_):
        raise JudgeError("no credit left")

    monkeypatch.setattr(type(tiny_context.judge), "critique", fail)
    context = tiny.changed(tiny_context, sft__repair_fraction=1.0)
    assert {len(pieces) for pieces in conversations(context)} == {2}


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
    (learning,) = given
    assert (learning.steps, learning.micro_batches, learning.optimizer) == (7, 2, optimizer)
    assert (learning.epochs, learning.minibatches, learning.fields) == (1, 1, ("nll_weight",))
