"""One run in two processes: the same as in one, killed and resumed on another mesh, stopped."""

import json
import os
import shutil
import signal
import socket

import jax
import numpy as np
import pytest
import tiny

from t2g_jax.config import load_config
from t2g_jax.run.context import Context
from t2g_jax.runtime import hosts
from t2g_jax.training.checkpoint import Checkpoints
from t2g_jax.training.metrics import read_metrics

TRAINED = ("sft", "reward_model", "text2grad", "rltf_sd")
PHASES = (*TRAINED, "annotate")
TOLERANCE = {"rtol": 1e-4, "atol": 1e-4}
"""Between meshes, as sums are taken in another order; in the same layout runs are equal."""


def steps(folder) -> int:
    """How many steps a phase has logged."""
    file = folder / "metrics.jsonl"
    return len(file.read_bytes().splitlines()) if file.exists() else 0


def saved(folder) -> list[int]:
    with Checkpoints(folder / "checkpoints", read_only=True) as checkpoints:
        return checkpoints.steps


@pytest.fixture(scope="module")
def uninterrupted(start, config, tmp_path_factory):
    """The work directory of a run in one process, on two devices."""
    workdir = tmp_path_factory.mktemp("uninterrupted") / "run"
    run = start("run", config, "--workdir", workdir, processes=1)
    assert run.statuses() == [0], run.said()
    return workdir


@pytest.fixture(scope="module")
def killed(start, config, tmp_path_factory):
    """Of a run in two processes, two devices each; one is killed in the first phase of a policy."""
    workdir = tmp_path_factory.mktemp("killed") / "run"
    run = start("run", config, "--workdir", workdir)
    run.when(lambda: steps(workdir / "text2grad"))
    run.send(1, signal.SIGKILL)
    first, second = run.statuses()  # nobody ends the first: it has lost the other
    assert first in (70, -signal.SIGABRT), run.said()
    assert second == -signal.SIGKILL
    return workdir


@pytest.fixture(scope="module")
def resumed(start, config, killed):
    """The same work directory after one process has gone on, on another mesh."""
    assert not (killed / "text2grad" / "complete.json").exists()
    other = ("--accept-changes", "--mesh.fsdp", "1", "--mesh.context", "2")
    run = start("run", config, "--workdir", killed, *other, processes=1)
    assert run.statuses() == [0], run.said()
    return killed


@pytest.mark.parametrize("phase", TRAINED)
def test_killed_in_two_processes_and_resumed_in_one_logs_the_same(resumed, uninterrupted, phase):
    expected, found = (read_metrics(root / phase) for root in (uninterrupted, resumed))
    assert [line["step"] for line in found] == [line["step"] for line in expected]
    for line, theirs in zip(expected, found, strict=True):
        assert line.keys() == theirs.keys()
        for name, value in line.items():
            if "second" not in name and not isinstance(value, str):
                close = np.testing.assert_allclose
                close(theirs[name], value, **TOLERANCE, err_msg=f"{name}, step {line['step']}")


@pytest.mark.parametrize("phase", ["sft", "text2grad", "rltf-sd"])
def test_and_learns_the_same(resumed, uninterrupted, phase):
    expected, found = (
        Context.open(load_config(root / "config.yaml"), root).weights.load(phase)
        for root in (uninterrupted, resumed)
    )
    for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(found), strict=True):
        np.testing.assert_allclose(b, a, **TOLERANCE)


def test_and_writes_the_same(resumed, uninterrupted):
    """The completions that were judged, and evaluations."""
    completions = [
        [
            (e["id"], e["completion"], e["critique"])
            for e in tiny.lines(root / "annotate/journal.jsonl")
        ]
        for root in (uninterrupted, resumed)
    ]
    assert completions[0] == completions[1]
    for phase in ("sft", "text2grad", "rltf_sd"):
        expected, found = (
            json.loads((root / phase / "evaluation.json").read_text())["correct"]
            for root in (uninterrupted, resumed)
        )
        assert found == expected
    assert (resumed / "report.html").exists()


# ------------------------------------------------------------------ SIGTERM and hanging


@pytest.fixture(scope="module")
def stopped(start, config, tmp_path_factory):
    """The work directory and the processes of a run, one of which got SIGTERM."""
    workdir = tmp_path_factory.mktemp("stopped") / "run"
    run = start(*long_phase(config, workdir))
    run.when(lambda: steps(workdir / "sft") >= 2)
    run.send(1, signal.SIGTERM)
    run.statuses()
    return workdir, run


def long_phase(config, workdir):
    return (
        "sft",
        config,
        "--workdir",
        workdir,
        "--sft.steps",
        10_000,
        "--checkpoint.every_steps",
        5_000,
    )


