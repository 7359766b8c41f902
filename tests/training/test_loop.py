"""Stopped and started again equals never stopped, bit for bit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t2g_jax.training.batch import micro_batches
from t2g_jax.training.checkpoint import Checkpoints
from t2g_jax.training.loop import abstract, train
from t2g_jax.training.metrics import MetricsWriter, read_metrics
from t2g_jax.training.sharding import batch_sharding, state_shardings

STEPS = 5


class Stop(Exception):
    """The machine goes away."""


@pytest.fixture
def start(compiled_update, fresh_state, batches, mesh_of):
    """start(folder, stop_before=…, every=…) → (last state, steps made now, steps reported)."""
    mesh = mesh_of(1, 8, 1)
    update = compiled_update(mesh, 1)
    replicated = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())

    def start(folder, *, stop_before=None, every=2):
        made, reported = [], []

        def advance(state, i):
            if i == stop_before:
                raise Stop
            made.append(i)
            noise = jax.random.normal(jax.random.fold_in(jax.random.key(0), i))
            coefficient = float(state.carry["kl_coefficient"] * (1 + 0.1 * noise))
            carry = {"kl_coefficient": jax.device_put(jnp.float32(coefficient), replicated)}
            batch = jax.device_put(
                micro_batches(batches[i], 1), batch_sharding(mesh, micro_batched=True)
            )
            state, report = update(state.replace(carry=carry), batch)
            return state, jax.device_get(report) | {"coefficient": coefficient}

        with (
            Checkpoints(folder / "checkpoints") as checkpoints,
            MetricsWriter(folder, phase="test", resumed_step=checkpoints.latest_step) as writer,
        ):
            state = train(
                fresh_state(),
                advance,
                steps=STEPS,
                mesh=mesh,
                checkpoints=checkpoints,
                writer=writer,
                every=every,
                meta={"phase": "test"},
                on_step=lambda step, metrics: reported.append((step, float(metrics["loss"]))),
            )
            assert checkpoints.latest_step == STEPS
            assert checkpoints.meta() == {"phase": "test", "step": STEPS}
        return state, made, reported

    return start


def log(folder):
    """The metrics without the times."""
    return [{k: v for k, v in line.items() if k != "seconds"} for line in read_metrics(folder)]


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        assert x.sharding.is_equivalent_to(y.sharding, x.ndim)
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


def test_stopped_and_resumed_equals_uninterrupted(start, tmp_path):
    """Five steps, a checkpoint every two: stopped before the first, after one, and twice more."""
    whole, made, reported = start(tmp_path / "whole")
    assert made == [0, 1, 2, 3, 4]
    assert [step for step, _ in reported] == [1, 2, 3, 4, 5]
    assert whole.step == STEPS
    assert whole.carry["kl_coefficient"] != 0.2

    folder = tmp_path / "stopped"
    for stop_before in (1, 3, 4):
        with pytest.raises(Stop):
            start(folder, stop_before=stop_before)
    resumed, made, _ = start(folder)
    assert made == [4]
    assert_same(resumed, whole)
    assert log(folder) == log(tmp_path / "whole")
    assert [line["step"] for line in log(folder)] == [1, 2, 3, 4, 5]


def test_a_finished_run_is_not_trained_further(start, tmp_path):
    first, made, _ = start(tmp_path, every=100)
    assert made == [0, 1, 2, 3, 4]
    again, made, reported = start(tmp_path, every=100)
    assert made == reported == []
    assert_same(again, first)
    assert [line["step"] for line in log(tmp_path)] == [1, 2, 3, 4, 5]


def test_abstract_keeps_shapes_types_and_places(fresh_state, mesh_of):
    state = fresh_state()
    state = jax.device_put(state, state_shardings(state, mesh_of(2, 2, 2)))
    for leaf, shape in zip(jax.tree.leaves(state), jax.tree.leaves(abstract(state)), strict=True):
        assert isinstance(shape, jax.ShapeDtypeStruct)
        assert (shape.shape, shape.dtype, shape.sharding) == (leaf.shape, leaf.dtype, leaf.sharding)
