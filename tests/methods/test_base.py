"""What the methods share: attempts, the fields of their tokens, and scores of them."""

import jax
import numpy as np
import pytest
import tiny

from t2g_jax.config import METHODS
from t2g_jax.methods import make_method
from t2g_jax.methods.base import (
    attempt_metrics,
    completion_row,
    first_attempts,
    logprobs_of,
    policy_fields,
    reference_logprobs,
)
from t2g_jax.phases.training import padded
from t2g_jax.training.step import score


@pytest.mark.parametrize("name", METHODS)
def test_a_method_has_its_section_of_the_config(tiny_context, name):
    method = make_method(name, tiny.changed(tiny_context))
    assert method.config is getattr(tiny_context.config, name.replace("-", "_"))
    assert method.learning.optimizer is method.config.optimizer
    assert set(method.learning.fields) >= {"policy_weight", "advantages", "old_logprobs"}


@pytest.mark.parametrize(
    "sampling",
    [
        {},
        {"temperature": 0.6, "top_k": 5},
        {"temperature": 1.4, "top_p": 0.8},
        {"top_k": 10, "top_p": 0.9},
    ],
)
def test_the_trainer_agrees_with_the_sampler(tiny_context, sampling):
    """So the ratio is 1 before the first update, whatever the sampler's settings."""
    context = tiny.changed(tiny_context, **{f"sampling__{k}": v for k, v in sampling.items()})
    params = context.params()
    turns = first_attempts(context, params, context.config.grpo, "grpo", 0)
    rows = [completion_row(context, turn, policy_weight=1.0, advantages=1.0) for turn in turns]
    batch = padded(context, rows, policy_fields(context))
    temperature = context.sampling.temperature
    scored = score(params, batch, model=context.model, temperature=temperature, mesh=context.mesh)
    learned = np.asarray(batch.policy_weight) > 0
    log_ratio = np.asarray(scored["logprobs"] - batch.old_logprobs)[learned]
    assert len(log_ratio) == sum(len(turn.tokens) for turn in turns)
    np.testing.assert_allclose(log_ratio, 0, atol=2e-4)


def test_attempts_are_grouped_and_differ(tiny_context):
    context = tiny.changed(tiny_context, grpo__group_size=4)
    params, config = context.params(), context.config.grpo
    turns = first_attempts(context, params, config, "grpo", 0)
    names = [turn.example.id for turn in turns]
    assert names == [name for name in names[::4] for _ in range(4)]
    assert len({tuple(turn.tokens) for turn in turns}) > 4
    for other in (("grpo", 1), ("rltf-sd", 0)):
        again = first_attempts(context, params, config, *other)
        assert [turn.tokens for turn in again] != [turn.tokens for turn in turns]
    again = first_attempts(context, params, config, "grpo", 0)
    assert [turn.tokens for turn in again] == [turn.tokens for turn in turns]
    assert list(context.watch.lap()) == ["sample"]


def test_log_probabilities_stand_on_their_tokens(tiny_context):
    context = tiny.changed(tiny_context)
    params = context.params()
    turns = first_attempts(context, params, context.config.grpo, "grpo", 0)
    rows = [completion_row(context, turn, policy_weight=1.0) for turn in turns]
    for item, turn, values in zip(rows, turns, logprobs_of(context, params, rows), strict=True):
        assert len(values) == len(item)
        assert values[0] == 0
        np.testing.assert_allclose(values[len(turn.prompt) :], turn.completion.logprobs, atol=1e-4)
    assert list(context.watch.lap()) == ["sample", "score"]


def test_the_reference_is_the_policy_before_it_learns(tiny_context):
    context = tiny.changed(tiny_context)
    params = context.params()
    turns = first_attempts(context, params, context.config.grpo, "grpo", 0)
    logprobs, divergence = reference_logprobs(context, params, turns)
    for values, turn in zip(logprobs, turns, strict=True):
        np.testing.assert_allclose(values, turn.completion.logprobs, atol=1e-4)
    assert divergence == pytest.approx(0, abs=1e-6)
    other = jax.tree.map(lambda x: 1.1 * x, params)
    logprobs, divergence = reference_logprobs(context, other, turns)
    ratio = np.concatenate([t.completion.logprobs for t in turns]) - np.concatenate(logprobs)
    assert divergence == pytest.approx(float(np.mean(np.exp(-ratio) - 1 + ratio)), rel=1e-4)


def test_metrics_of_attempts_by_hand(tiny_context):
    turns = [
        tiny.turn(tiny_context, tokens=[7, 8, 4], reward=1),
        tiny.turn(tiny_context, tokens=[7], reward=0, ended=False),
        tiny.turn(tiny_context, tokens=[4], reward=-0.1),
    ]
    assert attempt_metrics(turns) == {
        "accuracy": pytest.approx(1 / 3),
        "reward": pytest.approx(0.3),
        "formatted": 1.0,
        "completion_tokens": pytest.approx(5 / 3),
        "cut_off": pytest.approx(1 / 3),
    }


@pytest.mark.parametrize(("tokens", "ended"), [([4], True), ([], False), ([9] * 24, False)])
def test_empty_and_cut_off_completions_are_rows_like_others(tiny_context, tokens, ended):
    turn = tiny.turn(tiny_context, tokens=tokens, ended=ended)
    item = completion_row(tiny_context, turn, policy_weight=1.0, advantages=0.5)
    assert item.tokens[len(turn.prompt) :].tolist() == tokens
    assert item.fields["policy_weight"].sum() == len(tokens)
    (values,) = logprobs_of(tiny_context, tiny_context.params(), [item])
    assert np.isfinite(values).all()
    following = turn.after_feedback(tiny_context, "Wrong.")
    assert following[: len(item)] == item.tokens.tolist()
    assert following.count(tiny_context.tokenizer.end_id) == 3  # of x₀, y₀ and the feedback
