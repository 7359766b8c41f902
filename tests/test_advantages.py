import json
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t2g_jax import advantages, kl, losses
from t2g_jax.logprobs import token_logprobs


def _gae_loop(rewards, values, mask, gamma, gae_lambda):
    """Generalized advantage estimation of each row's masked tokens, written out."""
    result = np.zeros(rewards.shape)
    for row in range(len(rewards)):
        tokens = np.flatnonzero(mask[row])
        deltas = [
            rewards[row, t]
            + gamma * (values[row, tokens[i + 1]] if i + 1 < len(tokens) else 0.0)
            - values[row, t]
            for i, t in enumerate(tokens)
        ]
        for i, t in enumerate(tokens):
            result[row, t] = sum(
                (gamma * gae_lambda) ** (j - i) * deltas[j] for j in range(i, len(tokens))
            )
    return result


@pytest.fixture
def rows(rng):
    rewards, values = rng.normal(size=(2, 4, 9))
    mask = rng.random((4, 9)) < 0.6
    mask[3] = False
    return rewards, values, mask


def test_gae_by_hand():
    result, returns = advantages.gae(
        np.array([[1.0, 9.0, 2.0]]),
        np.array([[0.5, 9.0, 1.0]]),
        np.array([[1, 0, 1]]),
        gamma=0.5,
        gae_lambda=0.5,
    )
    # δ₂ = 2 − 1, δ₀ = 1 + ½ · 1 − ½; credit crosses the hole.
    np.testing.assert_allclose(result, [[1.25, 0.0, 1.0]])
    np.testing.assert_allclose(returns, [[1.75, 0.0, 2.0]])


@pytest.mark.parametrize(("gamma", "gae_lambda"), [(1.0, 0.95), (0.9, 0.5), (1.0, 0.0), (0.0, 1.0)])
def test_gae_matches_a_loop(rows, gamma, gae_lambda, precision):
    rewards, values, mask = (precision.cast(x) for x in rows)
    result, returns = jax.jit(advantages.gae)(
        rewards, values, mask, gamma=gamma, gae_lambda=gae_lambda
    )
    expected = _gae_loop(*rows, gamma, gae_lambda)
    precision.assert_close(result, expected)
    precision.assert_close(returns, np.where(mask, expected + values, 0))


def test_gae_is_compiled_once(rng, caplog):
    """Outside of jit too: a program for each call would fill the memory of a long run."""
    x = rng.normal(size=(3, 11))

    def compiled(gamma):
        caplog.clear()
        with jax.log_compiles():
            advantages.gae(x, x, np.ones((3, 11)), gamma=gamma)
        return "Compiling" in caplog.text

    assert compiled(0.9)
    assert not compiled(0.9)
    assert not compiled(0.8)


def test_gae_with_lambda_one_is_the_reward_to_go(rows):
    rewards, values, mask = rows
    _, returns = advantages.gae(rewards, values, mask, gae_lambda=1.0)
    to_go = np.cumsum((rewards * mask)[:, ::-1], axis=1)[:, ::-1]
    np.testing.assert_allclose(returns, to_go * mask, rtol=1e-5, atol=1e-5)


def test_gae_masked_is_sliced(rows):
    rewards, values, mask = (x[:2] for x in rows)
    garbage = np.resize([np.nan, np.inf, 1e30], rewards.shape)
    gae = jax.jit(advantages.gae)
    dirty = gae(np.where(mask, rewards, garbage), np.where(mask, values, garbage), mask)
    for row, keep in enumerate(mask):
        ones = np.ones((1, keep.sum()))
        sliced = gae(rewards[row, keep][None], values[row, keep][None], ones)
        for ours, expected in zip(dirty, sliced, strict=True):
            np.testing.assert_allclose(ours[row, keep], expected[0], rtol=1e-6)
            np.testing.assert_array_equal(ours[row, ~keep], 0)


def test_gae_does_not_care_where_the_holes_are(rows):
    mask = rows[2]
    order = np.argsort(~mask, axis=1, kind="stable")  # masked tokens first, in their order
    gae = jax.jit(advantages.gae)
    packed = gae(*(np.take_along_axis(x, order, axis=1) for x in rows))
    for ours, expected in zip(packed, gae(*rows), strict=True):
        np.testing.assert_allclose(ours, np.take_along_axis(expected, order, 1), rtol=1e-6)


