"""A run whose every phase is stopped once, and started again, equals the one that never was."""

import shutil

import jax
import numpy as np
import pytest
import tiny

from t2g_jax.data.dataset import load_dataset
from t2g_jax.data.journal import Journal
from t2g_jax.data.pipeline import Batches
from t2g_jax.methods import (
    GRPO,
    PPO,
    GRPOMultiTurn,
    RejectionSampling,
    RLTFFeedbackModeling,
    RLTFSelfDistillation,
    Text2Grad,
)
from t2g_jax.phases import annotate, evaluate, pipeline, reporting, sft
from t2g_jax.run.context import Context
from t2g_jax.run.workspace import Workspace
from t2g_jax.training.metrics import read_metrics

HEADS = {"reward_model": ("span_head",), "text2grad": ("value_head",), "ppo": ("value_head",)}


class Stopped(Exception):
    """What stops a phase."""


# Where each phase is stopped: a function it calls, and at which call. States are saved every other
# step, so reward_model, text2grad and grpo go on from step 2, sft from 10, the others from nothing;
# annotate samples 4 completions at once.
STOPS = {
    "sft": (sft, "demonstrations", 11),
    "annotate": (annotate, "annotated", 14),
    "reward_model": (Batches, "at", 3),
    "text2grad": (Text2Grad, "collect", 3),
    "rltf-sd": (RLTFSelfDistillation, "collect", 2),
    "grpo": (GRPO, "collect", 3),
    "ppo": (PPO, "collect", 1),
    "rltf-fm": (RLTFFeedbackModeling, "collect", 1),
    "grpo-multiturn": (GRPOMultiTurn, "collect", 1),
    "rejection-sampling": (RejectionSampling, "collect", 1),
}
TRAINED = [phase for phase in STOPS if phase != "annotate"]


@pytest.fixture(scope="module")
def stopped(tiny_run, tmp_path_factory):
    """The work directory of such a run."""
    workdir = tmp_path_factory.mktemp("stopped") / "run"
    config = tiny_run.config
    for name, phase in pipeline.phases(config).items():
        place, function, call = STOPS[name]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(place, function, stopping(getattr(place, function), call))
            with pytest.raises(Stopped):
                phase(config, workdir)
        assert not Workspace(workdir, config).is_complete(name)
        phase(config, workdir)
    evaluate.run(config, workdir)
    reporting.run(config, workdir)
    return workdir


def stopping(function, call):
    calls = 0

    def stop(*args, **kwargs):
        nonlocal calls
        calls += 1
        if calls == call:
            raise Stopped
        return function(*args, **kwargs)

    return stop


@pytest.mark.parametrize("phase", TRAINED)
def test_metrics_are_equal(tiny_run, stopped, phase):
    name = phase.replace("-", "_")
    log = tiny.lines(stopped / name / "metrics.jsonl")
    assert log == tiny.lines(tiny_run.workdir / name / "metrics.jsonl")
    assert [line["step"] for line in log] == list(range(1, len(log) + 1))


@pytest.mark.parametrize("phase", TRAINED)
def test_parameters_are_equal_bit_for_bit(tiny_run, stopped, phase):
    ours, theirs = (
        Context.open(tiny_run.config, workdir).weights.load(phase, with_heads=HEADS.get(phase, ()))
        for workdir in (tiny_run.workdir, stopped)
    )
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_the_dataset_is_equal(tiny_run, stopped):
    for split in ("train", "held_out"):
        ours, theirs = (
            list(load_dataset(workdir / "annotate" / "dataset", split))
            for workdir in (tiny_run.workdir, stopped)
        )
        assert ours == theirs
    with Journal(stopped / "annotate" / "journal.jsonl") as journal:
        assert len(journal) == 16


@pytest.mark.parametrize("phase", ["sft", "annotate", "reward_model", "text2grad", "rltf_sd"])
def test_summaries_are_equal(tiny_run, stopped, phase):
    ours, theirs = (
        tiny.contents(workdir / phase / "complete.json") for workdir in (tiny_run.workdir, stopped)
    )
    assert ours == theirs


def test_evaluations_and_samples_are_equal(tiny_run, stopped):
    files = [*tiny_run.workdir.glob("*/evaluation.json"), *tiny_run.workdir.glob("*/samples/*")]
    assert len(files) == (1 + 7) + (3 * 3 + 4)  # of all that can answer; of three steps and one
    for file in files:
        assert tiny.contents(file) == tiny.contents(stopped / file.relative_to(tiny_run.workdir))


def test_the_time_before_a_stop_counts(stopped):
    log = read_metrics(stopped / "grpo")
    assert sorted(line["seconds"] for line in log) == [line["seconds"] for line in log]


def test_annotation_stopped_after_the_dataset_was_written(tiny_run, tmp_path):
    workdir, config = tiny_run.branch(tmp_path / "run", "sft", "annotate")
    (workdir / "annotate" / "complete.json").unlink()
    annotate.run(config, workdir)
    ours, theirs = (
        tiny.contents(root / "annotate" / "complete.json") for root in (workdir, tiny_run.workdir)
    )
    assert ours == theirs


def test_training_stopped_after_the_last_step(tiny_run, tmp_path):
    workdir, config = tiny_run.branch(tmp_path / "run", "sft")
    (workdir / "sft" / "complete.json").unlink()
    shutil.rmtree(workdir / "tokenizer")  # made again, the same
    sft.run(config, workdir)
    ours, theirs = (
        tiny.contents(root / "sft" / "complete.json") for root in (workdir, tiny_run.workdir)
    )
    assert ours == theirs
