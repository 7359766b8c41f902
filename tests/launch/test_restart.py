"""launch/restart.sh: when it runs a command again, how long it waits, and when it gives up."""

import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest

RESTART = pathlib.Path(__file__).parents[2] / "launch/restart.sh"


def restart(*words, cwd, **environment):
    return subprocess.run(
        [RESTART, *map(str, words)],
        cwd=cwd,
        env=os.environ | {"PAUSE": "0"} | environment,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=120,
    )


def make_command(path, script):
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/usr/bin/env bash\n{script}\n")
    path.chmod(0o755)
    return path


# Ends with 75 for as long as its log is not so many lines long, and makes what it is told to.
COUNTED = (
    """echo x >>"$LOG"; n=$(($(wc -l <"$LOG"))); eval "$MAKE"; [ $n -ge ${UNTIL:-9} ] || exit 75"""
)


@pytest.fixture
def counted(tmp_path):
    """counted(*words, MAKE=…, UNTIL=…) runs such a command; the log says how often."""
    command, log = make_command(tmp_path / "counted", COUNTED), tmp_path / "log"

    def counted(*words, **environment):
        done = restart(command, *words, cwd=tmp_path, LOG=str(log), **{"MAKE": ""} | environment)
        return done, len(log.read_text().splitlines())

    return counted


def test_what_ends_with_75_is_run_again(tmp_path):
    command = make_command(
        tmp_path / "command", 'echo "$1" >>"$2"; [ "$(wc -l <"$2")" -ge 3 ] && exit 7; exit 75'
    )
    done = restart(command, "a word", tmp_path / "log", cwd=tmp_path)
    assert done.returncode == 7
    assert (tmp_path / "log").read_text() == "a word\n" * 3
    assert done.stderr.count("starting again") == 2


def test_what_gets_nowhere_is_given_up(counted):
    done, starts = counted(UNTIL="99")
    assert done.returncode == 70  # which is no 75, or others would start it for ever
    assert starts == 6
    assert "75) 6 times in a row without progress; given up" in done.stderr
    done, starts = counted(UNTIL="99", RETRIES="0")
    assert (done.returncode, starts) == (70, 7)


def test_the_pause_doubles_up_to_a_longest_one(tmp_path, counted):
    make_command(tmp_path / "tools/sleep", 'echo "$1" >>"$SLEPT"')
    environment = {"PATH": f"{tmp_path / 'tools'}:{os.environ['PATH']}", "UNTIL": "99"}
    slept = tmp_path / "slept"
    for settings, pauses in (
        ({"PAUSE": ""}, [1, 2, 4, 8, 16]),
        ({"PAUSE": "3", "MAX_PAUSE": "10", "RETRIES": "4"}, [3, 6, 10, 10]),
        ({"PAUSE": "1", "RETRIES": "20"}, [1, 2, 4, 8, 16, 32, *[60] * 14]),
    ):
        slept.unlink(missing_ok=True)
        counted(SLEPT=str(slept), **environment | settings)
        assert [int(line) for line in slept.read_text().split()] == pauses


@pytest.mark.parametrize(
    ("words", "make"),
    [
        ((), "mkdir -p runs/mine/sft/checkpoints/$n"),
        (("--workdir", "my run"), 'mkdir -p "my run/sft/checkpoints/$n"'),
        (("--workdir=my run",), 'mkdir -p "my run/sft/checkpoints/$n"'),
        (("--workdir", "r"), "mkdir -p r/$n && touch r/$n/complete.json"),
        (("--workdir", "r"), "mkdir -p r/annotate && echo x >>r/annotate/journal.jsonl"),
        (("--workdir", "r"), "mkdir -p r/sft/checkpoints; rm -rf r/sft/checkpoints/*; "
                             "mkdir r/sft/checkpoints/$n"),
    ],
)  # fmt: skip
def test_new_checkpoints_are_progress(counted, words, make):
    done, starts = counted(*words, MAKE=make, RETRIES="1")
    assert (done.returncode, starts) == (0, 9), done.stderr