@pytest.mark.parametrize("shift_mean", [True, False])
def test_whiten_matches_numpy(rng, shift_mean, precision):
    x, mask = precision.cast(rng.normal(3, 2, size=(4, 6))), rng.random((4, 6)) < 0.7
    inside = x[mask]
    expected = (inside - inside.mean()) / np.sqrt(inside.var(ddof=1) + 1e-8)
    expected = expected if shift_mean else expected + inside.mean()
    dirty = np.where(mask, x, np.nan)
    result = np.asarray(jax.jit(partial(advantages.whiten, shift_mean=shift_mean))(dirty, mask))
    precision.assert_close(result[mask], expected)
    np.testing.assert_array_equal(result[~mask], 0)


def test_whiten_of_little():
    for mask in ([False, False], [True, False]):
        np.testing.assert_array_equal(advantages.whiten(np.array([5.0, 7.0]), np.array(mask)), 0)
    np.testing.assert_array_equal(advantages.whiten(np.array([5.0, 5.0]), np.ones(2)), 0)


@pytest.mark.parametrize("count", [7, 1000])
def test_equal_numbers_have_nothing_to_scale_up(count, precision):
    """The mean of equal numbers is rounded; their distance from one another is not."""

    @jax.jit
    def of(x, mask):
        return {
            "whitened": advantages.whiten(x, mask),
            "unshifted": advantages.whiten(x, mask, shift_mean=False),
            "centered": advantages.group_centered(x, mask),
            "scaled": advantages.group_centered(x, mask, scale_by_std=True),
            "leave_one_out": advantages.leave_one_out(x, mask),
            "first_turn": advantages.first_turn(x, x, mask),
        }

    some = np.ones((3, count))
    some[:, 1::3] = 0
    for value in (100.1, -1e6 / 3, 3e-5, 1e30, 3e38):
        x = precision.cast(np.full((3, count), value))
        for mask in (np.ones((3, count)), some):
            found = of(x, mask)
            np.testing.assert_array_equal(found.pop("unshifted"), np.where(mask, x, 0))
            for name, result in found.items():
                np.testing.assert_array_equal(result, 0, err_msg=name)


def test_rounding_is_not_scaled_up_and_little_more_than_that_is():
    """0.1 + 0.2 and 0.3 are the same reward; 100 and 100.001 are not."""
    ones, large = np.ones((1, 2), np.float32), np.float32(100.1)
    next_one = np.nextafter(large, np.float32(200))
    for pair in ([0.1 + 0.2, 0.3], [large, next_one]):
        same = np.array([pair], np.float32)
        np.testing.assert_array_equal(advantages.group_centered(same, ones, scale_by_std=True), 0)
        np.testing.assert_array_equal(advantages.whiten(same, ones), 0)
    apart = np.array([[100.0, 100.001]], np.float32)
    distance = float(apart[0, 1]) - 100
    expected = distance / 2 / np.sqrt(distance**2 / 2 + 1e-8)
    scaled = advantages.group_centered(apart, ones, scale_by_std=True)
    np.testing.assert_allclose(scaled, [[-expected, expected]], rtol=1e-3)


def test_whiten_of_large_numbers_is_as_exact_as_of_small_ones(rng):
    x = rng.integers(-50, 50, 1000)  # exact in float32, with and without the million
    ones = np.ones(1000)
    np.testing.assert_allclose(
        advantages.whiten(np.float32(x + 1_000_000), ones),
        advantages.whiten(np.float32(x), ones),
        rtol=1e-4,
        atol=1e-5,
    )


@pytest.mark.parametrize("size", [1e5, 1e25, 3e38])
@pytest.mark.parametrize("last", [0, 1])
def test_advantages_of_huge_numbers_do_not_overflow(size, last):
    """As those of ordinary size: in float32 no number above 1.8e19 has a square."""
    x = np.float32(np.array([[0.5, -0.5, 0.5, -0.25], [0.25, 0.25, 0.25, 0.25]]) * size)
    mask = np.ones((2, 4))
    mask[:, 3] = last
    masked = np.ma.array(np.float64(x), mask=mask == 0)

    def expect(result, expected):
        np.testing.assert_allclose(result, np.ma.filled(expected, 0), rtol=1e-5)

    centered = masked - masked.mean(1, keepdims=True)
    expect(jax.jit(advantages.group_centered)(x, mask), centered)
    deviation = np.ma.filled(masked.std(1, ddof=1, keepdims=True), 0)
    scaled = jax.jit(partial(advantages.group_centered, scale_by_std=True))(x, mask)
    expect(scaled, centered / np.where(deviation == 0, 1, deviation))
    whitened = (masked - masked.mean()) / masked.std(ddof=1)
    expect(jax.jit(advantages.whiten)(x, mask), whitened)
    unshifted = jax.jit(partial(advantages.whiten, shift_mean=False))(x, mask)
    expect(unshifted, whitened + masked.mean())


