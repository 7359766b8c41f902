"""What leaving the warm start costs: in rewards or in the loss, fixed or adaptive."""

import dataclasses

import jax
import numpy as np
import oracle
import pytest
import tiny
from cases import row

from t2g_jax.config import GRPOConfig
from t2g_jax.methods.grpo import GRPO
from t2g_jax.methods.reference import adapted, completion_count, estimated_kl
from t2g_jax.rollouts.attempts import completion_row, first_attempts
from t2g_jax.rollouts.engine import Rollouts
from t2g_jax.training.terms import KL_WEIGHT, POLICY_WEIGHT, REF_LOGPROBS

BETA = 0.3


@pytest.fixture
def charge(tiny_context, moved_policy, state_of):
    """charge(**values of grpo): what moved completions cost, the rows, and their divergences."""

    def charge(kl, sampling=(), beta=BETA, **values):
        changes = {f"grpo__{name}": value for name, value in (values | {"kl": kl}).items()}
        changes |= {"grpo__kl_coefficient": values.get("kl_coefficient", BETA)}
        changes |= {f"sampling__{name}": value for name, value in dict(sampling).items()}
        context = tiny.changed(tiny_context, **changes)
        method = GRPO(context)
        turns = first_attempts(Rollouts.of(context), moved_policy, method.config, "grpo", 1)
        truncated = context.sampling.truncates
        rows = [completion_row(turn, {POLICY_WEIGHT: 1.0}, truncated=truncated) for turn in turns]
        state = state_of(method, moved_policy, kl_coefficient=beta)
        rows, before = method.score(state, rows)
        return method.penalty(state, rows, before), rows, turns

    return charge


@pytest.fixture
def divergences(tiny_context, moved_policy, logprobs_of):
    """divergences(kind, turns, temperature): those of each completion [n], in NumPy."""

    def divergences(kind, turns, temperature=1.0):
        warm_start = tiny_context.weights.load()
        found = []
        for turn in turns:
            policy, reference = (
                logprobs_of(params, turn.prompt, turn.tokens, temperature)
                for params in (moved_policy, warm_start)
            )
            mine = policy[np.arange(len(turn.tokens)), turn.tokens]
            found.append(oracle.divergence(kind, policy, reference, mine, turn.tokens))
        return found

    return divergences


@pytest.mark.parametrize(
    ("kind", "sampling"),
    [
        ("full", {}),
        ("k1", {}),
        ("full", {"temperature": 0.7, "top_k": 3}),
        ("k1", {"temperature": 0.7, "top_k": 3}),
        ("k1", {"temperature": 1.5, "top_p": 0.5}),
    ],
)
def test_what_rewards_are_charged(charge, divergences, kind, sampling):
    found, _, turns = charge(kind, sampling)
    expected = divergences(kind, turns, sampling.get("temperature", 1.0))
    for cost, fields, turn, wanted in zip(
        found.per_token, found.fields, turns, expected, strict=True
    ):
        assert not cost[: len(turn.prompt)].any()
        np.testing.assert_allclose(cost[len(turn.prompt) :], BETA * wanted, rtol=2e-3, atol=2e-4)
        assert fields == {}
    mean, per_sequence = np.concatenate(expected).mean(), np.mean([x.sum() for x in expected])
    assert found.metrics == {
        "kl": pytest.approx(mean, rel=1e-3, abs=1e-4),
        "kl_per_sequence": pytest.approx(per_sequence, rel=1e-3, abs=1e-3),
        "kl_coefficient": pytest.approx(BETA),
    }
    assert abs(mean) > 1e-3
    assert found.carry == {"kl_coefficient": pytest.approx(BETA)}


@pytest.mark.parametrize("kind", ["k2", "k3", "abs"])
@pytest.mark.parametrize("truncation", [{}, {"top_p": 0.5}])
def test_in_the_loss_rewards_cost_nothing_and_rows_have_the_term(
    tiny_context, charge, divergences, logprobs_of, kind, truncation
):
    sampling = {"temperature": 0.7} | truncation
    found, rows, turns = charge(kind, sampling, beta=9.0, kl_in="loss")
    assert not any(cost.any() for cost in found.per_token)
    for item, fields, turn in zip(rows, found.fields, turns, strict=True):
        learned = item.fields["policy_weight"] > 0
        assert np.float32(fields[KL_WEIGHT]).tolist() == np.float32(BETA * learned).tolist()
        reference = logprobs_of(tiny_context.weights.load(), turn.prompt, turn.tokens, 0.7)
        mine = reference[np.arange(len(turn.tokens)), turn.tokens]
        np.testing.assert_allclose(fields[REF_LOGPROBS][learned], mine, atol=2e-4)
    mean = np.concatenate(divergences(kind, turns, 0.7)).mean()
    assert found.metrics["kl"] == pytest.approx(mean, rel=1e-3)