@pytest.mark.parametrize("make", ["mkdir -p runs/mine/$n", "mkdir -p other/sft/checkpoints/$n"])
def test_what_else_appears_is_none(counted, make):
    done, starts = counted("--workdir", "runs/mine", MAKE=make, RETRIES="2")
    assert (done.returncode, starts) == (70, 3)


def test_a_run_that_took_a_while_is_progress(counted):
    done, starts = counted(RETRIES="0", PROGRESS="1", UNTIL="3", MAKE="sleep 1.1")
    assert (done.returncode, starts) == (0, 3), done.stderr


@pytest.mark.parametrize("name", ["PAUSE", "MAX_PAUSE", "PROGRESS", "RETRIES"])
@pytest.mark.parametrize("value", ["soon", "-1", "1.5", "08x", "9999999"])
def test_what_is_no_number_is_refused(tmp_path, name, value):
    done = restart("touch", "started", cwd=tmp_path, **{name: value})
    assert done.returncode == 2
    assert f"{name}={value} is no whole number" in done.stderr
    assert not (tmp_path / "started").exists()


def test_every_setting_is_in_the_help(tmp_path):
    about = restart("--help", cwd=tmp_path).stdout
    assert re.findall(r"^  ([A-Z_]+)=(\d+) ", about, re.M) == [
        ("PAUSE", "1"), ("MAX_PAUSE", "60"), ("PROGRESS", "60"), ("RETRIES", "5"),
    ]  # fmt: skip


LISTENING = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)
os.execv(sys.argv[1], sys.argv[1:])
"""


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_signal_ends_the_pause(tmp_path, number, status):
    """SIGTERM to the script alone; Ctrl-C, as a terminal sends it, to all of its processes."""
    script = subprocess.Popen(
        [sys.executable, "-c", LISTENING, RESTART, "bash", "-c", "exit 75"],
        env=os.environ | {"PAUSE": "600", "MAX_PAUSE": "600"},
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert "starting again in 600 s" in script.stderr.readline()
    time.sleep(0.3)  # until it sleeps
    (os.killpg if number == signal.SIGINT else os.kill)(script.pid, number)
    assert script.wait(timeout=60) == status
    with pytest.raises(ProcessLookupError):  # what slept is gone, too
        os.killpg(script.pid, 0)


@pytest.mark.parametrize(("to", "status"), [("script", 75), ("command", 0)])
def test_sigterm_to_the_script_ends_it_and_to_the_command_alone_does_not(tmp_path, to, status):
    command = make_command(
        tmp_path / "command",
        f"""[ -e "{tmp_path}/again" ] && exit 0
            trap 'touch "{tmp_path}/again"; exit 75' TERM
            echo $$ >"{tmp_path}/pid.part"; mv "{tmp_path}/pid.part" "{tmp_path}/pid"
            while true; do sleep 0.05; done""",
    )
    script = subprocess.Popen(
        [RESTART, command], env=os.environ | {"PAUSE": "0"}, stderr=subprocess.DEVNULL
    )
    while not (tmp_path / "pid").exists():
        time.sleep(0.02)
    pid = script.pid if to == "script" else int((tmp_path / "pid").read_text())
    os.kill(pid, signal.SIGTERM)
    assert script.wait(timeout=20) == status
    assert (tmp_path / "again").exists()


def test_ctrl_c_reaches_the_command(tmp_path):
    """A terminal sends it to all; a shell makes what it runs in the background deaf to it."""
    command = f"""exec "{sys.executable}" -c '
import os, pathlib, signal, time
try:
    pathlib.Path("{tmp_path}/ready").touch()
    time.sleep(20)
except KeyboardInterrupt:
    os._exit(130)'"""
    script = subprocess.Popen(
        [
            # The tests themselves may run in the background, deaf to it.
            *(sys.executable, "-c", LISTENING),
            *(RESTART, make_command(tmp_path / "command", command)),
        ],
        start_new_session=True,
    )
    while not (tmp_path / "ready").exists():
        time.sleep(0.02)
    os.killpg(script.pid, signal.SIGINT)
    assert script.wait(timeout=20) == 130