def test_turn_returns_by_hand():
    rewards = np.array([[1.0, 2.0, 4.0], [1.0, np.nan, 4.0]])
    mask = np.array([[1, 1, 1], [1, 0, 0]])
    np.testing.assert_allclose(
        advantages.turn_returns(rewards, mask, gamma=0.1), [[1.24, 2.4, 4.0], [1.0, 0.0, 0.0]]
    )


@pytest.mark.parametrize("gamma", [0.0, 0.1, 1.0])
def test_turn_returns_match_a_loop(rng, gamma):
    rewards = rng.normal(size=(2, 3, 4))
    mask = np.arange(4) < rng.integers(1, 5, (2, 3, 1))
    expected = np.zeros_like(rewards)
    for *trajectory, h in np.ndindex(*rewards.shape):
        turns = [k for k in range(h, 4) if mask[*trajectory, k]]
        returned = sum(gamma ** (k - h) * rewards[*trajectory, k] for k in turns)
        expected[*trajectory, h] = returned * mask[*trajectory, h]
    result = jax.jit(advantages.turn_returns)(rewards, mask, gamma=gamma)
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("scale_by_std", [False, True])
def test_group_centered_matches_numpy(rng, scale_by_std, precision):
    returns = precision.cast(rng.normal(size=(3, 5, 2)))
    mask = rng.random((3, 5, 2)) < 0.7
    mask[0, :, 0] = [True] + [False] * 4
    mask[0, :, 1] = False
    expected = np.zeros_like(returns)
    for prompt, turn in np.ndindex(3, 2):
        keep = mask[prompt, :, turn]
        inside = returns[prompt, keep, turn]
        if len(inside):
            centered = inside - inside.mean()
            if scale_by_std and len(inside) > 1:
                centered /= np.sqrt(inside.var(ddof=1) + 1e-8)
            expected[prompt, keep, turn] = centered
    center = jax.jit(partial(advantages.group_centered, scale_by_std=scale_by_std))
    result = center(np.where(mask, returns, np.nan), mask)
    precision.assert_close(result, expected)


def test_leave_one_out_by_hand():
    returns = np.array([[1.0, 0.0, 0.5], [3.0, np.nan, 1.0], [7.0, np.nan, np.nan]])
    mask = np.array([[1, 1, 1], [1, 0, 1], [1, 0, 0]])
    # 1 − (0 + ½) / 2, …; of two they are each other's baseline; one alone has none.
    np.testing.assert_allclose(
        advantages.leave_one_out(returns, mask),
        [[0.75, -0.75, 0.0], [2.0, 0.0, -2.0], [0.0, 0.0, 0.0]],
    )


def test_leave_one_out_matches_a_loop(rng, precision):
    returns = precision.cast(rng.normal(size=(3, 5, 2)))
    mask = rng.random((3, 5, 2)) < 0.7
    mask[0, :, 0] = [True] + [False] * 4
    mask[0, :, 1] = False
    expected = np.zeros_like(returns)
    for prompt, one, turn in np.ndindex(*returns.shape):
        others = [j for j in range(5) if j != one and mask[prompt, j, turn]]
        if mask[prompt, one, turn] and others:
            baseline = sum(returns[prompt, j, turn] for j in others) / len(others)
            expected[prompt, one, turn] = returns[prompt, one, turn] - baseline
    result = jax.jit(advantages.leave_one_out)(np.where(mask, returns, np.nan), mask)
    precision.assert_close(result, expected)


