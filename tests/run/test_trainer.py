import dataclasses
import itertools
import shutil

import jax
import numpy as np
import pytest
import tiny
from cases import row

from t2g_jax.config import OptimizerConfig
from t2g_jax.parallel.shapes import bucket
from t2g_jax.run import trainer
from t2g_jax.run.trainer import Experience, UpdatePlan, minibatches, run_training
from t2g_jax.run.workspace import Workspace
from t2g_jax.tasks.base import Floor
from t2g_jax.training.metrics import read_metrics
from t2g_jax.training.objective import Objective
from t2g_jax.training.terms import NLL, NLL_WEIGHT


def rows(count, length=10):
    return [row(([1], {}), ([i] * length, {"nll_weight": 1.0})) for i in range(count)]


@pytest.fixture
def batches_of(tiny_context, plan):
    """batches_of(rows, step): the batches of a step."""

    def batches_of(rows, step):
        return list(minibatches(plan, rows, tiny_context.mesh, tiny_context.keys, f"sft/{step}"))

    return batches_of


@pytest.fixture
def plan(tiny_context):
    return UpdatePlan(
        optimizer=tiny_context.config.sft.optimizer,
        objective=Objective((NLL(),)),
        steps=2,
        epochs=2,
        minibatches=3,
        micro_batches=2,
    )


def test_each_epoch_has_each_row_once_in_an_order_of_its_own(batches_of):
    batches = batches_of(rows(12), 0)
    assert len(batches) == 2 * 3
    assert {batch.tokens.shape for batch in batches} == {(2, 8, 16)}  # 8 devices
    contents = [sorted(set(np.unique(batch.tokens)) - {0, 1}) for batch in batches]
    for epoch in (contents[:3], contents[3:]):
        assert sorted(itertools.chain(*epoch)) == list(range(2, 12))
    assert contents[:3] != contents[3:]
    for step, same in ((0, True), (1, False)):
        again = batches_of(rows(12), step)
        pairs = zip(batches, again, strict=True)
        assert all((a.tokens == b.tokens).all() for a, b in pairs) == same


def test_lengths_are_few():
    lengths = {bucket(rows(1, n)) for n in range(1, 512)}
    assert lengths == {16, 32, 48, 64, 96, 128, 192, 256, 384, 512}


def test_metrics_of_a_step():
    reports = [
        {"loss": 1.0, "ratio_max": 1.1, "ratio_min": 0.9, "kl_sampler_trainer": 1e-9},
        {"loss": 2.0, "ratio_max": 1.4, "ratio_min": 0.5, "kl_sampler_trainer": 0.3},
    ]
    assert trainer.summarize(reports) == {
        "loss": 1.5,
        "ratio_max": 1.4,
        "ratio_min": 0.5,
        "kl_sampler_trainer": 1e-9,
    }


def test_extremes_are_kept_whatever_they_are_of_and_without_updates_there_is_nothing():
    reports = [{"log_ratio_max": 0.1, "log_ratio_min": -0.1, "skipped_updates": 1},
               {"log_ratio_max": 0.0, "log_ratio_min": -0.3, "skipped_updates": 1}]  # fmt: skip
    assert trainer.summarize(reports) == {
        "log_ratio_max": 0.1,
        "log_ratio_min": -0.3,
        "skipped_updates": 2,
    }
    assert trainer.summarize([]) == {}


def test_memory_is_told_where_a_device_knows_it(monkeypatch):
    assert trainer.device_memory() == {}  # CPU

    class Device:
        def __init__(self, peak):
            self.peak = peak

        def memory_stats(self):
            return self.peak and {"peak_bytes_in_use": self.peak, "bytes_in_use": 1}

    monkeypatch.setattr(jax, "local_devices", lambda: [Device(5), Device(7), Device(None)])
    assert trainer.device_memory() == {"device_memory_bytes": 7}


def test_speed_by_stage():
    seconds = {"sample": 2.0, "judge": 0.5, "evaluate": 1.0}
    assert trainer.compute_speed(seconds, {"sample": 10, "judge": 0, "update": 7}) == {
        "seconds_sample": 2.0,
        "seconds_judge": 0.5,
        "seconds_evaluate": 1.0,
        "tokens_per_second_sample": 5.0,
    }


@pytest.fixture
def train(tiny_context, plan, tmp_path):
    """train(collect, …): trains a phase of its own from the warm start, with changes to the
    plan and, named with "__", to the config."""
    start = tiny_context.weights.load()
    elsewhere = Workspace(tmp_path, tiny_context.config)

    def train(collect, **changes):
        values = {name: changes.pop(name) for name in list(changes) if "__" in name}
        context = tiny.changed(tiny_context, **values)
        context = dataclasses.replace(context, workspace=elsewhere)
        floor = changes.pop("floor", None)
        chosen = dataclasses.replace(plan, **changes)
        result = run_training(context, "own", start, collect, chosen, floor=floor)
        return result, read_metrics(tmp_path / "own")

    return train


def test_the_carry_goes_from_step_to_step(train):
    seen = []

    def collect(state, step):
        seen.append(float(state.carry["beta"]))
        return Experience(rows(12), {"tokens_generated": 5}, {"beta": seen[-1] * 2})

    (params, summary), lines = train(collect, carry={"beta": 0.5})
    assert seen == [0.5, 1.0]
    assert jax.tree.leaves(params)[0].shape
    assert [line["step"] for line in lines] == [1, 2]
    assert [line["tokens_trained"] for line in lines] == [2 * 12 * 10] * 2
    assert (summary["tokens_trained"], summary["tokens_generated"]) == (2 * 2 * 12 * 10, 2 * 5)
    assert summary["last"]["step"] == 2