def test_sigterm_to_one_process_stops_both(stopped):
    workdir, run = stopped
    assert run.statuses() == [75, 75], run.said()
    assert "SIGTERM: finishing this step and saving" in run.log(1)
    assert saved(workdir / "sft") == [steps(workdir / "sft")]


def test_a_process_that_hangs_ends_the_run(start, config, stopped):
    """The same command goes on after SIGTERM; then one process is frozen."""
    workdir, _ = stopped
    before = steps(workdir / "sft")
    run = start(
        *long_phase(config, workdir), "--training.watchdog_minutes", "0.1", "--accept-changes"
    )
    run.when(lambda: steps(workdir / "sft") >= before + 2)
    run.send(1, signal.SIGSTOP)
    assert run.starter.status(run.ids[0], 60) == 70
    run.send(1, signal.SIGCONT)
    assert all(run.statuses()), run.said()
    lines = read_metrics(workdir / "sft")
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))
    assert "no progress for 0.1 minutes" in run.log(0)
    assert "training/loop.py" in run.log(0)  # where it waited for the other


def test_sigterm_stops_annotation(start, config, warm_start, tmp_path):
    """With what was judged before in the journal."""
    workdir = warm_start(tmp_path / "run")
    journal = workdir / "annotate" / "journal.jsonl"
    slow = ("--judge.name", "bad_judges:Slow", "--accept-changes")
    run = start("annotate", config, "--workdir", workdir, *slow)
    run.when(lambda: journal.exists() and journal.read_bytes().count(b"\n") >= 1)
    run.send(0, signal.SIGTERM)
    assert run.statuses() == [75, 75], run.said()
    judged = journal.read_bytes()
    assert 1 <= judged.count(b"\n") < 6
    assert not (workdir / "annotate" / "complete.json").exists()


def test_processes_that_do_not_share_a_folder_say_so(start, config, tmp_path):
    run = start("sft", config, "--workdir", tmp_path / "{process}")
    assert run.statuses() == [2, 2], run.said()
    for process in (0, 1):
        assert "process 1: " in run.log(process)
        assert "give a --workdir that all machines share" in run.log(process)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_process_that_waits_for_others_can_be_ended(starter, config, tmp_path, number):
    """The coordinator is a port that takes connections and says nothing."""
    with socket.create_server(("localhost", 0)) as nobody:
        address = f"localhost:{nobody.getsockname()[1]}"
        environment = {"T2G_COORDINATOR": address, "T2G_NUM_PROCESSES": 2, "T2G_PROCESS_ID": 1}
        words = ["sft", str(config), "--workdir", str(tmp_path / "run")]
        process = starter.start(words, environment, tmp_path / "log")
        nobody.accept()[0].close()
        os.kill(process, number)
        assert starter.status(process, 30) == -number
    said = (tmp_path / "log").read_text()
    assert f"of the run, 5 minutes at most: {hosts.ADDRESS[0]}=localhost:" in said


def test_processes_that_do_not_do_the_same_say_so(start, config, tmp_path):
    """They would wait for each other forever."""
    run = start("sft", config, "--workdir", tmp_path / "run", "--sft.steps", "1{process}")
    assert run.statuses() == [2, 2], run.said()
    for process in (0, 1):
        assert "t2g: process 1: sft.steps is 11, not 10, as in process 0" in run.log(process)
    assert not (tmp_path / "run").exists()


@pytest.fixture
def warm_start(killed):
    """warm_start(workdir) → the folder, in which the warm start is complete."""

    def warm_start(workdir):
        for name in ("sft", "tokenizer"):
            shutil.copytree(killed / name, workdir / name)
        shutil.copy(killed / "config.yaml", workdir)
        return workdir

    return warm_start


def test_a_judge_that_hangs_ends_the_run(start, config, warm_start, tmp_path):
    """It is asked by the first process; all say where they are stuck."""
    workdir = warm_start(tmp_path / "run")
    settings = {
        "--judge.name": "bad_judges:always_hangs",
        "--judge.timeout_seconds": 3600,
        "--training.watchdog_minutes": 0.2,  # enough to come so far on a busy machine
    }
    words = [word for setting in settings.items() for word in setting]
    run = start("annotate", config, "--workdir", workdir, *words, "--accept-changes")
    assert run.statuses() == [70, 70], run.said()
    first, second = sorted((workdir / "stacks").iterdir())
    assert "in _hang" in first.read_text()
    assert "in critiques" in first.read_text()
    assert "in broadcast_from_primary" in second.read_text()
    assert "in _hang" not in second.read_text()