def test_groups_masked_are_groups_sliced(rng):
    """Whoever did not take place might as well not be in the group."""
    returns, keep = rng.normal(size=(2, 6)), np.array([1, 0, 1, 1, 0, 1], bool)
    mask = np.broadcast_to(keep, returns.shape)
    for function in (
        advantages.leave_one_out,
        advantages.group_centered,
        partial(advantages.group_centered, scale_by_std=True),
    ):
        found = np.asarray(function(np.where(mask, returns, np.inf), mask))
        sliced = function(returns[:, keep], np.ones((2, 4)))
        np.testing.assert_allclose(found[:, keep], sliced, rtol=1e-6)
        np.testing.assert_array_equal(found[:, ~keep], 0)


@pytest.mark.parametrize("axis", [2, -3, None, 1.0, (0, 1)])
def test_an_axis_is_one(axis):
    x = np.zeros((2, 3))
    for function in (
        advantages.gae,
        advantages.first_turn,
        lambda x, _, **k: advantages.leave_one_out(x, **k),
        lambda x, _, **k: advantages.group_centered(x, **k),
        lambda x, _, **k: advantages.turn_returns(x, gamma=0.5, **k),
    ):
        message = rf"axis must be one axis of \w+, .* got {re.escape(repr(axis))}: .* \(2, 3\)"
        with pytest.raises(ValueError, match=message):
            function(x, x, axis=axis)


@pytest.mark.parametrize("wrong", [-0.1, 2, np.nan])
def test_discounts_are_shares(wrong):
    x = np.zeros((2, 3))
    for name in ("gamma", "gae_lambda"):
        with pytest.raises(ValueError, match=rf"{name} must be in \[0, 1\], got {wrong}"):
            advantages.gae(x, x, **{name: wrong})
        advantages.gae(x, x, **{name: jnp.float32(0.5)})
    with pytest.raises(ValueError, match=rf"gamma must be in \[0, 1\], got {wrong}"):
        advantages.turn_returns(x, gamma=wrong)


def test_comparisons_need_a_group_axis():
    with pytest.raises(ValueError, match=r"returns .*\(3,\)"):
        advantages.group_centered(jnp.ones(3), jnp.ones(3))
    with pytest.raises(ValueError, match=r"returns .*\(3,\)"):
        advantages.leave_one_out(jnp.ones(3), jnp.ones(3))
    with pytest.raises(ValueError, match=r"final_rewards .*\(3,\)"):
        advantages.first_turn(jnp.ones(3), jnp.ones(3), jnp.ones(3))


def test_first_turn_by_hand():
    final = np.array([[1.0, 0.0, 1.0, np.nan], [1.0, 1.0, 1.0, 1.0]])
    first = np.array([[0.0, 0.0, 0.0, 1.0], [0.0, 0.0, 0.0, 0.0]])
    mask = np.array([[1, 1, 1, 0], [1, 1, 1, 1]])
    # The second group would have no signal left if its own mean were the baseline.
    np.testing.assert_allclose(
        advantages.first_turn(final, first, mask),
        [[0.75, -0.25, 0.75, 0.0], [1.0, 1.0, 1.0, 1.0]],
    )


def test_no_gradient_flows_through_targets(rng):
    x, y = rng.normal(size=(2, 3, 4)).astype(np.float32)
    mask = np.ones((3, 4))
    for function in (
        lambda x: sum(r.sum() for r in advantages.gae(x, x + y, mask)),
        lambda x: (y * advantages.whiten(x, mask)).sum(),
        lambda x: (y * advantages.turn_returns(x, mask, gamma=0.5)).sum(),
        lambda x: (y * advantages.group_centered(x, mask, scale_by_std=True)).sum(),
        lambda x: (y * advantages.leave_one_out(x, mask)).sum(),
        lambda x: (y * advantages.first_turn(x, x, mask)).sum(),
    ):
        np.testing.assert_array_equal(jax.jit(jax.grad(function))(x), 0)


def test_uniform_span_rewards_are_the_plain_policy_gradient(rng):
    logits = rng.normal(size=(2, 5, 7)).astype(np.float32)
    tokens = rng.integers(0, 7, (2, 5))
    # Without a baseline, discount 0: every token keeps its own reward, here the sequence's.
    rewards, values, mask = np.full((2, 5), 0.7), np.zeros((2, 5)), np.ones((2, 5))
    spread, _ = advantages.gae(rewards, values, mask, gamma=0.0)

    def loss(logits, weights):
        return losses.reinforce(token_logprobs(logits, tokens), weights).sum()

    plain = jax.jit(jax.grad(lambda x: -0.7 * token_logprobs(x, tokens).sum()))(logits)
    gradient = jax.jit(jax.grad(loss))(logits, spread)
    np.testing.assert_allclose(gradient, plain, rtol=1e-5, atol=1e-6)


