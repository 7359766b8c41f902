"""Schedules and optimizers against their formulas."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from t2g_jax.config import OptimizerConfig
from t2g_jax.training.state import TrainState, learning_rate, make_optimizer

SGDLIKE = OptimizerConfig(learning_rate=0.1, clip_norm=1e9)


@pytest.mark.parametrize(
    ("schedule", "warmup", "expected"),
    [
        ("constant", 0, {0: 2.0, 5: 2.0, 10: 2.0, 50: 2.0}),
        ("linear", 0, {0: 2.0, 5: 1.0, 9: 0.2, 10: 0.0, 50: 0.0}),
        ("cosine", 0, {0: 2.0, 5: 1.0, 10: 0.0, 50: 0.0}),
        ("constant", 4, {0: 0.0, 1: 0.5, 2: 1.0, 4: 2.0, 10: 2.0}),
        ("linear", 4, {0: 0.0, 2: 1.0, 4: 2.0, 7: 1.0, 10: 0.0, 50: 0.0}),
        ("cosine", 4, {0: 0.0, 2: 1.0, 4: 2.0, 7: 1.0, 10: 0.0}),
        ("linear", 20, {0: 0.0, 10: 1.0, 20: 2.0}),  # longer than the run
    ],
)
def test_learning_rates(schedule, warmup, expected):
    config = OptimizerConfig(learning_rate=2.0, schedule=schedule, warmup_steps=warmup)
    rates = learning_rate(config, 10)
    assert {step: float(rates(step)) for step in expected} == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("schedule", "warmup", "expected"),
    [
        ("constant", 0, {(0, 0.0): 2.0, (7, 0.5): 2.0, (90, 1.0): 2.0}),
        ("linear", 0, {(0, 0.0): 2.0, (7, 0.5): 1.0, (9, 0.9): 0.2, (90, 1.0): 0.0}),
        ("cosine", 0, {(0, 0.0): 2.0, (7, 0.5): 1.0, (90, 1.0): 0.0}),
        ("linear", 4, {(0, 0.0): 0.0, (2, 0.1): 0.9, (4, 0.5): 1.0, (50, 0.9): 0.2}),
    ],
)
def test_learning_rates_by_progress(schedule, warmup, expected):
    """Without a number of updates: the warm-up by updates, the rest by the share of the run."""
    config = OptimizerConfig(learning_rate=2.0, schedule=schedule, warmup_steps=warmup)
    rates = learning_rate(config, None)
    found = {at: float(rates(*at)) for at in expected}
    assert found == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("name", ["adamw", "adafactor"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_optimizer_that_is_told_the_progress_equals_one_that_counts(name, dtype):
    config = dataclasses.replace(SGDLIKE, name=name, schedule="linear", rounding="stochastic")
    counting, told = make_optimizer(config, 5), make_optimizer(config, None)
    start = jax.tree.map(lambda x: x.astype(dtype), tree(0))
    ours, theirs = start, start
    state, other = told.init(start), counting.init(start)
    for i in range(5):
        gradient = tree(i + 1)
        change, state = told.update(gradient, state, ours, progress=jnp.float32(i / 5))
        ours = optax.apply_updates(ours, change)
        change, other = counting.update(gradient, other, theirs, progress=jnp.float32(0.9))
        theirs = optax.apply_updates(theirs, change)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), ours, theirs)


def tree(seed, scale=1.0):
    rng = np.random.default_rng(seed)

    def leaf(*shape):
        return jnp.asarray(scale * rng.normal(size=shape), jnp.float32)

    return {
        "dense": {"kernel": leaf(3, 4), "bias": leaf(4)},
        "norm": {"scale": leaf(3)},
        "embed": {"embedding": leaf(5, 3)},
    }


def run(config, gradients, updates=10):
    params = tree(0)
    optimizer = make_optimizer(config, updates)
    state = optimizer.init(params)
    update = jax.jit(optimizer.update)
    for gradient in gradients:
        change, state = update(gradient, state, params)
        params = optax.apply_updates(params, change)
    return params


def assert_close(actual, expected):
    jax.tree.map(
        lambda a, e: np.testing.assert_allclose(a, e, rtol=1e-5, atol=1e-6), actual, expected
    )


DECAYED = {"dense": {"kernel": 1, "bias": 0}, "norm": {"scale": 0}, "embed": {"embedding": 1}}


def test_adamw_follows_its_formula():
    """θ ← θ − η (m̂ / (√v̂ + ε) + λ θ), λ on matrices only; η falls linearly."""
    config = dataclasses.replace(
        SGDLIKE, schedule="linear", b1=0.8, b2=0.9, eps=1e-3, weight_decay=0.3
    )
    gradients = [tree(seed) for seed in (1, 2, 3)]

    def follow(theta, decayed, *gradients):
        theta, m, v = np.float64(theta), 0.0, 0.0
        for t, g in enumerate(map(np.float64, gradients), start=1):
            m, v = 0.8 * m + 0.2 * g, 0.9 * v + 0.1 * g * g
            step = (m / (1 - 0.8**t)) / (np.sqrt(v / (1 - 0.9**t)) + 1e-3)
            theta = theta - 0.1 * (1 - (t - 1) / 10) * (step + 0.3 * decayed * theta)
        return theta

    assert_close(run(config, gradients), jax.tree.map(follow, tree(0), DECAYED, *gradients))


@pytest.mark.parametrize("name", ["adamw", "adafactor"])
def test_decay_is_scaled_by_the_learning_rate_and_spares_norms_and_biases(name):
    config = dataclasses.replace(SGDLIKE, name=name, weight_decay=0.5)
    nothing = jax.tree.map(jnp.zeros_like, tree(0))
    expected = jax.tree.map(lambda x, d: x * (1 - 0.1 * 0.5 * d), tree(0), DECAYED)
    assert_close(run(config, [nothing]), expected)


def test_adafactor_steps_by_the_learning_rate():
    """The first update is η g / √v with v = g²: the sign."""
    config = dataclasses.replace(SGDLIKE, name="adafactor")
    gradient = tree(1)
    expected = jax.tree.map(lambda x, g: x - 0.1 * np.sign(g), tree(0), gradient)
    assert_close(run(config, [gradient]), expected)


def test_adafactor_factors_large_matrices():
    params = {"kernel": jnp.zeros((256, 128))}
    state = make_optimizer(dataclasses.replace(SGDLIKE, name="adafactor"), 10).init(params)
    assert sum(leaf.size for leaf in jax.tree.leaves(state)) < 500


@pytest.mark.parametrize("name", ["adamw", "adafactor"])
def test_gradients_are_clipped_by_their_global_norm(name):
    """Clipped gradients take the same path as those that were small from the start."""
    config = dataclasses.replace(SGDLIKE, name=name, eps=0.1, clip_norm=2.0)
    gradients = [tree(1, scale=50.0), tree(2, scale=0.01)]
    norm = optax.tree.norm(gradients[0])
    assert norm > 2 > optax.tree.norm(gradients[1])
    small = [jax.tree.map(lambda g: g * (2.0 / norm), gradients[0]), gradients[1]]
    free = dataclasses.replace(config, clip_norm=1e9)
    assert_close(run(config, gradients), run(free, small))


def test_a_fresh_state():
    optimizer = make_optimizer(SGDLIKE, 10)
    state = TrainState.create(tree(0), optimizer, {"kl_coefficient": jnp.float32(0.2)})
    assert state.step == 0
    assert state.step.dtype == jnp.int32
    assert state.carry == {"kl_coefficient": 0.2}
    assert TrainState.create(tree(0), optimizer).carry == {}
    names = {jax.tree_util.keystr(path[:1]) for path, _ in jax.tree.leaves_with_path(state)}
    assert names == {".step", ".params", ".opt_state", ".carry", ".skipped"}
