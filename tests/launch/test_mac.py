"""The scripts where there is no Linux: a Mac's bash is 3.2, and its tools are BSD's.

Neither can be installed here. So the tools that differ are told to fail, tar is BSD's (of Debian's
libarchive-tools), and the scripts are read for what bash learned after 3.2.
"""

import os
import pathlib
import re
import shutil
import subprocess
import tarfile

import pytest

REPOSITORY = pathlib.Path(__file__).parents[2]
ON_HOSTS = {"tpu_host.sh"}  # Linux, as is what gpu_slurm.sh does inside a job
SCRIPTS = [p for p in sorted((REPOSITORY / "launch").glob("*.sh")) if p.name not in ON_HOSTS]
# On a Mac these are missing, or know neither GNU's options nor its dialects.
DIFFERENT = "sed awk find xargs stat date readlink realpath timeout seq flock setsid sort".split()
NEW_IN_BASH = {
    "associative arrays, name references (4.0, 4.3)": r"\b(declare|local|typeset) -\w*[Ang]",
    "mapfile, readarray (4.0)": r"\b(mapfile|readarray|coproc)\b",
    "case of letters (4.0)": r"\$\{\w+(\[[^]]*\])?[,^]",
    "|& and &>> (4.0)": r"\|&|&>>",
    ";& (4.0)": r";;?&",
    "descriptors by name (4.1)": r"exec \{\w+\}",
    "[[ -v (4.2)": r"\[\[ (! )?-v ",
    "last element (4.3)": r"\[-\d+\]|\$\{@: -",
    "wait -n (4.3)": r"wait -n",
    "transformations (4.4)": r"\$\{[\w@*]+@[A-Za-z]\}",
    "its own process number, time (4.0, 5.0)": r"BASHPID|EPOCH(SECONDS|REALTIME)|printf '%\(",
    "globstar, lastpipe (4.0, 4.2)": r"shopt -s \w*(globstar|lastpipe)",
}
NOT_OF_BSD = {
    "sed's ; after }": r"\bsed\b",
    "grep -P": r"\bgrep -\w*P",
    "in-place, canonical, GNU's long options": r"readlink -f|date -d|stat -c|xargs -r|mktemp --",
    "tar's patterns, which differ": r"tar .*--(exclude|transform|wildcards|sort)",
}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
@pytest.mark.parametrize("what", NEW_IN_BASH | NOT_OF_BSD)
def test_scripts_use_nothing_that_a_mac_has_not(script, what):
    lines = [re.sub(r"(^|\s)#.*", "", line) for line in script.read_text().splitlines()]
    pattern = (NEW_IN_BASH | NOT_OF_BSD)[what]
    assert [line for line in lines if re.search(pattern, line)] == []


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_empty_arrays_are_not_taken_for_unset_variables(script):
    """As bash did before 4.4 with `set -u`; arrays that are never empty are listed here."""
    text = script.read_text()
    made_empty = set(re.findall(r"\b(\w+)=\(\)", text))
    for name in made_empty:
        for line in text.splitlines():
            bare = line.replace(f'${{{name}[@]+"${{{name}[@]}}"}}', "")
            if f'"${{{name}[@]' in bare:
                assert f"#{name}[@]" in text, (script.name, line)


@pytest.fixture
def mac(tmp_path):
    """mac(SCRIPT, ...) runs one of a copy of the repository's in front of a Mac's tools."""
    root, tools = tmp_path / "a copy", tmp_path / "tools"
    root.mkdir()
    for name in ("launch", "configs"):
        shutil.copytree(REPOSITORY / name, root / name)
    shutil.copy(REPOSITORY / "pyproject.toml", root)
    tools.mkdir()
    for name in [*DIFFERENT, "nvidia-smi", "gcloud", "sbatch"]:
        write(tools / name, f'echo "{name} $*" >>"{tmp_path}/asked"; exit 64')
    if shutil.which("bsdtar"):
        (tools / "tar").symlink_to(shutil.which("bsdtar"))

    def mac(*words, **environment):
        # In the end nothing that is different was asked for, whether its failure was seen or not.
        done = subprocess.run(
            [root / "launch" / words[0], *words[1:]],
            cwd=root,
            env=os.environ | {"PATH": f"{tools}:{os.environ['PATH']}"} | environment,
            capture_output=True,
            text=True,
        )
        asked = tmp_path / "asked"
        assert not asked.exists() or asked.read_text() == ""
        return done

    mac.root, mac.tools = root, tools
    return mac


def write(path, script):
    path.write_text(f"#!/usr/bin/env bash\n{script}\n")
    path.chmod(0o755)


