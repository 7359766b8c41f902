"""Running a study: what is done is kept, what fails stops nothing else, a stop stops everything."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest

from t2g_jax import cli
from t2g_jax.config import load_config
from t2g_jax.errors import T2GError
from t2g_jax.study import runner
from t2g_jax.study.plan import load_study

pytestmark = pytest.mark.usefixtures("fake")


def study(path, root, *words):
    return cli.main(["study", str(path), "--workdir", str(root), "--jobs", "2", *words])


def calls(root, folder):
    return (root / folder / "calls.txt").read_text().split()


def behave(root, **behavior):
    root.mkdir(exist_ok=True)
    (root / "behavior.json").write_text(json.dumps(behavior))


def test_everything_is_done_once(study_file, tmp_path, capsys):
    path, root = study_file(), tmp_path / "cells"
    for _ in range(2):
        assert study(path, root) == 0
        for seed in (0, 1):
            folder = f"matrix/seed{seed}"
            assert calls(root, f"{folder}/shared") == ["sft", "evaluate", "annotate", "train-rm"]
            for arm in ("grpo", "rltf-sd", "spans"):
                assert calls(root, f"{folder}/{arm}") == ["run"]
    assert "10 jobs, 0 to do, 2 at a time" in capsys.readouterr().err
    for cell in load_study(path).cells:
        assert load_config(root / cell.folder / "config.yaml") == cell.config
    assert not (root / "matrix/seed0/grpo/reward_model").exists()
    record = json.loads((root / "matrix/seed0/grpo/grpo.made.json").read_text())
    assert {"commit", "versions", "finished"} < set(record)


def test_a_failing_cell_stops_no_other_and_is_tried_again(study_file, tmp_path, capsys):
    path, root = study_file(), tmp_path / "cells"
    behave(root, fail=["matrix/seed0/grpo"])
    assert study(path, root) == 2
    error = capsys.readouterr().err
    assert "matrix/seed0/grpo: FAILED, see " in error
    assert "the disk is full" in error
    assert "1 of 10 jobs are not done" in error
    assert (root / "matrix/seed1/spans/spans.made.json").exists()
    results = (tmp_path / "docs/results.md").read_text()
    assert "- `matrix/seed0/grpo`: `t2g run` failed: t2g: the disk is full" in results
    behave(root)
    assert study(path, root) == 0
    assert calls(root, "matrix/seed0/grpo") == ["run", "run"]
    assert calls(root, "matrix/seed1/grpo") == ["run"]
    assert "failed" not in (tmp_path / "docs/results.md").read_text()
    assert not (root / "matrix/seed0/grpo/failed.json").exists()


def test_what_needs_a_failed_job_is_not_run(study_file, tmp_path, capsys):
    root = tmp_path / "cells"
    behave(root, fail=["matrix/seed0/shared"])
    assert study(study_file(), root) == 2
    error = capsys.readouterr().err
    assert "matrix/seed0/grpo: not run, as matrix/seed0/shared/warm_start failed" in error
    assert not (root / "matrix/seed0/grpo").exists()
    assert (root / "matrix/seed1/grpo/grpo.made.json").exists()


def test_cells_that_no_longer_fit_are_named(study_file, tmp_path, capsys):
    root = tmp_path / "cells"
    assert study(study_file(), root) == 0
    arms = {"grpo": {"method": "grpo", "grpo": {"steps": 3}}, "rltf-sd": {"method": "rltf-sd"}}
    assert study(study_file(arms=arms), root) == 2
    error = capsys.readouterr().err
    assert "2 folders were made with other settings and no longer fit" in error
    assert f"{root}/matrix/seed0/grpo (grpo.steps)" in error
    assert "rltf-sd" not in error.partition("no longer fit")[2]
    assert calls(root, "matrix/seed0/grpo") == ["run"]


def test_report_only_runs_nothing(study_file, tmp_path):
    root = tmp_path / "cells"
    assert study(study_file(), root, "--report-only") == 0
    assert not root.exists()
    assert "No cell is done yet." in (tmp_path / "docs/results.md").read_text()


def test_a_folder_appears_whole(study_file, tmp_path, monkeypatch):
    """A stop while a cell's folder is being made leaves nothing that looks like a folder."""
    path, root = study_file(), tmp_path / "cells"
    jobs = {job.name: job for job in runner.jobs_of(load_study(path), root)}
    shared, cell = jobs["matrix/seed0/shared/warm_start"], jobs["matrix/seed0/grpo"]
    runner.begin(shared)
    (shared.folder / "tokenizer").mkdir()
    with pytest.raises(FileNotFoundError):  # the second copy fails: there is no sft/
        runner.begin(cell)
    assert not cell.folder.exists()
    (shared.folder / "sft").mkdir()
    runner.begin(cell)
    written = {path.name for path in cell.folder.iterdir()}
    assert written == {"config.yaml", "folders.json", "tokenizer", "sft"}


