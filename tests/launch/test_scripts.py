"""The scripts: clean shell, help, and what they say when something is missing."""

import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

REPOSITORY = pathlib.Path(__file__).parents[2]
SCRIPTS = [*sorted((REPOSITORY / "launch").glob("*.sh")), REPOSITORY / ".ci/run"]


def run(*words, cwd=REPOSITORY, **environment):
    return subprocess.run(
        [str(word) for word in words],
        cwd=cwd,
        env={**os.environ, "PYTHON": "", "EXTRAS": "", "JOBS": "", **environment},
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=60,
    )


@pytest.fixture
def copy(tmp_path):
    """A repository that holds nothing but what the scripts read, in a folder with a space."""
    root = tmp_path / "a copy"
    for name in ("launch", "configs"):
        shutil.copytree(REPOSITORY / name, root / name)
    shutil.copy(REPOSITORY / "pyproject.toml", root)
    return root


@pytest.fixture
def fake_venv(copy):
    """A .venv of this Python, whose pip and t2g only write down what they are asked to do."""
    bin_folder = copy / ".venv/bin"
    bin_folder.mkdir(parents=True)
    log = copy / "log"
    scripts = {
        "python": f"""
            if [[ "$1 $2" == "-m pip" || "$1 $2" == "-m pytest" ]]; then
              echo "$*" >>"{log}"
            elif [[ "$2" == "import pycosat" ]]; then
              exit 0
            else
              exec "{sys.executable}" "$@"
            fi""",
        "t2g": f'echo "t2g $*" >>"{log}"',
    }
    for name, script in scripts.items():
        (bin_folder / name).write_text(f"#!/usr/bin/env bash\n{script}\n")
        (bin_folder / name).chmod(0o755)

    def read_log():
        lines = log.read_text().splitlines()
        log.unlink()
        return lines

    return read_log


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck(script):
    if shutil.which("shellcheck") is None:
        missing = pytest.fail if os.environ.get("CI") else pytest.skip
        missing("shellcheck is not installed; on Debian or Ubuntu: sudo apt-get install shellcheck")
    done = run("shellcheck", "--external-sources", script)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_script_is_strict_and_short(script):
    text = script.read_text()
    assert len(text.splitlines()) < 160
    if script.name != "environment.sh":  # sourced by the others
        assert text.startswith("#!/usr/bin/env bash\n")
        assert "\nset -euo pipefail\n" in text
        assert os.access(script, os.X_OK)


HELPFUL = [path.name for path in SCRIPTS if path.name not in ("environment.sh", "run")]


@pytest.mark.parametrize("name", HELPFUL)
@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_prints_the_header(name, flag, tmp_path):
    script = REPOSITORY / "launch" / name
    done = run(script, flag, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"launch/{name}" in done.stdout
    assert "set -euo" not in done.stdout
    header = re.match(r"#!.*\n((?:#.*\n)+)", script.read_text())[1]
    assert done.stdout == re.sub("^# ?", "", header, flags=re.M)


def test_config_that_is_not_there():
    done = run("launch/local.sh", "configs/quikstart.yaml")
    assert done.returncode == 2
    assert "configs/quikstart.yaml: no such file" in done.stderr
    assert "configs/quickstart.yaml" in done.stderr


@pytest.mark.parametrize("python", ["/no/such/python", "OLD"])
def test_interpreter_that_does_not_serve(copy, tmp_path, python):
    if python == "OLD":
        python = make_interpreter(tmp_path / "python2", "exit 1")
    done = run(copy / "launch/local.sh", PYTHON=str(python))
    assert done.returncode == 1
    assert f"PYTHON={python} does not run, or is older than Python 3.11." in done.stderr
    assert not (copy / ".venv").exists()


def make_interpreter(path, script):
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def path_with(folder, *tools):
    """A PATH of one folder that has these tools and no Python."""
    folder.mkdir(exist_ok=True)
    for tool in ("bash", "dirname", "head", "grep", "sed", "env", *tools):
        (folder / tool).symlink_to(shutil.which(tool))
    return str(folder)


def test_no_python_at_all(copy, tmp_path):
    done = run(copy / "launch/local.sh", PATH=path_with(tmp_path / "bin"))
    assert done.returncode == 1
    assert "No Python 3.11 or newer found" in done.stderr
    assert "PYTHON=/path/to/python3" in done.stderr


def test_newer_python_is_found_beside_an_old_one(copy, tmp_path):
    path = path_with(tmp_path / "bin")
    make_interpreter(tmp_path / "bin/python3", "exit 1")
    # Suitable, but without venv: the script names the version it took and what is missing.
    make_interpreter(
        tmp_path / "bin/python3.12",
        f"""case "$2" in *ensurepip*) exit 1 ;; *) exec "{sys.executable}" "$@" ;; esac""",
    )
    done = run(copy / "launch/test.sh", PATH=path)
    assert done.returncode == 1
    assert "python3.12 cannot make virtual environments" in done.stderr
    assert "apt-get install python3-venv" in done.stderr


def test_no_compiler(copy, tmp_path):
    venv = copy / ".venv/bin"
    venv.mkdir(parents=True)
    make_interpreter(
        venv / "python",
        f"""case "$2" in *pycosat*) exit 1 ;; *) exec "{sys.executable}" "$@" ;; esac""",
    )
    done = run(copy / "launch/local.sh", PATH=path_with(tmp_path / "bin"))
    assert done.returncode == 1
    assert "apt-get install gcc python3-dev" in done.stderr


def test_first_start_installs_and_the_second_does_not(copy, fake_venv):
    script = copy / "launch/local.sh"
    assert run(script).returncode == 0
    pip, started = fake_venv()
    assert pip.startswith("-m pip install")
    assert pip.endswith("--editable .[tasks]")
    assert started == "t2g run configs/quickstart.yaml"

    assert run(script, "--seed", "3").returncode == 0
    assert fake_venv() == ["t2g run configs/quickstart.yaml --seed 3"]


def test_a_run_goes_on_by_its_folder(copy, fake_venv):
    (copy / "runs/mine").mkdir(parents=True)
    (copy / "runs/mine/config.yaml").touch()
    assert run(copy / "launch/local.sh", "runs/mine").returncode == 0
    assert fake_venv()[-1] == "t2g run runs/mine"


def test_what_makes_it_install_again(copy, fake_venv):
    local, test = copy / "launch/local.sh", copy / "launch/test.sh"
    run(local)
    fake_venv()
    # Another extra: only that one. `local.sh` is still content afterwards.
    run(test, "-k", "gae")
    pip, pytest_line = fake_venv()
    assert pip.endswith("--editable .[test]")
    by_file = "--dist loadfile --no-loadscope-reorder"
    assert pytest_line == f"-m pytest --numprocesses auto {by_file} -k gae"
    run(local)
    assert len(fake_venv()) == 1
    run(local, "configs/quickstart.yaml", EXTRAS="tpu notebooks")
    assert fake_venv()[0].endswith("--editable .[tpu,notebooks]")
    # Other dependencies: everything the script needs.
    (copy / "pyproject.toml").write_text("# changed")
    run(local)
    assert fake_venv()[0].endswith("--editable .[tasks]")


def test_failed_installation_is_tried_again(copy, fake_venv):
    python = copy / ".venv/bin/python"
    working = python.read_text()
    python.write_text(working.replace('echo "$*" >>', "exit 1 #"))
    assert run(copy / "launch/local.sh").returncode == 1
    python.write_text(working)
    assert run(copy / "launch/local.sh").returncode == 0
    assert fake_venv()[0].endswith("--editable .[tasks]")