def needs_bsdtar():
    if shutil.which("bsdtar") is None:
        missing = pytest.fail if os.environ.get("CI") else pytest.skip
        missing("bsdtar is not installed; on Debian or Ubuntu: apt-get install libarchive-tools")


@pytest.mark.parametrize("name", [p.name for p in SCRIPTS if p.name != "environment.sh"])
def test_help(mac, name):
    done = mac(name, "--help")
    assert done.returncode == 0, done.stderr
    assert f"launch/{name}" in done.stdout
    assert done.stderr == ""


@pytest.mark.parametrize("git", [True, False])
def test_dry_runs(mac, git):
    needs_bsdtar()
    if git:
        repository(mac.root)
    (mac.tools / "nvidia-smi").unlink()
    config = "configs/quickstart.yaml"
    for words in (
        ["gpu_local.sh", "--dry-run", config],
        ["gpu_slurm.sh", "--dry-run", config],
        ["tpu_pod.sh", "--dry-run", "run", config, "--seed", "1"],
        ["tpu_pod.sh", "--dry-run", "delete"],
    ):
        done = mac(*words)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("+ ")


# --- What hosts get


def repository(root, *ignored):
    (root / ".gitignore").write_text("".join(f"{line}\n" for line in ignored))
    for words in (["init", "--quiet"], ["add", "."]):
        subprocess.run(["git", *words], cwd=root, check=True)


ODD = ["a b.txt", "-b.txt", "ünicode.txt", "deep/er/c.txt", "deep/[x]*?.txt"]
NEVER = [".secret", ".venv/bin/python", "deep/.hidden", "runs/quickstart/config.yaml",
         "deep/__pycache__/a.pyc"]  # fmt: skip


@pytest.mark.parametrize("tar", ["tar", "bsdtar"])
@pytest.mark.parametrize("git", [True, False, "of another repository"])
def test_the_parcel_has_the_files_and_no_others(mac, tmp_path, tar, git):
    if tar == "bsdtar":
        needs_bsdtar()
    else:
        (mac.tools / "tar").unlink(missing_ok=True)
    for name in [*ODD, *NEVER, "weights/big.bin", "gone.txt"]:
        (mac.root / name).parent.mkdir(parents=True, exist_ok=True)
        (mac.root / name).write_text(name)
    (mac.root / "deep/link.txt").symlink_to("er/c.txt")
    (mac.root / "deep/circle").symlink_to("..")
    if git is True:
        repository(mac.root, "weights/")
        (mac.root / "new.txt").write_text("untracked")
        (mac.root / "gone.txt").unlink()
    elif git:
        repository(tmp_path, "*")
    archive = tmp_path / "parcel.tar.gz"
    done = mac("parcel.sh", archive)
    assert done.returncode == 0, done.stderr
    with tarfile.open(archive) as parcel:
        found = {os.path.normpath(member.name) for member in parcel.getmembers()}
    here = {str(p.relative_to(mac.root)) for p in (mac.root / "launch").iterdir()}
    assert here | {*ODD, "deep/link.txt", "pyproject.toml", "configs/quickstart.yaml"} <= found
    assert not found & {*NEVER, ".gitignore"}
    assert ("weights/big.bin" in found, "gone.txt" in found) == ((git is not True,) * 2)
    assert ("new.txt" in found) == (git is True)
    assert set(mac("parcel.sh", "--list").stdout.splitlines()) == found


@pytest.mark.parametrize(("broken", "status"), [("exit 0", 1), ("exit 3", 3)])
def test_an_archive_that_lacks_files_is_noticed(mac, tmp_path, broken, status):
    """As when tar took the pattern that leaves out hidden files for all of them."""
    (mac.tools / "tar").unlink(missing_ok=True)
    write(mac.tools / "tar", f'[[ $1 == -t* ]] || {{ cat >/dev/null; touch "$2"; {broken}; }}')
    done = mac("parcel.sh", tmp_path / "parcel.tar.gz")
    assert done.returncode == status
    if status == 1:
        assert re.search(r"of \d+ files, 0 are in the archive", done.stderr)
    done = mac("tpu_pod.sh", "--dry-run", "run", "configs/quickstart.yaml", RETRIES="0")
    assert done.returncode == 1
    assert "scp" not in done.stdout  # nothing is sent to the hosts


def test_an_empty_folder_is_no_parcel(mac, tmp_path):
    repository(mac.root, "*")
    done = mac("parcel.sh", tmp_path / "parcel.tar.gz")
    assert done.returncode == 1
    assert "there are no files in" in done.stderr
    assert not (tmp_path / "parcel.tar.gz").exists()
