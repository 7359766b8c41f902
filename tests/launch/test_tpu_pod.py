"""launch/tpu_pod.sh with a gcloud that has two hosts on this machine, each a folder of its own."""

import contextlib
import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time

import pytest

from t2g_jax.commands import parsers

REPOSITORY = pathlib.Path(__file__).parents[2]
SECRET = "hush-0123456789"
CONFIG = "configs/mine.yaml"

GCLOUD = r"""#!/usr/bin/env bash
printf '%q ' "$@" >>"$FAKE/calls"; echo >>"$FAKE/calls"
for word in "$@"; do case $word in --command=*) command=${word#--command=} ;; esac; done
case "$*" in
  *queued-resources\ describe*)
    read -r state <"$FAKE/states"
    [[ $(wc -l <"$FAKE/states") -eq 1 ]] || sed -i 1d "$FAKE/states"
    echo "a warning that is no answer" >&2
    [[ $state != NONE ]] || { echo "ERROR: NOT_FOUND: no such resource" >&2; exit 1; }
    [[ $state != DOWN ]] || { echo "ERROR: no network" >&2; exit 1; }
    echo "$state" ;;
  *queued-resources\ create*) # new machines
    [[ ! -e $FAKE/busy ]] || { rm "$FAKE/busy"; echo "ERROR: try again later" >&2; exit 1; }
    rm -rf "$FAKE"/host?
    mkdir -p "$FAKE"/host{0,1}/t2g
    for host in 0 1; do cp -r "$FAKE/venv" "$FAKE/host$host/t2g/.venv"; done ;;
  *tpu-vm\ scp*)
    for word in "$@"; do
      [[ ! -f $word ]] || { cp "$word" "$FAKE/host0"; cp "$word" "$FAKE/host1"; }
    done ;;
  *tpu-vm\ ssh*)
    [[ "$*" == *--worker=all* ]] && hosts="0 1" || hosts=0
    jobs=() status=0
    for host in $hosts; do
      (
        cd "$FAKE/host$host" 2>/dev/null || exit 255
        HOME=$PWD HOST=$host bash -c "$command"
      ) &
      jobs+=($!)
    done
    for job in "${jobs[@]}"; do wait "$job" || { last=$?; ((status)) || status=$last; }; done
    exit $status ;;
esac
"""
# Ends as the next line of $FAKE/ends says; host 1 a little later, as the other.
T2G = r"""#!/usr/bin/env bash
echo "$HOST $T2G_DISTRIBUTED ${WANDB_API_KEY:-no key}: t2g $(printf '<%s>' "$@")" >>"$FAKE/t2g"
echo "host $HOST trains in $(readlink runs || echo "no bucket")"
attempt=$(grep -c "^$HOST" "$FAKE/t2g")
status=$(sed -n "${attempt}p" "$FAKE/ends")
if [[ $status == wait ]]; then
  trap 'exit 75' TERM
  touch "$FAKE/waits$HOST"
  while true; do sleep 0.05; done
fi
exit "$status"
"""
PYTHON = f"""#!/usr/bin/env bash
[[ "$1 $2" == "-m pip" ]] || exec "{sys.executable}" "$@"
echo "$*" >>"$FAKE/pip"
"""


@pytest.fixture
def pod(tmp_path):
    """A small repository with the scripts, and everything that they call, as fakes."""
    root = tmp_path / "a copy"
    root.mkdir()
    shutil.copytree(REPOSITORY / "launch", root / "launch")
    shutil.copy(REPOSITORY / "pyproject.toml", root)
    (root / "configs").mkdir()
    for config in (CONFIG, "configs/quickstart.yaml"):
        (root / config).write_text("name: mine\n")
    (root / ".secret").write_text("stays at home")
    fake, tools = tmp_path / "fake", tmp_path / "tools"
    write(tools / "gcloud", GCLOUD)
    write(fake / "venv/bin/t2g", T2G)
    write(fake / "venv/bin/python", PYTHON)
    for name, script in {
        "gcsfuse": 'echo "$*" >>"$FAKE/gcsfuse"',
        "mountpoint": "exit 1",
        "sudo": 'echo "$*" >>"$FAKE/sudo"; cat >/dev/null </dev/null',
        "cc": "exit 0",
        "python3.12": "exit 0",
    }.items():
        write(tools / name, f"#!/usr/bin/env bash\n{script}\n")
    yield Pod(root, fake, tools)
    for pid in fake.glob("host?/t2g-run/pid"):  # of a test that failed
        with contextlib.suppress(ProcessLookupError):
            os.killpg(int(pid.read_text()), signal.SIGKILL)


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


