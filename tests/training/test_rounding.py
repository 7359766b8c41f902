"""Optimizers of bfloat16 parameters: a float32 copy, or rounding at random."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from t2g_jax.config import MeshConfig, OptimizerConfig
from t2g_jax.parallel.sharding import make_mesh, state_shardings
from t2g_jax.training.rounding import CopyState, stochastic_round
from t2g_jax.training.state import TrainState, make_optimizer

CONFIG = OptimizerConfig(learning_rate=1e-3, weight_decay=0.1, clip_norm=2.0)
STOCHASTIC = dataclasses.replace(CONFIG, rounding="stochastic")


def params(dtype=jnp.bfloat16):
    """A matrix in `dtype` whose values bfloat16 holds, and a norm that is float32 anyway."""
    kernel = jax.random.normal(jax.random.key(0), (64, 32)).astype(jnp.bfloat16)
    return {"kernel": kernel.astype(dtype), "scale": jnp.ones(32)}


def gradients(step):
    key = jax.random.fold_in(jax.random.key(1), step)
    return jax.tree.map(lambda x: jax.random.normal(key, x.shape).astype(x.dtype), params())


def steps(config, start, count, first=0, state=None):
    optimizer = make_optimizer(config, 100)
    state = optimizer.init(start) if state is None else state

    @jax.jit
    def step(theta, state, gradient):
        updates, state = optimizer.update(gradient, state, theta)
        return optax.apply_updates(theta, updates), state

    for i in range(first, first + count):
        start, state = step(start, state, gradients(i))
    return start, state


def equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_rounded_at_random_to_a_neighbor_and_right_on_average():
    x = jnp.float32([1.0, 1.001, -1.001, 3.1416, 1e-20, -7e10, 0.0])
    keys = jax.random.split(jax.random.key(0), 20_000)
    drawn = np.asarray(jax.vmap(stochastic_round, (None, 0))(x, keys), np.float32)
    bits = np.asarray(x).view(np.uint32) & 0xFFFF0000
    towards_zero, away = bits.view(np.float32), (bits + 0x10000).view(np.float32)
    assert np.all((drawn == towards_zero) | (drawn == away))
    gap = np.abs(away - towards_zero)
    # The mean of n draws is off by at most gap / 2√n, once; four times that never.
    np.testing.assert_array_less(np.abs(drawn.mean(0) - x), 2 * gap / np.sqrt(20_000) + 1e-38)
    np.testing.assert_array_equal(drawn[:, 0], 1.0)  # what bfloat16 holds stays
    np.testing.assert_array_equal(drawn[:, -1], 0.0)


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_what_is_not_finite_stays_so(value):
    rounded = stochastic_round(jnp.full(1000, value, jnp.float32), jax.random.key(0))
    np.testing.assert_array_equal(np.asarray(rounded, np.float32), np.float32(value))


def test_a_float32_copy_moves_as_float32_parameters_do():
    gradient_dtypes = jax.tree.map(lambda x: x.dtype, gradients(0))
    assert gradient_dtypes["kernel"] == jnp.bfloat16
    narrow, state = steps(CONFIG, params(), 5)
    exact, _ = steps(CONFIG, params(jnp.float32), 5)
    assert isinstance(state, CopyState)
    assert state.copy["scale"] is None  # it is float32 itself
    np.testing.assert_allclose(state.copy["kernel"], exact["kernel"], rtol=1e-6)
    assert narrow["kernel"].dtype == jnp.bfloat16
    equal(narrow["kernel"], state.copy["kernel"].astype(jnp.bfloat16))
    np.testing.assert_allclose(narrow["scale"], exact["scale"], rtol=1e-6)


def test_small_steps_are_lost_only_by_rounding_to_nearest():
    """A hundred steps of a tenth of the distance between two bfloat16 numbers."""
    config = dataclasses.replace(CONFIG, learning_rate=2.0**-7 / 10, weight_decay=0.0)
    ones = {"kernel": jnp.ones((64, 64), jnp.bfloat16)}
    moves = {}
    for rounding in ("float32_copy", "stochastic"):
        optimizer = make_optimizer(dataclasses.replace(config, rounding=rounding), 100)
        theta, state = ones, optimizer.init(ones)
        update = jax.jit(optimizer.update)
        for _ in range(100):
            updates, state = update({"kernel": -ones["kernel"]}, state, theta)
            theta = optax.apply_updates(theta, updates)
        moves[rounding] = float(jnp.mean(theta["kernel"].astype(jnp.float32))) - 1
    expected = 100 * 2.0**-7 / 10
    assert moves["float32_copy"] == pytest.approx(expected, rel=0.05)
    assert moves["stochastic"] == pytest.approx(expected, rel=0.02)
    nearest = jnp.bfloat16(1) + jnp.bfloat16(2.0**-7 / 10)
    assert nearest == 1


def test_rounding_depends_on_the_step_and_nothing_else():
    """Three steps and two more are five; another state at the same step draws the same bits."""
    whole, state = steps(STOCHASTIC, params(), 5)
    half, kept = steps(STOCHASTIC, params(), 3)
    resumed = steps(STOCHASTIC, half, 2, first=3, state=jax.device_get(kept))
    equal((whole, state), resumed)
    assert int(state.updates) == 5
    both = {"a": params()["kernel"], "b": params()["kernel"]}
    optimizer = make_optimizer(dataclasses.replace(STOCHASTIC, weight_decay=0.0), 100)
    same = jax.tree.map(lambda x: jnp.full(x.shape, 0.5, x.dtype), both)
    updates, _ = jax.jit(optimizer.update)(same, optimizer.init(both), both)
    moved = optax.apply_updates(both, updates)
    assert (moved["a"] != moved["b"]).any()  # bits of their own for each parameter


@pytest.mark.parametrize("name", ["adamw", "adafactor"])
@pytest.mark.parametrize("rounding", ["float32_copy", "stochastic"])
def test_moments_are_float32(name, rounding):
    config = dataclasses.replace(CONFIG, name=name, rounding=rounding)
    state = make_optimizer(config, 10).init(params())
    assert not any(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(state))


def test_the_first_moment_may_be_bfloat16():
    config = dataclasses.replace(CONFIG, moment_dtype="bfloat16")
    start = params(jnp.float32)
    state = make_optimizer(config, 10).init(start)
    found = [leaf.dtype for leaf in jax.tree.leaves(state) if leaf.shape == (64, 32)]
    assert sorted(map(str, found)) == ["bfloat16", "float32"]
    narrow, _ = steps(config, start, 5)
    exact, _ = steps(CONFIG, start, 5)
    np.testing.assert_allclose(narrow["kernel"], exact["kernel"], atol=2e-4)
    assert (narrow["kernel"] != exact["kernel"]).any()


def test_float32_parameters_are_not_touched():
    start = params(jnp.float32)
    equal(steps(CONFIG, start, 3), steps(STOCHASTIC, start, 3))


def test_the_copy_lies_as_its_parameter():
    mesh = make_mesh(MeshConfig(data=1, fsdp=8))
    optimizer = make_optimizer(CONFIG, 10)
    tree = {"lm_head": {"kernel": jnp.zeros((16, 8), jnp.bfloat16)}}
    state = jax.eval_shape(lambda: TrainState.create(tree, optimizer))
    shardings = state_shardings(state, mesh)
    copy = shardings.opt_state.copy["lm_head"]["kernel"]
    assert copy == shardings.params["lm_head"]["kernel"]
    assert copy.shard_shape((16, 8)) == (2, 8)
