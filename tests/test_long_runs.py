"""Runs that are left alone: stopped, started again, changed, on full disks; all by `t2g`."""

import contextlib
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
import tiny

from t2g_jax import cli
from t2g_jax.data.journal import Journal
from t2g_jax.phases import sft
from t2g_jax.run.context import Context
from t2g_jax.training.checkpoint import Checkpoints
from t2g_jax.training.metrics import read_metrics

CONFIG = str(tiny.CONFIG)
ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture
def t2g(programs):
    """t2g(*words) → `t2g` in a process of its own, on eight devices; ended after the test."""
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "JAX_COMPILATION_CACHE_DIR": str(programs),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
    }
    started = []

    def t2g(*words):
        command = [sys.executable, "-m", "t2g_jax", *map(str, words)]
        started.append(
            subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
        )
        return started[-1]

    yield t2g
    for process in started:
        process.kill()
        process.communicate()


def wait_for(process, workdir, steps, phase="sft"):
    """Until the log of a phase has so many lines."""
    log = workdir / phase / "metrics.jsonl"
    for _ in range(6000):
        if log.exists() and len(log.read_bytes().splitlines()) >= steps:
            return
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.02)
    raise TimeoutError(f"no {steps} lines in {log}")


def meta(workdir, phase="sft"):
    with Checkpoints(workdir / phase / "checkpoints", read_only=True) as checkpoints:
        return checkpoints.meta()


def refused(capsys, *words):
    """What `t2g` says when it refuses, on one line."""
    assert cli.main(list(map(str, words))) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("t2g: ")
    return line


def test_sigterm_saves_and_ends_with_75_while_nobody_else_may_write(
    t2g, tmp_path, capsys, compiled_once
):
    """And the checkpoint of a mesh goes on on another one, with deliberately changed settings."""
    workdir = tmp_path / "run"
    # A constant learning rate: the number of steps does not change what a step does.
    words = ["sft", CONFIG, "--workdir", workdir, "--sft.optimizer.schedule", "constant"]
    words += ["--sft.optimizer.learning_rate", "1e-3", "--sft.steps", "100000"]
    mesh = ["--mesh.data", 1, "--mesh.fsdp", 8]
    process = t2g(*words, *mesh)
    wait_for(process, workdir, 5)
    line = refused(capsys, *words, *mesh)
    assert f"is in use by process {process.pid} on " in line
    assert "sft" in line
    # Who only reads is not kept out: it says what is not there yet.
    assert "complete.json is missing" in refused(
        capsys, "generate", *words[1:], *mesh, "--method", "sft"
    )
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 75, said
    assert "the same command goes on from here" in said
    made = len(read_metrics(workdir / "sft"))
    assert meta(workdir)["step"] == made

    steps = made + 4
    words[-1], other = str(steps), ["--mesh.data", 1, "--mesh.fsdp", 4, "--mesh.tensor", 2]
    line = refused(capsys, *words, *other)
    assert f"mesh.fsdp: 8 → 4, mesh.tensor: 1 → 2, sft.steps: 100000 → {steps}" in line
    assert "--accept-changes" in line
    with compiled_once():
        assert cli.main([*map(str, (*words, *other)), "--accept-changes"]) == 0
    lines = read_metrics(workdir / "sft")
    assert [line["step"] for line in lines] == list(range(1, steps + 1))
    assert (workdir / "config.1.yaml").exists()

    words[3] = tmp_path / "whole"
    with compiled_once():
        assert cli.main([*map(str, (*words, *mesh))]) == 0
    expected = [line["loss"] for line in read_metrics(tmp_path / "whole" / "sft")]
    np.testing.assert_allclose([line["loss"] for line in lines], expected, rtol=1e-3)


def test_a_second_sigterm_ends_it_at_once(t2g, tmp_path):
    workdir = tmp_path / "run"
    # One step of it takes minutes.
    process = t2g("sft", CONFIG, "--workdir", workdir, "--sft.batch_size", 8192)
    while not (workdir / "sft" / "metrics.jsonl").exists():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)
    time.sleep(1)
    process.send_signal(signal.SIGTERM)
    assert "once more to stop at once" in process.stderr.readline() + process.stderr.readline()
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=10) == -signal.SIGTERM


def test_sigterm_in_annotation_keeps_what_was_judged(
    tiny_run, tmp_path, compiled_once, monkeypatch
):
    workdir, _ = tiny_run.branch(tmp_path / "run", "sft")
    words = ["annotate", CONFIG, "--workdir", str(workdir)]
    append, folder = Journal.append, workdir / "annotate"

    def terminated(journal, entry):
        append(journal, entry)
        if len(journal) == 6:
            os.kill(os.getpid(), signal.SIGTERM)

    with compiled_once():
        with monkeypatch.context() as patch:
            patch.setattr(Journal, "append", terminated)
            assert cli.main(words) == 75
        assert len((folder / "journal.jsonl").read_text().splitlines()) == 6
        assert cli.main(words) == 0
    whole = tiny_run.workdir / "annotate"
    for name in ("journal.jsonl", "complete.json"):
        read = tiny.lines if name.endswith("l") else tiny.contents
        assert read(folder / name) == read(whole / name)