class Pod:
    def __init__(self, root, fake, tools):
        self.root, self.fake, self.tools = root, fake, tools
        self.outputs = []  # of each start, a file

    def start(self, *words, states=("ACTIVE",), ends=(), **environment):
        (self.fake / "states").write_text("".join(f"{state}\n" for state in states))
        (self.fake / "ends").write_text("".join(f"{end}\n" for end in ends))
        inherited = {k: v for k, v in os.environ.items() if k not in ("PYTHON", "EXTRAS", "ZONE")}
        self.outputs.append(self.fake / f"output{len(self.outputs)}")
        with self.outputs[-1].open("w") as output:
            return subprocess.Popen(
                [self.root / "launch/tpu_pod.sh", *words],
                env=inherited
                | {"PATH": f"{self.tools}:{os.environ['PATH']}", "FAKE": str(self.fake)}
                | {"POLL": "0"}
                | environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def run(self, *words, **options):
        status = self.start(*words, **options).wait(timeout=120)
        return status, self.outputs[-1].read_text()

    def lines(self, name):
        path = self.fake / name
        return path.read_text().splitlines() if path.exists() else []

    def calls(self):
        """What gcloud was asked for, as words: the command, or what a host is to do."""
        found = []
        for line in self.lines("calls"):
            words = shlex.split(line)
            asked = [w.removeprefix("--command=") for w in words if w.startswith("--command=")]
            found.append(asked[0] if asked else " ".join(words[2:4]))
        return [call for call in found if "describe" not in call]


def actions(calls):
    names = {"queued-resources create": "create", "queued-resources delete": "delete"}
    names |= {"tpu-vm scp": "copy"}
    return [
        names.get(call) or next(w for w in ("prepare", "running", "start", "stop") if w in call)
        for call in calls
    ]


def test_a_run_from_nothing_to_its_end(pod):
    status, output = pod.run(
        *("run", CONFIG, "--sft.steps", "2 3"),
        states=["NONE", "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"],
        ends=[0],
        BUCKET="my-bucket",
        WANDB_API_KEY=SECRET,
        EXTRAS="wandb",
        ZONE="us-west4-a",
        PROJECT="trc",
    )
    assert status == 0, output
    assert actions(pod.calls()) == ["create", "running", "copy", "prepare", "start"]
    create = next(line for line in pod.lines("calls") if "create" in line)
    assert create.split() == [
        *"compute tpus queued-resources create t2g --quiet --zone=us-west4-a".split(),
        *"--project=trc --node-id=t2g --accelerator-type=v5litepod-16 --spot".split(),
        "--runtime-version=v2-alpha-tpuv5-lite",
    ]
    # The same command on both hosts, each knows that it is one of several, and has the key.
    for host in (0, 1):
        started = "t2g <run><configs/mine.yaml><--sft.steps><2 3>"
        assert f"{host} auto {SECRET}: {started}" in pod.lines("t2g")
        home = pod.fake / f"host{host}"
        assert f"host {host} trains in {home}/bucket/runs" in output
        assert (home / "t2g/configs/mine.yaml").exists()
        assert not (home / "t2g/.secret").exists()
        assert (home / "t2g-secrets").stat().st_mode & 0o077 == 0
    assert all("my-bucket" in line and "ttl-secs=0" in line for line in pod.lines("gcsfuse"))
    assert pod.lines("pip")[0].endswith("--editable .[tasks,tpu,wandb]")
    assert "the TPU is still yours" in output


def test_secrets_are_passed_on_and_never_shown(pod):
    for words in (["run", CONFIG], ["--dry-run", "run", CONFIG]):
        secrets = {"MINE": SECRET, "SECRETS": "MINE WANDB_API_KEY", "HF_TOKEN": "not-asked-for"}
        _, output = pod.run(*words, states=["NONE", "ACTIVE"], ends=[0], **secrets)
        assert "passing on MINE" in output
        assert SECRET not in output
        assert SECRET not in "\n".join(pod.lines("calls"))
    # A value of any characters arrives; what was not named does not.
    value = "a 'b' \"c\" $(d) \\"
    pod.run("run", CONFIG, states=["NONE", "ACTIVE"], ends=[0], WANDB_API_KEY=value)
    assert pod.lines("t2g")[-1].endswith(f"auto {value}: t2g <run><{CONFIG}>")
    assert "HF_TOKEN" not in (pod.fake / "host0/t2g-secrets").read_text()


def test_a_preempted_run_goes_on_on_new_machines(pod):
    status, output = pod.run(
        *("run", CONFIG),
        states=["NONE", "ACTIVE", "SUSPENDING", "SUSPENDED", "NONE", "CREATING", "ACTIVE"],
        ends=[75, 0],
        BUCKET="my-bucket",
    )
    assert status == 0, output
    obtained = ["create", "running", "copy", "prepare", "start"]
    assert actions(pod.calls()) == [*obtained, "delete", *obtained]
    assert len(pod.lines("t2g")) == 4


def test_a_request_that_gcloud_does_not_take_is_made_again(pod):
    (pod.fake / "busy").touch()
    states = ["NONE", "NONE", "ACTIVE"]
    status, output = pod.run("run", CONFIG, states=states, ends=[0])
    assert status == 0, output
    assert "asking for t2g failed; trying again" in output
    assert actions(pod.calls())[:2] == ["create", "create"]
    (pod.fake / "busy").touch()
    status, output = pod.run("run", CONFIG, states=["NONE"], RETRIES="0")
    assert status == 1
    assert "ERROR: try again later" in output


def test_stopped_in_order_is_run_again_on_the_same_machines(pod):
    status, output = pod.run(
        "run", CONFIG, states=["NONE", "ACTIVE"], ends=[75, 75, 0], RETRIES="1"
    )
    assert status == 0, output  # more often than RETRIES
    assert len(pod.lines("t2g")) == 6
    assert actions(pod.calls()).count("create") == 1


@pytest.mark.parametrize("end", [70, 255])
def test_failures_in_a_row_end_it(pod, end):
    status, output = pod.run("run", CONFIG, states=["NONE", "ACTIVE"], ends=[end] * 9, RETRIES="1")
    assert status == 1
    assert output.count(f"ended with {end}; trying again") == 1
    assert f"ended with {end}; given up after 2 failures in a row" in output
    assert len(pod.lines("t2g")) == 4


@pytest.mark.parametrize("end", [2, 130])
def test_an_error_of_use_is_not_tried_again(pod, end):
    status, _ = pod.run("run", CONFIG, states=["NONE", "ACTIVE"], ends=[end])
    assert status == end
    assert len(pod.lines("t2g")) == 2


def test_an_error_of_use_when_hosts_have_gone_is_tried_again(pod):
    states = ["NONE", "ACTIVE", "SUSPENDING", "SUSPENDED", "NONE", "ACTIVE"]
    status, output = pod.run("run", CONFIG, states=states, ends=[2, 0])
    assert status == 0
    assert "ended with 2; trying again" in output


def test_stop_ends_a_run_and_the_script_that_follows_it(pod):
    process = pod.start("run", CONFIG, states=["NONE", "ACTIVE"], ends=["wait"])
    wait_for(pod.fake / "waits0", pod.fake / "waits1")
    status, output = pod.run("stop", ends=["wait"])
    assert status == 0, output
    assert process.wait(timeout=60) == 130
    assert (pod.fake / "host0/t2g-run/status").read_text() == "75\n"


def test_a_run_outlives_the_script_and_is_found_again(pod):
    process = pod.start("run", CONFIG, states=["NONE", "ACTIVE"], ends=["wait", 0])
    wait_for(pod.fake / "waits0", pod.fake / "waits1")
    os.killpg(process.pid, signal.SIGKILL)  # with the connections to the hosts
    process.wait(timeout=60)
    (pod.fake / "calls").unlink()
    process = pod.start("run", CONFIG, ends=["wait", 0])
    followed = pod.outputs[-1]  # on both hosts: one that is told to end before would begin again
    wait_until(lambda: all(f"host {host} trains" in followed.read_text() for host in (0, 1)))
    assert actions(pod.calls()) == ["running", "start"]  # nothing is copied over what runs
    assert len(pod.lines("t2g")) == 2
    # Preempted: the hosts' own SIGTERM, to all processes.
    running = [int((pod.fake / f"host{host}/t2g-run/pid").read_text()) for host in (0, 1)]
    for pid in running:
        os.killpg(pid, signal.SIGTERM)
    assert process.wait(timeout=60) == 0, followed.read_text()
    assert len(pod.lines("t2g")) == 4


def wait_for(*paths):
    wait_until(lambda: all(path.exists() for path in paths))


def wait_until(condition):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_when_gcloud_does_not_answer(pod):
    states = ["DOWN"] * 3 + ["NONE", "ACTIVE"]
    status, output = pod.run("run", CONFIG, states=states, ends=[0])
    assert status == 0
    assert "no network" in output
    status, output = pod.run("run", CONFIG, states=["DOWN"], ends=[0])
    assert status == 1
    assert "gcloud does not say how t2g is" in output


@pytest.mark.parametrize(
    ("type_", "mode", "asked"),
    [
        ("v6e-8", "on-demand", ["--accelerator-type=v6e-8", "--runtime-version=v2-alpha-tpuv6e"]),
        ("v5p-64", "reserved", ["--reserved", "--runtime-version=v2-alpha-tpuv5"]),
        ("v4-32", "spot", ["--spot", "--runtime-version=tpu-ubuntu2204-base"]),
    ],
)
def test_what_is_asked_for(pod, type_, mode, asked):
    status, output = pod.run("--dry-run", "run", CONFIG, TYPE=type_, MODE=mode, NAME="mine")
    assert status == 0
    create = next(line for line in output.splitlines() if "create mine" in line).split()
    assert set(asked) <= set(create)
    assert ("--spot" in create) == (mode == "spot")
    assert pod.run("run", CONFIG, MODE="cheap") == (
        2,
        "tpu_pod.sh: MODE=cheap is none of spot, on-demand, reserved\n",
    )


HERE = str(REPOSITORY / "configs/quickstart.yaml")


@pytest.mark.parametrize("words", [[], ["configs/none.yaml"], ["--seed"], [HERE]])
def test_a_config_that_hosts_would_not_find_asks_for_no_machine(pod, words):
    status, output = pod.run("run", *words)
    assert status == 2
    assert "is no file in this folder" in output
    assert pod.lines("calls") == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "which one of sft annotate"),
        (["trian-policy", CONFIG], "t2g has no command trian-policy"),
        (["evaluate"], "'' is no file in this folder"),
        (["evaluate", "configs/none.yaml"], "'configs/none.yaml' is no file in this folder"),
        (["evaluate", "runs/mine"], "'runs/mine' is no file in this folder"),
        (["evaluate", "configs/../launch/../../other.yaml"], "is none of the files"),
        (["evaluate", ".mine.yaml"], "'.mine.yaml' is none of the files that hosts get"),
    ],
)
def test_a_command_that_hosts_would_refuse_asks_for_no_machine(pod, words, message):
    (pod.root / ".mine.yaml").write_text("name: mine\n")
    (pod.root.parent / "other.yaml").write_text("name: mine\n")
    for first in (["t2g"], ["--dry-run", "t2g"]):
        status, output = pod.run(*first, *words)
        assert status == 2
        assert message in output
    assert pod.lines("calls") == []


