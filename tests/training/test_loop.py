"""Stopped and started again equals never stopped, bit for bit."""

import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t2g_jax.errors import T2GError
from t2g_jax.parallel.sharding import batch_sharding, state_shardings
from t2g_jax.runtime import preemption
from t2g_jax.training.batch import micro_batches
from t2g_jax.training.checkpoint import Checkpoints
from t2g_jax.training.loop import abstract, train
from t2g_jax.training.metrics import MetricsWriter, read_metrics

STEPS = 5


class Stop(Exception):
    """The machine goes away."""


@pytest.fixture
def start(compiled_update, fresh_state, batches, mesh_of):
    """start(folder, stop_before=…, every=…) → (last state, steps made now, steps reported).

    poisoned: steps whose batch has a NaN. told: `told(step)` adds metrics. Other options go to
    `train`.
    """
    mesh = mesh_of(1, 8, 1, 1)
    update = compiled_update(mesh, 1)
    replicated = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())

    def start(folder, *, stop_before=None, every=2, poisoned=(), told=None, **options):
        made, reported = [], []

        def advance(state, i):
            if i == stop_before:
                raise Stop
            made.append(i)
            began_at = float(state.carry.get("progress", -1))
            noise = jax.random.normal(jax.random.fold_in(jax.random.key(0), i))
            coefficient = float(state.carry["kl_coefficient"] * (1 + 0.1 * noise))
            carry = {"kl_coefficient": jax.device_put(jnp.float32(coefficient), replicated)}
            batch = batches[i % len(batches)]
            if i in poisoned:
                returns = batch.fields["returns"] * np.float32(np.nan)
                batch = batch.with_fields(returns=returns)
            batch = jax.device_put(
                micro_batches(batch, 1), batch_sharding(mesh, micro_batched=True)
            )
            state, report = update(state.replace(carry=carry), batch)
            report = jax.device_get(report) | {"coefficient": coefficient, "began_at": began_at}
            return state, report | (told(i) if told else {})

        with (
            Checkpoints(
                folder / "checkpoints", keep_best=options.pop("keep_best", None)
            ) as checkpoints,
            MetricsWriter(folder, phase="test", resumed_step=checkpoints.latest_step) as writer,
        ):
            state = train(
                fresh_state(),
                advance,
                mesh=mesh,
                checkpoints=checkpoints,
                writer=writer,
                every=every,
                **{"steps": STEPS, "meta": {"phase": "test"}} | options,
                on_step=lambda step, metrics: reported.append((step, float(metrics["loss"]))),
            )
            assert checkpoints.latest_step == len(read_metrics(folder))
            assert checkpoints.meta()["step"] == checkpoints.latest_step
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
    state = jax.device_put(state, state_shardings(state, mesh_of(2, 2, 1, 2)))
    for leaf, shape in zip(jax.tree.leaves(state), jax.tree.leaves(abstract(state)), strict=True):
        assert isinstance(shape, jax.ShapeDtypeStruct)
        assert (shape.shape, shape.dtype, shape.sharding) == (leaf.shape, leaf.dtype, leaf.sharding)


# ------------------------------------------------------------------ budget


def meta(folder, step=None):
    with Checkpoints(folder / "checkpoints", read_only=True) as checkpoints:
        return checkpoints.meta(step)


@pytest.mark.parametrize(("budget", "steps"), [(1, 1), (30, 3), (31, 4), (80, 8), (None, 5)])
def test_it_ends_with_the_step_that_reaches_the_token_budget(start, tmp_path, budget, steps):
    told = {"told": lambda step: {"tokens_generated": 10}, "token_budget": budget}
    _, made, _ = start(tmp_path, **told)
    assert made == list(range(steps))
    totals = [line["tokens_generated_total"] for line in read_metrics(tmp_path)]
    assert totals == [10 * (step + 1) for step in made]
    assert meta(tmp_path) == {"phase": "test", "step": steps, "tokens_generated": 10 * steps}
    done = [10 * step / budget if budget else -1 for step in made]
    assert [line["began_at"] for line in read_metrics(tmp_path)] == pytest.approx(done)
    _, made, _ = start(tmp_path, **told)  # it is complete
    assert made == []