# ------------------------------------------------------------------ reference values


def test_reference_advantages(golden, precision):
    z = np.load(golden / "text2grad_ppo_0.npz")
    meta = json.loads(str(z["meta"]))
    mask = z["mask"]
    rewards, values = (precision.cast(z[name] * mask) for name in ("rewards_full", "values"))
    result, returns = jax.jit(advantages.gae)(
        rewards, values, mask, gamma=meta["gamma"], gae_lambda=meta["lam"]
    )
    precision.assert_close(returns * mask, z["returns"] * mask)
    precision.assert_close(advantages.whiten(result, mask) * mask, z["advantages"] * mask)


def test_reference_minibatch_from_logits_to_loss(golden, precision):
    """Text2Grad's minibatch end to end: logits, KL, rewards, advantages, losses, statistics."""
    z = {k: precision.cast(v) for k, v in np.load(golden / "text2grad_ppo_0.npz").items()}
    meta, mask = json.loads(str(z.pop("meta"))), z["mask"]

    def mean(x):
        return jnp.sum(x * mask) / jnp.sum(mask)

    @jax.jit
    def minibatch(z):
        penalty = kl.full(jax.nn.log_softmax(z["logits"]), jax.nn.log_softmax(z["ref_logits"]))
        rewards = z["span_rewards"] * mask - meta["kl_coef"] * penalty
        raw, returns = advantages.gae(rewards, z["values"], mask)
        old_logprobs = token_logprobs(z["logits"], z["tokens"])
        logprobs = token_logprobs(z["new_logits"], z["tokens"])
        whitened = advantages.whiten(raw, mask)
        policy = losses.clipped_surrogate(logprobs, old_logprobs, whitened)
        value = losses.clipped_value(z["vpreds"], z["values"], returns)
        return {
            "policy_loss": mean(policy),
            "value_loss_times_coef": meta["vf_coef"] * mean(value),
            "approxkl": mean(kl.k2(logprobs, old_logprobs)),
            "policykl": mean(kl.k1(old_logprobs, logprobs)),
        }

    for name, value in minibatch(z).items():
        precision.assert_close(value, z[name])


@pytest.fixture(scope="module")
def rltf(golden):
    (assembly,) = json.loads((golden / "rltf_assembly.json").read_text())
    groups = [group["trajectories"] for group in assembly["groups"]]
    first = np.array([[t["r0"] for t in group] for group in groups])
    final = np.array([[t.get("r1", np.nan) for t in group] for group in groups])
    had_second = np.array([["r1" in t for t in group] for group in groups])
    return assembly, first, final, had_second


def test_reference_turn_advantages(rltf):
    assembly, first, final, had_second = rltf
    rewards = np.stack([first, final], axis=-1)
    mask = np.stack([np.ones_like(had_second), had_second], axis=-1)
    returns = advantages.turn_returns(rewards, mask, gamma=assembly["gamma"])
    result = advantages.group_centered(returns, mask)
    np.testing.assert_allclose(result, assembly["rl_advantages"], rtol=1e-5, atol=1e-6)


def test_reference_distillation_advantages(rltf):
    assembly, first, final, had_second = rltf
    result = advantages.first_turn(final, first, had_second)
    rows = [row for row in assembly["training_rows"] if row["is_distillation"]]
    assert len(rows) == had_second.sum()

    def padded(name):
        return np.array([row[name] + [0.0] * (16 - len(row[name])) for row in rows])

    coefficients = [assembly["sd_coef"] * result[row["group"], row["traj"]] for row in rows]
    expected = padded("advantages")

    @jax.jit
    @jax.grad
    def gradient(logprobs):
        return losses.self_distillation(
            logprobs,
            np.array(coefficients)[:, None] * np.ones_like(expected),
            logprob_floor=assembly["logprob_threshold"],
            token_weights=padded("mask"),
        ).sum()

    # What the gradient sees of a row: the advantage of every token that was not dropped.
    np.testing.assert_allclose(-gradient(padded("logprobs")), expected, rtol=1e-5, atol=1e-7)