def test_a_work_folder_in_the_bucket_is_not_looked_for_here(pod):
    words = ["t2g", "evaluate", "runs/mine/config.yaml"]
    status, output = pod.run(*words, states=["NONE", "ACTIVE"], ends=[0], BUCKET="my-bucket")
    assert status == 0, output
    assert pod.lines("t2g")[0].endswith("t2g <evaluate><runs/mine/config.yaml>")


def test_every_command_with_a_config_is_known():
    _, commands = parsers()
    script = (REPOSITORY / "launch/parcel.sh").read_text()
    known = re.search("known='([^']+)'", script)[1].split()
    # `plan` is for a machine without a TPU.
    assert {"run", *known} == {"run", *commands} - {"plan"} | {"study"}


def test_what_stops_in_order_again_and_again_is_given_up(pod):
    """On machines that nobody takes away; a preempted run goes on however often."""
    states = ["NONE", "ACTIVE"]
    status, output = pod.run("run", CONFIG, states=states, ends=[75] * 9, STOPS="1")
    assert status == 1
    assert "stopped in order 2 times in a row; given up" in output
    assert len(pod.lines("t2g")) == 4
    (pod.fake / "t2g").unlink()
    states = [*["NONE", "ACTIVE", "SUSPENDED"] * 3, "NONE", "ACTIVE"]
    status, output = pod.run("run", CONFIG, states=states, ends=[75, 75, 75, 0], STOPS="1")
    assert status == 0, output
    assert len(pod.lines("t2g")) == 8