def test_the_budget_survives_a_restart(start, tmp_path):
    told = {"told": lambda step: {"tokens_generated": 10}, "token_budget": 40}
    with pytest.raises(Stop):
        start(tmp_path, stop_before=3, **told)
    _, made, _ = start(tmp_path, **told)
    assert made == [2, 3]
    lines = read_metrics(tmp_path)
    assert [line["tokens_generated_total"] for line in lines] == [10, 20, 30, 40]
    assert [line["began_at"] for line in lines] == [0, 0.25, 0.5, 0.75]


def test_a_budget_that_nothing_counts_towards_is_refused(start, tmp_path):
    for told in (lambda step: {}, lambda step: {"tokens_generated": 0}):
        with pytest.raises(T2GError, match="step 1 generated no tokens: a token_budget"):
            start(tmp_path, told=told, token_budget=40)


# ------------------------------------------------------------------ NaN


def test_an_update_that_is_not_finite_is_skipped_and_counted(start, tmp_path):
    """The state moves as if the step were not there, and the log tells."""
    whole, _, _ = start(tmp_path / "whole", poisoned={1, 2})
    lines = read_metrics(tmp_path / "whole")
    assert [line["skipped_updates"] for line in lines] == [0, 1, 1, 0, 0]
    assert [line["skipped_in_row"] for line in lines] == [0, 1, 2, 0, 0]
    assert np.isnan(lines[1]["loss"])
    assert np.isfinite([line["loss"] for line in (lines[0], *lines[3:])]).all()
    assert whole.step == STEPS - 2
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.device_get(whole)))

    # Not saved in between, and the same if the run is stopped there.
    with pytest.raises(Stop):
        start(tmp_path / "stopped", every=1, poisoned={1, 2}, stop_before=3)
    resumed, made, _ = start(tmp_path / "stopped", every=1, poisoned={1, 2})
    assert made == [1, 2, 3, 4]
    assert_same(resumed, whole)
    assert log(tmp_path / "stopped") == log(tmp_path / "whole")


def test_a_skipped_update_leaves_parameters_and_optimizer_as_they_were(start, tmp_path):
    one, _, _ = start(tmp_path / "one", steps=1)
    two, _, _ = start(tmp_path / "two", steps=2, poisoned={1})
    assert_same((one.params, one.opt_state, one.step), (two.params, two.opt_state, two.step))
    assert two.skipped == 1  # the last step is saved, whatever it was


def test_too_many_skipped_in_a_row_end_the_run_at_the_last_good_checkpoint(start, tmp_path):
    limit = {"every": 1, "max_skipped_updates": 3}
    start(tmp_path / "two", poisoned={1, 2}, **limit)
    for _ in range(2):  # the same again when it is started again
        with pytest.raises(T2GError, match=r"not finite .* in 3 updates in a row") as error:
            start(tmp_path / "three", poisoned={1, 2, 3}, **limit)
        assert f"{tmp_path / 'three' / 'checkpoints' / '1'}, of step 1" in str(error.value)
        assert "lower optimizer.learning_rate" in str(error.value)
        assert "--accept-changes" in str(error.value)
    resumed, made, _ = start(tmp_path / "three", **limit)  # what was wrong is mended
    assert made == [1, 2, 3, 4]
    assert resumed.step == STEPS


def test_nothing_good_was_saved(start, tmp_path):
    with pytest.raises(T2GError, match=r"No checkpoint was made before; delete .*checkpoints"):
        start(tmp_path, poisoned={0, 1}, max_skipped_updates=2, every=1)


@pytest.mark.parametrize("every", [1, 2])
def test_a_phase_that_skipped_every_update_is_no_phase(start, tmp_path, every):
    for _ in range(2):
        with pytest.raises(T2GError, match=r"not finite .* in 2 of 2 updates until step 2, more"):
            start(tmp_path, poisoned={0, 1}, steps=2, every=every, max_skipped_updates=10)
        assert not list((tmp_path / "checkpoints").glob("[0-9]*"))
    resumed, made, _ = start(tmp_path, steps=2)  # what was wrong is mended
    assert (resumed.step, made) == (2, [0, 1])


