import numpy as np
import pytest
import tiny

from t2g_jax.feedback.judgment import judge, token_labels
from t2g_jax.spans import TokenSpan, token_rewards
from t2g_jax.tasks.base import JudgeError


@pytest.fixture
def example(tiny_context):
    return tiny_context.task.split("train")[0]


def labeled(context, turn):
    """The tokens of a completion as text, and their labels."""
    judgment = judge(context.judges, context.tokenizer, turn)
    labels = token_labels(judgment.spans, len(turn.tokens))
    texts = [context.tokenizer.decode([token], skip_special=False) for token in turn.tokens]
    return judgment, list(zip(texts, labels.tolist(), strict=True))


def test_labels_sit_on_the_tokens_that_are_meant(tiny_context, example):
    cells = example.answer.replace("\n", " ").split()
    wrong = 4
    cells[wrong] = str(int(cells[wrong]) + 1)
    text = "So: \\boxed{\n" + "\n".join(" ".join(cells[i : i + 3]) for i in (0, 3, 6)) + "\n}"
    turn = tiny.turn(tiny_context, text, example=example)
    judgment, tokens = labeled(tiny_context, turn)
    marked = [(text.strip(), label) for text, label in tokens if text.strip().isdigit()]
    assert marked == [(cell, -1.0 if i == wrong else 1.0) for i, cell in enumerate(cells)]
    assert judgment.unaligned == ()
    assert judgment.critique == tiny_context.judge.critique(example, text)
    assert tokens[-1] == ("<|end|>", 0.0)


def test_tokens_that_encoding_would_not_give(tiny_context, example):
    """What is sampled byte by byte is labeled byte by byte."""
    text = tiny_context.task.solve(example)
    tokens = [token for char in text for token in tiny_context.tokenizer.encode(char)]
    assert tokens != tiny_context.tokenizer.encode(text)
    turn = tiny.turn(tiny_context, text, example=example, tokens=tokens, ended=False)
    _, labeled_tokens = labeled(tiny_context, turn)
    marked = [text for text, label in labeled_tokens if label == 1 and text.isdigit()]
    assert marked == example.answer.split()


@pytest.mark.parametrize("tokens", ["end", "specials"])
def test_a_completion_without_text_is_neutral(tiny_context, example, tokens):
    end = tiny_context.tokenizer.end_id
    given = [end] if tokens == "end" else [1, 2, end]
    turn = tiny.turn(tiny_context, "", example=example, tokens=given)
    judgment, labels = labeled(tiny_context, turn)
    assert {label for _, label in labels} == {0.0}
    assert judgment.critique.text == "No answer in \\boxed{}."


def test_a_completion_that_was_cut_off(tiny_context, example):
    text = "\\boxed{\n0 0"
    turn = tiny.turn(tiny_context, text, example=example, ended=False)
    judgment, labels = labeled(tiny_context, turn)
    assert judgment.critique.text == "No answer in \\boxed{}."
    assert {label for text, label in labels if text.strip() == "0"} == {-1.0}


def test_a_failure_is_handed_on(tiny_context, example, monkeypatch):
    failure = JudgeError("no credit left")

    def fail(*_):
        raise failure

    monkeypatch.setattr(type(tiny_context.judge), "critique", fail)
    outcome = judge(
        tiny_context.judges, tiny_context.tokenizer, tiny.turn(tiny_context, "0", example=example)
    )
    assert isinstance(outcome, JudgeError)
    assert outcome.reason == failure.reason


def test_labels_are_those_of_the_pure_layer(rng):
    length, count = 12, 5
    for _ in range(20):
        starts = rng.integers(0, length, count)
        ends = np.minimum(starts + rng.integers(0, 5, count), length)
        rewards = rng.choice([-1.0, -0.5, 0.0, 1.0], count)
        spans = [TokenSpan(*span) for span in zip(starts, ends, rewards, strict=True)]
        expected = token_rewards(starts, ends, rewards, length)
        np.testing.assert_array_equal(token_labels(spans, length), expected)