def test_of_starts_at_once_one_runs_and_the_others_follow_it(pod):
    """Also one that comes while another is only about to start."""
    pod.run("run", CONFIG, states=["NONE", "ACTIVE"], ends=[0])
    host, before = pod.fake / "host0", len(pod.lines("t2g"))
    (pod.fake / "ends").write_text("0\nwait\n")
    environment = os.environ | {"HOME": str(host), "HOST": "0", "FAKE": str(pod.fake)}
    script = host / "t2g/launch/tpu_host.sh"
    outputs = [pod.fake / f"start{i}" for i in range(4)]
    starts = []
    for path in outputs:
        with path.open("w") as output:
            start = subprocess.Popen([script, "start", "t2g"], env=environment, stdout=output)
            starts.append(start)
    wait_until(lambda: all("host 0 trains" in path.read_text() for path in outputs))
    assert subprocess.run([script, "running"], env=environment).returncode == 0
    assert subprocess.run([script, "stop"], env=environment).returncode == 0
    assert [start.wait(timeout=60) for start in starts] == [130] * 4
    assert len(pod.lines("t2g")) == before + 1


def test_dry_run_calls_nothing(pod):
    for words in (["run", CONFIG], ["status"], ["stop"], ["logs"], ["ssh", "ls"], ["delete"]):
        status, output = pod.run("--dry-run", *words, PATH=without_gcloud(pod), DELETE="1")
        assert status == 0, output
        assert "+ gcloud compute tpus" in output
    assert pod.lines("calls") == []
    assert "delete" in output