@pytest.mark.parametrize(
    ("poisoned", "most", "ended"),
    [
        ({1, 2, 3, 4}, 10, "4 of 5 updates until step 5"),  # one good update, then none to the end
        ({0, 2, 4}, 10, "3 of 5 updates until step 5"),
        ({0, 1, 3}, 3, "3 of 4 updates until step 4"),  # at once: half of them can be no more
    ],
)
def test_a_phase_that_skipped_most_updates_has_failed(start, tmp_path, poisoned, most, ended):
    for _ in range(2):  # what was skipped before a checkpoint counts after it
        with pytest.raises(T2GError, match=f"in {ended}, more than half; they were") as error:
            start(tmp_path, poisoned=poisoned, max_skipped_updates=most, every=1)
        assert "lower optimizer.learning_rate" in str(error.value)
    good = max(step for step in range(STEPS) if step not in poisoned and step < int(ended[-1]))
    assert f"checkpoints/{good + 1}, of step {good + 1}" in str(error.value)
    resumed, _, _ = start(tmp_path, max_skipped_updates=most, every=1)  # what was wrong is mended
    assert resumed.step == STEPS - len([step for step in poisoned if step < good])


def test_half_of_the_updates_make_a_phase(start, tmp_path):
    state, _, _ = start(tmp_path, poisoned={1, 3}, steps=4, max_skipped_updates=10)
    assert state.step == 2


# ------------------------------------------------------------------ SIGTERM


def test_sigterm_ends_with_the_step_under_way_which_is_saved(start, tmp_path):
    whole, _, _ = start(tmp_path / "whole")

    def terminated(step):
        if step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return {}

    folder = tmp_path / "stopped"
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(preemption.Preempted), preemption.watched():
        start(folder, told=terminated, every=100)
    assert signal.getsignal(signal.SIGTERM) is before
    assert meta(folder)["step"] == 3
    resumed, made, _ = start(folder)
    assert made == [3, 4]
    assert_same(resumed, whole)
    assert log(folder) == log(tmp_path / "whole")


def test_sigterm_in_the_last_step(start, tmp_path):
    """The phase is done, the run is not: it stops before the next phase."""

    def terminated(step):
        if step == STEPS - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return {}

    with pytest.raises(preemption.Preempted), preemption.watched():
        start(tmp_path, told=terminated)
    assert start(tmp_path)[1] == []


# ------------------------------------------------------------------ the best


def best_step(folder):
    with Checkpoints(
        folder / "checkpoints", read_only=True, keep_best=("quality", "max")
    ) as checkpoints:
        return checkpoints.latest_step, checkpoints.best_step


def test_the_best_checkpoint_is_chosen_by_what_the_saved_state_measures(start, tmp_path):
    measured = {2: 0.1, 4: 0.9, 5: 0.5}
    start(
        tmp_path,
        keep_best=("quality", "max"),
        measure=lambda state, step: {"quality": measured[step]},
        told=lambda step: {"quality": 1.0 - step},  # that was of the state before
    )
    assert best_step(tmp_path) == (5, 4)


def test_a_metric_that_only_some_steps_measure_is_no_mistake(start, tmp_path):
    """As of second attempts: the steps up to the first that is saved may have had none."""
    start(
        tmp_path,
        keep_best=("quality", "max"),
        told=lambda step: {} if step < 2 else {"quality": float(step)},
    )


def test_a_step_that_sigterm_had_saved_is_not_the_best(start, tmp_path):
    """An uninterrupted run would not have seen it."""

    def terminated(step):
        if step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return {"quality": 9.0 if step == 2 else float(step)}

    with pytest.raises(preemption.Preempted), preemption.watched():
        start(tmp_path, keep_best=("quality", "max"), told=terminated)
    assert best_step(tmp_path) == (3, 2)


def test_checkpoints_of_another_phase_are_not_taken(start, tmp_path):
    start(tmp_path)
    with pytest.raises(T2GError, match="holds checkpoints of the phase 'test', not of 'sft'"):
        start(tmp_path, meta={"phase": "sft"})
