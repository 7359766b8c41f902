"""Work directories that cannot be written to, or that another run is writing to."""

import os
import subprocess
import sys

import pytest

HOLDER = """
import sys
from t2g_jax.run.workspace import claimed
with claimed(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("command", ["sft", "run"])
@pytest.mark.parametrize("place", ["/proc/nowhere/run", "{here}/a_file/run"])
def test_a_work_directory_that_cannot_be_made(t2g, tiny_run, tmp_path, command, place):
    (tmp_path / "a_file").touch()
    workdir = place.format(here=tmp_path)
    outcome = t2g(command, workdir, tiny_run.config)
    assert outcome.status == 2
    assert outcome.error.startswith(f"cannot write to the work directory {workdir}: ")
    assert "give a --workdir that you may write to" in outcome.error


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_work_directory(t2g, tiny_run, tmp_path):
    workdir, config = tiny_run.branch(tmp_path / "run", "sft")
    for path in (workdir, workdir / "sft"):
        path.chmod(0o555)
    try:
        outcome = t2g("annotate", workdir, config)
        assert outcome.status == 2
        assert f"cannot write to the work directory {workdir}: Permission denied" in outcome.error
    finally:
        for path in (workdir, workdir / "sft"):
            path.chmod(0o755)


@pytest.mark.parametrize("words", ["annotate", "evaluate", "train-policy --method grpo", "run"])
def test_two_runs_in_one_work_directory(t2g, tiny_run, tmp_path, words):
    workdir, config = tiny_run.branch(tmp_path / "run", "sft")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    command = [sys.executable, "-c", HOLDER, str(workdir)]
    with subprocess.Popen(command, env=environment, **pipes) as holder:
        try:
            assert holder.stdout.readline() == "held\n"
            command, *options = words.split()
            (workdir / "sft" / "evaluation.json").unlink()
            outcome = t2g(command, workdir, config, *options)
            assert outcome.status == 2
            assert f"{workdir} is in use by process {holder.pid} on " in outcome.error
            assert "wait for it, stop it, or give this run a --workdir of its own" in outcome.error
        finally:
            holder.kill()
    assert {path.name for path in workdir.iterdir()} <= {
        "config.yaml",
        "folders.json",
        "run.lock",
        "sft",
        "tokenizer",
    }