@pytest.fixture
def half(tiny_run, tmp_path, compiled_once):
    """A work directory whose warm start has some steps to go, and the words of its command."""
    workdir, _ = tiny_run.branch(tmp_path / "run", "sft")
    (workdir / "sft" / "complete.json").unlink()
    words = ["sft", CONFIG, "--workdir", workdir, "--sft.steps", 34, "--accept-changes"]
    with compiled_once():
        yield workdir, words


def test_a_finished_phase_stays_and_one_under_way_goes_on_with_changes(half, tiny_run):
    workdir, words = half
    assert cli.main(list(map(str, words))) == 0
    lines = tiny.lines(workdir / "sft" / "metrics.jsonl")
    assert lines[:30] == tiny.lines(tiny_run.workdir / "sft" / "metrics.jsonl")
    assert len(lines) == 34
    done = (workdir / "sft" / "complete.json").read_bytes()
    assert cli.main([*map(str, words[:-3]), "--sft.steps", "50", "--accept-changes"]) == 0
    assert (workdir / "sft" / "complete.json").read_bytes() == done


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_what_happens_to_checkpoints_is_said(half, capsys):
    workdir, words = half
    folder = workdir / "sft" / "checkpoints"
    # All of them: which file holds what is still read differs from one save to the next.
    arrays = [p for p in (folder / "30" / "state").rglob("d/*") if p.is_file()]
    whole = [path.read_bytes() for path in arrays]
    for path, content in zip(arrays, whole, strict=True):
        path.write_bytes(content[: len(content) // 2])
    line = refused(capsys, *words)
    assert f"step 30 in {folder} is damaged" in line
    assert f"delete {folder}/30 to go back to step 28" in line
    for path, content in zip(arrays, whole, strict=True):
        middle = len(content) // 2
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    assert "is damaged" in refused(capsys, *words)

    shutil.rmtree(folder)
    folder.mkdir()
    (folder / "model.safetensors").write_text("theirs")
    assert "not a checkpoint folder of t2g_jax: it holds ['model.safetensors']" in refused(
        capsys, *words
    )


@pytest.mark.parametrize("how", ["moved", "deleted"])
def test_a_folder_that_goes_away_while_it_runs_is_not_made_again(
    half, tmp_path, capsys, monkeypatch, how
):
    workdir, words = half
    moved, demonstrations = tmp_path / "moved", sft.demonstrations

    def moving(context, step):
        if step == 30:
            workdir.rename(moved)
            if how == "deleted":
                shutil.rmtree(moved)
        return demonstrations(context, step)

    monkeypatch.setattr(sft, "demonstrations", moving)
    line = refused(capsys, *words)
    assert f"{workdir} was moved, deleted or replaced while this run wrote to it" in line
    assert not workdir.exists()
    if how == "deleted":
        return
    assert f"(it is now {moved})" in line
    monkeypatch.undo()
    words[3] = moved
    assert cli.main(list(map(str, words))) == 0
    assert [line["step"] for line in read_metrics(moved / "sft")] == list(range(1, 35))


@pytest.mark.parametrize("left", [None, 12])
def test_a_log_with_holes_is_not_gone_on_with(half, capsys, left):
    workdir, words = half
    log = workdir / "sft" / "metrics.jsonl"
    lines = log.read_text().splitlines(keepends=True)
    log.unlink() if left is None else log.write_text("".join(lines[:left] + lines[left + 1 :]))
    line = refused(capsys, *words)
    what = "is missing" if left is None else "has no line of step 13"
    assert f"{log} {what}, but the checkpoint to go on from is of step 30" in line


def test_a_method_without_a_warm_start_to_read(tiny_run, tmp_path, capsys):
    workdir, _ = tiny_run.branch(tmp_path / "run", "sft")
    shutil.rmtree(workdir / "sft" / "checkpoints")
    line = refused(capsys, "train-policy", CONFIG, "--workdir", workdir, "--method", "grpo")
    assert f"no checkpoint in {workdir}/sft/checkpoints; run `t2g sft` first" in line


def test_a_run_that_diverges_ends_and_says_what_to_try(half, capsys):
    workdir, words = half
    words = [*words, "--training.max_skipped_updates", 2]
    line = refused(capsys, *words, "--sft.optimizer.learning_rate", "1e38")
    assert "not finite (NaN or Inf) in 2 updates in a row, the last at step 33" in line
    assert f"{workdir}/sft/checkpoints/30, of step 30" in line
    last = read_metrics(workdir / "sft")[-1]
    assert not np.isfinite([last["loss"], last["grad_norm"]]).all()
    assert last["skipped_updates"] == 1
    assert cli.main(list(map(str, words))) == 0
    assert np.isfinite([line["loss"] for line in read_metrics(workdir / "sft")]).all()


@contextlib.contextmanager
def tiny_disk(folder, size):
    """A file system of so many kilobytes; the test is skipped where none can be mounted."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", str(folder)]
    try:
        done = subprocess.run(mount, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("there is no mount here; tests/training/test_checkpoint.py limits file sizes")
    if done.returncode != 0:
        pytest.skip(
            f"a file system cannot be mounted here ({done.stderr.strip()}); "
            "tests/training/test_checkpoint.py limits file sizes instead"
        )
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_ends_the_run_and_room_lets_it_go_on(half, tmp_path, capsys):
    workdir, words = half
    used = sum(path.stat().st_blocks for path in workdir.rglob("*")) // 2
    with tiny_disk(tmp_path / "disk", used + 8000) as disk:
        shutil.copytree(workdir, disk / "run")
        filler = disk / "filler"
        with contextlib.suppress(OSError), open(filler, "wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        words[3] = disk / "run"
        line = refused(capsys, *words)
        assert f"{disk}/run: No space left on device; " in line
        os.truncate(filler, filler.stat().st_size - (100 << 10))
        line = refused(capsys, *words)  # now it gets to the checkpoint
        assert f"a checkpoint could not be written to {disk}/run/sft/checkpoints" in line
        assert "make room there" in line
        assert line.endswith("it goes on from step 30")
        filler.unlink()
        assert cli.main(list(map(str, words))) == 0
        assert len(read_metrics(disk / "run" / "sft")) == 34


def test_a_read_only_disk(half, tmp_path, capsys):
    workdir, words = half
    with tiny_disk(tmp_path / "disk", 10_000) as disk:
        shutil.copytree(workdir, disk / "run")
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        words[3] = disk / "run"
        line = refused(capsys, *words)
        assert f"cannot write to the work directory {disk}/run: Read-only file system" in line
        words[3] = disk / "new"
        assert f"cannot write to the work directory {disk}/new" in refused(capsys, *words)


def test_the_best_checkpoint_answers(tiny_run, tmp_path, compiled_once):
    best = {"checkpoint__keep_best": "reward", "checkpoint__every_steps": 1}
    workdir, config = tiny_run.branch(
        tmp_path / "run", "sft", checkpoint__keep_last=1, evaluate__checkpoint="best", **best
    )
    words = [f"--{name.replace('__', '.')}={value}" for name, value in best.items()]
    words += ["--checkpoint.keep_last=1", "--evaluate.checkpoint=best"]
    with compiled_once():
        for command in (["train-policy", "--method", "grpo"], ["evaluate"], ["generate"]):
            name, *options = command
            options += ["--method", "grpo"] if name == "generate" else []
            assert cli.main([name, CONFIG, "--workdir", str(workdir), *options, *words]) == 0
    rewards = [line["reward"] for line in read_metrics(workdir / "grpo")]
    expected = max(range(len(rewards)), key=lambda i: (rewards[i], i)) + 1
    found = json.loads((workdir / "grpo" / "evaluation.json").read_text())
    assert found["step"] == expected
    assert json.loads((workdir / "sft" / "evaluation.json").read_text())["step"] == 30
    context = Context.open(config, workdir)
    assert context.weights.best_step("grpo") == expected
    steps = {p.name for p in (workdir / "grpo" / "checkpoints").iterdir() if p.is_dir()}
    assert steps == {str(expected), str(len(rewards))}
    last, chosen = context.weights.load("grpo"), context.weights.load("grpo", step=expected)
    same = jax.tree.map(lambda a, b: bool((a == b).all()), last, chosen)
    assert jax.tree.all(same) == (expected == len(rewards))


@pytest.mark.slow
def test_killed_many_times_equals_never_killed(tmp_path, one_device):
    """benchmarks/kill_and_resume.py, on one device."""
    script, summary = ROOT / "benchmarks" / "kill_and_resume.py", tmp_path / "summary.json"
    environment = os.environ | {"XLA_FLAGS": one_device}
    done = subprocess.run(
        [sys.executable, script, "--kills", "6", "--folder", tmp_path, "--summary", summary],
        env=environment,
        capture_output=True,
        text=True,
    )
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    landed = json.loads(summary.read_text())
    assert sum(landed.values()) == 6
    assert len(landed) >= 3, "phases"