@pytest.mark.parametrize("jobs", ["0", "-1", "two"])
def test_wrong_number_of_jobs(study_file, jobs, capsys):
    with pytest.raises(SystemExit):
        cli.main(["study", str(study_file()), "--jobs", jobs])
    assert "is not a number from 1" in capsys.readouterr().err


def test_unknown_option(study_file, capsys):
    assert cli.main(["study", str(study_file()), "--sft.steps", "3"]) == 2
    assert "t2g study has no option `--sft.steps`" in capsys.readouterr().err


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="cores cannot be chosen here")
def test_processes_share_the_cores(study_file, tmp_path, monkeypatch):
    chosen = []
    monkeypatch.setattr(os, "sched_setaffinity", lambda pid, cores: chosen.append(sorted(cores)))
    monkeypatch.setattr(runner, "_cores", lambda: {3, 5, 7})
    assert study(study_file(seeds=[0]), tmp_path / "cells") == 0
    assert {tuple(cores) for cores in chosen} == {(3, 7), (5,)}


def test_default_number_of_jobs(monkeypatch):
    monkeypatch.setattr(runner, "_cores", lambda: set(range(64)))
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert runner.default_jobs() == 8
    monkeypatch.delenv("JAX_PLATFORMS")
    monkeypatch.setattr(runner, "ACCELERATORS", ("/dev/null",))
    assert runner.default_jobs() == 1


_MAIN = """
import sys
from t2g_jax import cli
from t2g_jax.study import runner
runner.PROGRAM = {program!r}
sys.exit(cli.main(["study", {path!r}, "--workdir", {root!r}, "--jobs", "2"]))
"""


@pytest.fixture
def started(study_file, tmp_path, fake):
    """A study in a process of its own, with one cell that takes long and is under way."""
    path, root = study_file(), tmp_path / "cells"
    behave(root, slow=["matrix/seed0/rltf-sd"])
    code = _MAIN.format(program=fake, path=str(path), root=str(root))
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
    flag = root / "matrix/seed0/rltf-sd/started"
    while not flag.exists() and process.poll() is None:
        time.sleep(0.05)
    assert process.poll() is None, process.stderr.read()
    yield process, path, root
    if process.poll() is None:
        process.kill()
        process.communicate()


def test_a_stop_stops_all_and_the_same_command_goes_on(started):
    """SIGTERM; `test_real.py` has SIGINT."""
    process, path, root = started
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 75, error
    assert "goes on from here" in error
    assert (root / "matrix/seed0/rltf-sd/stopped").exists()
    assert not (root / "matrix/seed0/rltf-sd/rltf-sd.made.json").exists()
    behave(root)
    assert study(path, root) == 0
    assert calls(root, "matrix/seed0/rltf-sd") == ["run", "run"]
    assert calls(root, "matrix/seed0/shared")[:2] == ["sft", "evaluate"]


def test_a_killed_study_does_not_meet_its_own_orphans(started):
    """Whoever is left of a study that was killed still works in a cell's folder."""
    process, path, root = started
    process.kill()
    process.communicate()
    study_ = load_study(path)
    jobs = runner.jobs_of(study_, root)
    with pytest.raises(T2GError, match=re.escape("a process of one that was killed still is")):
        runner.run(jobs, root, at_once=1, say=print)
    orphans = [
        int(pid)
        for pid in filter(str.isdigit, os.listdir("/proc"))
        if str(root).encode() in _arguments(pid)
    ]
    assert orphans
    for orphan in orphans:
        with contextlib.suppress(ProcessLookupError):
            os.kill(orphan, signal.SIGTERM)
    deadline = time.monotonic() + 20
    while any(map(_arguments, orphans)) and time.monotonic() < deadline:
        time.sleep(0.05)
    behave(root)
    assert study(path, root) == 0


def _arguments(pid):
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return file.read()
    except OSError:
        return b""
