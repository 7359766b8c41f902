"""What leaving the warm start costs: in rewards or in the loss, fixed or adaptive."""

import dataclasses

import jax
import numpy as np
import oracle
import pytest
import tiny

from t2g_jax.methods.base import completion_row, first_attempts, policy_learning
from t2g_jax.methods.reference import Reference, adapted, estimated
from t2g_jax.training.batch import row

BETA = 0.3


@pytest.fixture
def charge(tiny_context, moved_policy, state_of):
    """charge(**values of grpo): what moved completions cost, the rows, and their divergences."""

    def charge(kl, sampling=(), beta=BETA, **values):
        changes = {f"grpo__{name}": value for name, value in (values | {"kl": kl}).items()}
        changes |= {f"sampling__{name}": value for name, value in dict(sampling).items()}
        context = tiny.changed(tiny_context, **changes)
        config = context.config.grpo
        turns = first_attempts(context, moved_policy, config, "grpo", 1)
        rows = [completion_row(context, turn, policy_weight=1.0) for turn in turns]
        method = dataclasses.make_dataclass("Learner", ["learning", "params"])(
            policy_learning(context, config), moved_policy
        )
        state = state_of(method, kl_coefficient=beta)
        return Reference(context, config, context.params()).charge(state, rows), rows, turns

    return charge


@pytest.fixture
def divergences(tiny_context, moved_policy, logprobs_of):
    """divergences(kind, turns, temperature): those of each completion [n], in NumPy."""

    def divergences(kind, turns, temperature=1.0):
        warm_start = tiny_context.params()
        return [
            oracle.divergence(
                kind,
                logprobs_of(moved_policy, turn.prompt, turn.tokens, temperature),
                logprobs_of(warm_start, turn.prompt, turn.tokens, temperature),
                turn.completion.logprobs,
                turn.tokens,
            )
            for turn in turns
        ]

    return divergences


@pytest.mark.parametrize(
    ("kind", "sampling"),
    [
        ("full", {}),
        ("k1", {}),
        ("k2", {}),
        ("k3", {}),
        ("abs", {}),
        ("full", {"temperature": 0.7, "top_k": 3}),
        ("k3", {"temperature": 0.7, "top_k": 3}),
    ],
)
def test_what_rewards_are_charged(charge, divergences, kind, sampling):
    found, rows, turns = charge(kind, sampling)
    expected = divergences(kind, turns, sampling.get("temperature", 1.0))
    for cost, item, turn, wanted in zip(found.costs, rows, turns, expected, strict=True):
        assert not cost[: len(turn.prompt)].any()
        np.testing.assert_allclose(cost[len(turn.prompt) :], BETA * wanted, rtol=2e-3, atol=2e-4)
        assert "kl_weight" not in item.fields
    mean = np.concatenate(expected).mean()
    assert found.metrics == {
        "kl": pytest.approx(mean, rel=1e-3, abs=1e-4),
        "kl_coefficient": pytest.approx(BETA),
    }
    assert abs(mean) > 1e-3
    assert found.carry == {"kl_coefficient": pytest.approx(BETA)}


@pytest.mark.parametrize("kind", ["k2", "k3", "abs"])
def test_in_the_loss_rewards_cost_nothing_and_rows_have_the_term(
    tiny_context, charge, divergences, logprobs_of, kind
):
    sampling = {"temperature": 0.7}
    found, rows, turns = charge(kind, sampling, kl_in="loss", kl_coefficient=9.0)
    assert not any(cost.any() for cost in found.costs)
    for item, turn in zip(rows, turns, strict=True):
        learned = item.fields["policy_weight"] > 0
        assert item.fields["kl_weight"].tolist() == np.float32(BETA * learned).tolist()
        reference = logprobs_of(tiny_context.params(), turn.prompt, turn.tokens, 0.7)
        mine = reference[np.arange(len(turn.tokens)), turn.tokens]
        np.testing.assert_allclose(item.fields["ref_logprobs"][learned], mine, atol=2e-4)
    mean = np.concatenate(divergences(kind, turns, 0.7)).mean()
    assert found.metrics["kl"] == pytest.approx(mean, rel=1e-3)


@pytest.mark.parametrize(("target", "factor"), [(None, 1.0), (1e-6, 1.02), (1e6, 0.98)])
@pytest.mark.parametrize("where", ["reward", "loss"])
def test_the_adaptive_controller(charge, target, factor, where):
    found, _, _ = charge("k3", adaptive_kl_target=target, kl_coefficient=9.0, kl_in=where)
    assert found.metrics["kl_coefficient"] == pytest.approx(BETA)  # the state's, not the config's
    assert found.carry["kl_coefficient"] == pytest.approx(BETA * factor)


def test_lengths_of_rows_that_differ_a_little_need_no_other_program(caplog):
    """A program for each length would fill the memory of a long run."""

    def estimates(lengths):
        caplog.clear()
        rows = [
            row((range(n), {"policy_weight": np.arange(n) > 0, "old_logprobs": -np.arange(n)}))
            for n in lengths
        ]
        reference = [-1.5 * np.arange(n) for n in lengths]
        with jax.log_compiles():
            found = estimated("k1", rows, reference)
        for n, values in zip(lengths, found, strict=True):
            np.testing.assert_allclose(values, 0.5 * np.arange(n), rtol=1e-6)
        return "Compiling" in caplog.text

    assert estimates([9, 20, 13])
    assert not estimates([11, 18, 14])
    assert not estimates([40, 7])


def test_the_controller_by_hand():
    assert adapted(0.2, 0.5, None) == 0.2
    assert adapted(0.2, 1.1, 1.0) == pytest.approx(0.2 * 1.01)
    assert adapted(0.2, 0.9, 1.0) == pytest.approx(0.2 * 0.99)
    assert adapted(0.2, 50.0, 1.0) == pytest.approx(0.2 * 1.02)  # no more than a fifth of K
    assert adapted(0.2, 0.0, 1.0) == pytest.approx(0.2 * 0.98)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_the_warm_start_does_not_diverge_from_itself(tiny_context, state_of, temperature):
    context = tiny.changed(tiny_context, sampling__temperature=temperature)
    params = context.params()
    turns = first_attempts(context, params, context.config.grpo, "grpo", 0)
    rows = [completion_row(context, turn, policy_weight=1.0) for turn in turns]
    method = dataclasses.make_dataclass("Learner", ["learning", "params"])(
        policy_learning(context, context.config.grpo), params
    )
    found = Reference(context, context.config.grpo, params).charge(state_of(method), rows)
    assert found.metrics["kl"] == pytest.approx(0, abs=1e-6)