@pytest.mark.parametrize(("target", "error"), [(None, 0.0), (1e-6, 0.2), (1e6, -0.2)])
@pytest.mark.parametrize("kind", ["k1", "k3"])
@pytest.mark.parametrize("horizon", [10_000, 100])
def test_the_adaptive_controller(charge, target, error, kind, horizon):
    values: dict = {"kl_coefficient": 9.0}
    if target is not None:
        values |= {"adaptive_kl_target_per_sequence": target, "adaptive_kl_horizon": horizon}
    found, rows, _ = charge(kind, **values)
    factor = 1 + error * len(rows) / horizon
    # The controller goes on from the state; without one the config counts, which may have changed.
    coefficient = 9.0 if target is None else BETA
    assert found.metrics["kl_coefficient"] == pytest.approx(coefficient)
    assert found.carry["kl_coefficient"] == pytest.approx(coefficient * factor)


def test_lengths_of_rows_that_differ_a_little_need_no_other_program(caplog):
    """A program for each length would fill the memory of a long run."""

    def estimates(lengths):
        caplog.clear()
        rows = [
            row((range(n), {"policy_weight": np.arange(n) > 0, "sampler_logprobs": -np.arange(n)}))
            for n in lengths
        ]
        reference = [-1.5 * np.arange(n) for n in lengths]
        with jax.log_compiles():
            found = estimated_kl("k1", rows, reference)
        for n, values in zip(lengths, found, strict=True):
            np.testing.assert_allclose(values, 0.5 * np.arange(n), rtol=1e-6)
        return "Compiling" in caplog.text

    assert estimates([9, 20, 13])
    assert not estimates([11, 18, 14])
    assert not estimates([40, 7])


def test_the_controller_by_hand():
    """Ziegler's and TRL's: 256 completions of a horizon of 10,000, KL in nats per completion."""
    fixed = GRPOConfig(kl_coefficient=0.2)
    assert adapted(0.2, 0.5, 256, fixed) == 0.2
    config = dataclasses.replace(fixed, adaptive_kl_target_per_sequence=6.0)
    for kl, error in ((6.6, 0.1), (5.4, -0.1), (300.0, 0.2), (0.0, -0.2), (-3.0, -0.2)):
        assert adapted(0.2, kl, 256, config) == pytest.approx(0.2 * (1 + error * 0.0256))
    config = dataclasses.replace(config, adaptive_kl_horizon=512)
    assert adapted(0.2, 300.0, 256, config) == pytest.approx(0.2 * 1.1)


def test_completions_of_a_row():
    assert completion_count(np.float32([0, 0, 1, 1, 0, 0, 1, 0, 1])) == 3
    assert completion_count(np.float32([0, 0])) == 0


@pytest.mark.parametrize("kind", ["k1", "full", "k2", "k3", "abs"])
@pytest.mark.parametrize(
    "sampling",
    [{}, {"temperature": 0.6}, {"temperature": 1.5, "top_p": 0.5}, {"top_k": 3, "top_p": 0.9}],
)
def test_the_warm_start_does_not_diverge_from_itself(tiny_context, state_of, kind, sampling):
    changes = {f"sampling__{name}": value for name, value in sampling.items()}
    changes |= {"grpo__kl": kind, "grpo__kl_coefficient": BETA}
    context = tiny.changed(tiny_context, **changes)
    params = context.weights.load()
    turns = first_attempts(Rollouts.of(context), params, context.config.grpo, "grpo", 0)
    truncated = context.sampling.truncates
    rows = [completion_row(turn, {POLICY_WEIGHT: 1.0}, truncated=truncated) for turn in turns]
    method = GRPO(context)
    state = state_of(method)
    rows, before = method.score(state, rows)
    found = method.penalty(state, rows, before)
    # In the loss, the update's own pass is compared; the log then has the sampler's rounding.
    exact = kind in ("k1", "full") or {"top_k", "top_p"} & set(sampling)
    assert found.metrics["kl"] == (0 if exact else pytest.approx(0, abs=1e-5))
    assert not any(cost.any() for cost in found.per_token)