def test_the_commands_of_the_guide(pod):
    """Those of docs/pods.md, shown and not done."""
    guide = (REPOSITORY / "docs/pods.md").read_text()
    lines = [line for line in guide.splitlines() if line.startswith("launch/tpu_pod.sh ")]
    assert len(lines) >= 8
    for line in lines:
        words = shlex.split(line.replace("…", CONFIG), comments=True)[1:]
        status, output = pod.run(*words, DRY_RUN="1")
        assert status == 0, output
        assert "+ gcloud" in output
    _, about = pod.run("--help")
    for name in ("NAME", "PROJECT", "ZONE", "TYPE", "MODE", "BUCKET", "EXTRAS", "DELETE"):
        assert name in about


def without_gcloud(pod):
    tools = pod.root / "tools"
    tools.mkdir(exist_ok=True)
    for name in "bash dirname sed tail tar gzip mktemp rm sleep env".split():
        (tools / name).unlink(missing_ok=True)
        (tools / name).symlink_to(shutil.which(name))
    return str(tools)


def test_a_host_without_python_gcsfuse_and_compiler_gets_them(pod):
    host = pod.fake / "host0"
    shutil.copytree(pod.fake / "venv", pod.root / ".venv")
    (pod.root / ".venv/t2g-installed").unlink(missing_ok=True)
    tools = pathlib.Path(without_gcloud(pod))
    for name in "mkdir head grep cat ln cp".split():
        (tools / name).symlink_to(shutil.which(name))
    for name, script in {
        "sudo": 'echo "$*" >>"$FAKE/sudo"; [[ $1 != tee ]] || cat >/dev/null',
        "curl": 'echo "$*" >>"$FAKE/curl"',
        "mountpoint": "exit 0",
    }.items():
        write(tools / name, f"#!/usr/bin/env bash\n{script}\n")
    done = subprocess.run(
        [pod.root / "launch/tpu_host.sh", "prepare", "my-bucket"],
        env={"PATH": str(tools), "HOME": str(host), "FAKE": str(pod.fake)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    apt = [line.split("=600 ")[1] for line in pod.lines("sudo") if "apt-get" in line]
    assert apt == [
        *("update", "install --yes gcsfuse gcc python3-dev python3-venv"),
        *("update", "install --yes python3.12-dev python3.12-venv"),
    ]
    assert (pod.root / "runs").readlink() == host / "bucket/runs"