def test_the_log_has_the_learning_rate_that_the_step_began_with(train):
    schedule = {"schedule": "linear", "learning_rate": 0.6, "warmup_steps": 0}
    optimizer = dataclasses.replace(OptimizerConfig(), **schedule)
    _, lines = train(lambda state, step: Experience(rows(12)), optimizer=optimizer, steps=2)
    # Two epochs of three minibatches a step: 12 updates in all.
    assert [line["learning_rate"] for line in lines] == pytest.approx([0.6, 0.3])


def test_with_a_budget_the_learning_rate_follows_it(train):
    """The same rates as with steps, where all rounds are equally long; and past `steps`."""
    optimizer = dataclasses.replace(OptimizerConfig(), schedule="linear", learning_rate=0.6)
    values = {"optimizer": optimizer, "token_budget": 30, "steps": 1}

    def collect(state, step):
        if step == stop:
            raise KeyboardInterrupt
        return Experience(rows(12), {"tokens_generated": 10})

    stop = 2
    with pytest.raises(KeyboardInterrupt):
        train(collect, checkpoint__every_steps=1, **values)
    stop = None
    (_, summary), lines = train(collect, checkpoint__every_steps=1, **values)
    assert [line["learning_rate"] for line in lines] == pytest.approx([0.6, 0.4, 0.2])
    assert summary["tokens_generated"] == 30


def test_a_budget_of_as_many_tokens_as_steps_generate_learns_the_same(train, tmp_path):
    optimizer = dataclasses.replace(OptimizerConfig(), schedule="cosine", learning_rate=1e-2)

    def learned(**by):
        shutil.rmtree(tmp_path / "own", ignore_errors=True)
        collect = lambda state, step: Experience(rows(12), {"tokens_generated": 10})  # noqa: E731
        (params, _), _ = train(collect, optimizer=optimizer, **by)
        return jax.device_get(params)

    by_steps, by_tokens = learned(steps=3), learned(steps=1, token_budget=30)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), by_steps, by_tokens
    )


def test_trackers_get_the_log(train, tmp_path):
    """Stopped at step 2 of 3 and started again; the checkpoint is of step 1."""
    loading = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")

    def collect(state, step):
        if step == 2 and not again:
            raise KeyboardInterrupt
        return Experience(rows(12), {"reward": step + 10.0 * again, "tokens_generated": 5})

    values = {"tracking__tensorboard": True, "checkpoint__every_steps": 1, "steps": 3}
    again = False
    with pytest.raises(KeyboardInterrupt):
        train(collect, **values)
    again = True
    train(collect, **values)
    events = loading.EventAccumulator(str(tmp_path / "tensorboard" / "own"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("reward")] == [(1, 0.0), (2, 1.0), (3, 12.0)]
    assert [e.value for e in events.Scalars("tokens_generated_total")] == [5, 10, 15]
    assert {"loss", "learning_rate", "grad_norm"} <= set(events.Tags()["scalars"])


def test_a_collapse_is_told_once_also_by_a_run_that_goes_on(train, capsys):
    def collect(state, step):
        if step == stop:
            raise KeyboardInterrupt
        return Experience(rows(1, 2), {"accuracy": 0.5 if step < 5 else 0.1})

    values = {"checkpoint__every_steps": 1, "steps": 14, "epochs": 1, "minibatches": 1}
    values |= {"micro_batches": 1, "floor": Floor(0.1, "say 0")}
    stop = 11
    with pytest.raises(KeyboardInterrupt):
        train(collect, **values)
    (told,) = [line for line in capsys.readouterr().err.splitlines() if "floor" in line]
    assert told.startswith("own: step 10: the accuracy fell from 50.0% to 10.0%")
    assert "(say 0)" in told
    stop = None
    train(collect, **values)
    assert "floor" not in capsys.readouterr().err


def test_learning_leaves_where_it_started_as_it_was(train, tiny_context):
    before = jax.device_get(tiny_context.weights.load())
    (params, _), _ = train(lambda state, step: Experience(rows(12)), steps=1)
    jax.tree.map(np.testing.assert_array_equal, before, jax.device_get(tiny_context.weights.load()))
    assert any(
        (a != b).any()
        for a, b in zip(
            jax.tree.leaves(before), jax.tree.leaves(jax.device_get(params)), strict=True
        )
    )


@pytest.mark.parametrize(
    ("every", "keep", "kept"), [(1, 1, ["3"]), (1, 2, ["2", "3"]), (2, 5, ["2", "3"])]
)
def test_checkpoints_are_made_and_kept(train, tmp_path, every, keep, kept):
    values = {"checkpoint__every_steps": every, "checkpoint__keep_last": keep}
    train(lambda state, step: Experience(rows(12)), steps=3, **values)
    folder = tmp_path / "own" / "checkpoints"
    assert sorted(path.name for path in folder.iterdir() if path.is_dir()) == kept


def test_minibatches_are_never_empty(batches_of):
    few = batches_of(rows(2), 0)
    assert len(few) == 2 * 2  # epochs × rows
    assert all(batch[NLL_WEIGHT].any() for batch in few)
    assert not batches_of([], 0)
