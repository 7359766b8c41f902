"""The watchdog: quiet while there is progress; else it says where the process is stuck."""

import os
import subprocess
import sys

import pytest

STUCK = """
import sys, threading, time, jax
from t2g_jax.runtime import watchdog

def stuck_here():
    time.sleep(60)

def busy():
    for _ in range(10):
        time.sleep(0.2)
        {beat}

with watchdog.watching({minutes}, sys.argv[1]):
    {body}
print("done")
"""


@pytest.fixture
def run(tmp_path):
    """run(body, minutes, beat="pass") → the process, ended."""

    def run(body, minutes=0.01, beat="pass"):
        code = STUCK.format(body=body, minutes=minutes, beat=beat)
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        return subprocess.run(
            [sys.executable, "-c", code, tmp_path],
            env=environment,
            capture_output=True,
            text=True,
            timeout=50,
        )

    return run


def test_a_process_that_is_stuck_says_where_and_ends(run, tmp_path):
    """All its threads, on stderr and in a file."""
    ended = run("threading.Thread(target=stuck_here).start(); time.sleep(50)")
    assert ended.returncode == 70
    (file,) = (tmp_path / "stacks").iterdir()
    for text in (ended.stderr, file.read_text()):
        assert "in stuck_here" in text
        assert "in <module>" in text
    assert "no progress for 0.01 minutes (training.watchdog_minutes)" in ended.stderr
    assert str(file) in ended.stderr
    assert "done" not in ended.stdout


def test_a_folder_that_was_moved_is_not_made_again(run, tmp_path):
    moved = "import os; os.rmdir(sys.argv[1]); time.sleep(50)"
    ended = run(moved)
    assert ended.returncode == 70
    assert "in <module>" in ended.stderr
    assert "also in" not in ended.stderr
    assert "Traceback" not in ended.stderr
    assert not tmp_path.exists()


@pytest.mark.parametrize(
    "progress", ["watchdog.beat()", "jax.clear_caches(); jax.jit(lambda x: x + 1)(1)"]
)
def test_steps_and_compilations_are_progress(run, tmp_path, progress):
    """Two seconds in all, far more than 0.6."""
    ended = run("busy()", minutes=0.015, beat=progress)
    assert (ended.returncode, ended.stdout) == (0, "done\n"), ended.stderr
    assert not (tmp_path / "stacks").exists()


def test_it_can_be_turned_off_and_ends_with_the_work(run):
    ended = run("time.sleep(1)", minutes=0)
    assert (ended.returncode, ended.stdout) == (0, "done\n"), ended.stderr
    ended = run("pass\ntime.sleep(1.5)")
    assert (ended.returncode, ended.stdout) == (0, "done\n"), ended.stderr
