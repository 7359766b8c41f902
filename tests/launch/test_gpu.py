"""launch/gpu_slurm.sh and launch/gpu_local.sh, with fakes of what Slurm and NVIDIA provide."""

import os
import pathlib
import re
import shutil
import signal
import subprocess
import time

import pytest

REPOSITORY = pathlib.Path(__file__).parents[2]

# Two nodes on this machine. A task is told who it is; the largest status of all is srun's.
SRUN = r"""
echo "srun $1 $2" >>"$FAKE/calls"; shift 2
status=0 jobs=()
for task in 0 1; do
  SLURM_PROCID=$task SLURM_LOCALID=$((task % (SLURM_NTASKS / SLURM_NNODES))) \
    SLURM_NTASKS=$SLURM_NTASKS SLURM_GPUS_ON_NODE=8 "$@" & jobs+=($!)
done
echo "${jobs[@]}" >"$FAKE/tasks"
for job in "${jobs[@]}"; do wait "$job" || { last=$?; ((last <= status)) || status=$last; }; done
exit $status
"""
T2G = r"""
echo "$T2G_PROCESS_ID of $T2G_NUM_PROCESSES at $T2G_COORDINATOR on $JAX_LOCAL_DEVICE_IDS: $*" \
  >>"$FAKE/t2g"
trap 'echo saved; exit 75' TERM
status=$(<"$FAKE/ends$T2G_PROCESS_ID")
[[ $status != wait ]] || { touch "$FAKE/waits$T2G_PROCESS_ID"; while true; do sleep 0.05; done; }
exit "$status"
"""
FAKES = {
    "srun": SRUN,
    "sbatch": 'echo "sbatch $*" >>"$FAKE/calls"',
    "scontrol": """if [[ $1 == show ]]; then printf 'node07\\nnode08\\n'
      else echo "scontrol $*" >>"$FAKE/calls"; fi""",
    "squeue": 'cat "$FAKE/state"',
    # To the tasks; the batch script is not told.
    "scancel": 'echo "scancel $*" >>"$FAKE/calls"; kill -TERM $(<"$FAKE/tasks")',
}


class Slurm:
    def __init__(self, folder):
        self.root, self.fake = folder / "a copy", folder / "fake"
        self.root.mkdir()
        shutil.copytree(REPOSITORY / "launch", self.root / "launch")
        shutil.copy(REPOSITORY / "pyproject.toml", self.root)
        self.fake.mkdir()
        for name, script in FAKES.items():
            write(folder / "tools" / name, script)
        write(self.root / ".venv/bin/t2g", T2G)
        self.environment = os.environ | {
            "PATH": f"{folder / 'tools'}:{os.environ['PATH']}",
            "FAKE": str(self.fake),
            "PYTHON": "",
            "EXTRAS": "",
        }

    def job(self, *words, ends=(0, 0), state="RUNNING", tasks_per_node=1, **variables):
        """The batch script, as Slurm starts it: a copy elsewhere, in the folder of submission."""
        for task, end in enumerate(ends):
            (self.fake / f"ends{task}").write_text(f"{end}\n")
        (self.fake / "state").write_text(f"{state}\n")
        spooled = self.fake / "slurm_script"
        shutil.copy(self.root / "launch/gpu_slurm.sh", spooled)
        nodes = 2 // tasks_per_node
        slurm = {
            "SLURM_JOB_ID": "1234567",
            "SLURM_SUBMIT_DIR": str(self.root),
            "SLURM_JOB_NODELIST": "node[07-08]",
            "SLURM_NNODES": str(nodes),
            "SLURM_NTASKS": "2",
            "SLURM_CPUS_PER_TASK": "16",
        }
        return subprocess.Popen(
            ["bash", spooled, *words],
            env=self.environment | slurm | variables,
            cwd=self.fake,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def lines(self, name):
        path = self.fake / name
        return path.read_text().splitlines() if path.exists() else []


def write(path, script):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/usr/bin/env bash\n{script}\n")
    path.chmod(0o755)


@pytest.fixture
def slurm(tmp_path):
    return Slurm(tmp_path)


def finish(process):
    output, _ = process.communicate(timeout=60)
    return process.returncode, output


REQUEUED = "scontrol requeue 1234567"


def test_each_process_knows_who_it_is(slurm):
    status, output = finish(slurm.job("configs/a.yaml", "--name", "two words"))
    assert status == 0, output
    where = "of 2 at node07:24567 on 0,1,2,3,4,5,6,7: run configs/a.yaml --name two words"
    assert sorted(slurm.lines("t2g")) == [f"0 {where}", f"1 {where}"]
    assert REQUEUED not in slurm.lines("calls")


def test_one_process_a_gpu(slurm):
    assert finish(slurm.job("c", tasks_per_node=2))[0] == 0
    assert sorted(slurm.lines("t2g")) == [
        "0 of 2 at node07:24567 on 0: run c",
        "1 of 2 at node07:24567 on 1: run c",
    ]


@pytest.mark.parametrize(
    ("ends", "state", "restarts", "requeued", "status"),
    [
        ((75, 75), "RUNNING", 9, True, 0),  # stopped in order, however often
        ((75, 75), "COMPLETING", 0, False, 75),  # cancelled, or put back by Slurm itself
        ((75, 75), "RUNNING", 20, False, 70),  # unless each time within a minute
        ((0, 70), "RUNNING", 2, True, 0),  # a failure that may pass
        ((1, 0), "RUNNING", 3, False, 1),  # once too often
        ((2, 2), "RUNNING", 0, False, 2),
    ],
)
def test_what_goes_back_into_the_queue(slurm, ends, state, restarts, requeued, status):
    job = slurm.job("c", ends=ends, state=state, SLURM_RESTART_COUNT=str(restarts))
    found, output = finish(job)
    assert found == status, output
    assert (REQUEUED in slurm.lines("calls")) == requeued


def test_sigterm_reaches_the_tasks_and_the_job_goes_back_into_the_queue(slurm):
    job = slurm.job("c", ends=("wait", "wait"))
    end = time.monotonic() + 60
    while not all((slurm.fake / f"waits{task}").exists() for task in (0, 1)):
        assert time.monotonic() < end
        time.sleep(0.02)
    job.send_signal(signal.SIGTERM)
    status, output = finish(job)
    assert status == 0, output
    assert re.findall("^saved$", output, re.M) == ["saved"] * 2
    assert slurm.lines("calls")[1:] == ["scancel --signal=TERM 1234567", REQUEUED]


def test_the_directives_stand_where_sbatch_reads_them():
    """Before the first command; and B: sends the signal to the script alone, which passes it on."""
    lines = (REPOSITORY / "launch/gpu_slurm.sh").read_text().splitlines()
    command = next(i for i, line in enumerate(lines) if line and not line.startswith("#"))
    directives = [i for i, line in enumerate(lines) if line.startswith("#SBATCH ")]
    assert directives
    assert max(directives) < command
    options = [lines[i].removeprefix("#SBATCH ") for i in directives]
    assert all(re.fullmatch(r"--[a-z-]+(=\S+)?", option) for option in options)
    assert {"--requeue", "--signal=B:TERM@300", "--ntasks-per-node=1"} <= set(options)


@pytest.fixture
def config(slurm):
    (slurm.root / "configs").mkdir()
    (slurm.root / "configs/a.yaml").write_text("name: a\n")


@pytest.mark.usefixtures("config")
def test_submitting_in_dry_run(slurm):
    environment = slurm.environment | {"SBATCH_ARGS": "--nodes=4 --partition=big", "PATH": "/bin"}
    for words in (["--dry-run"], []):
        done = subprocess.run(
            [slurm.root / "launch/gpu_slurm.sh", *words, "configs/a.yaml", "--seed", "1"],
            env=environment | ({} if words else {"DRY_RUN": "1"}),
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        prepare, submit, start = done.stdout.splitlines()
        assert prepare == "+ prepare_environment tasks cuda13"
        script = "launch/gpu_slurm.sh configs/a.yaml --seed 1"
        assert submit == f"+ sbatch --nodes=4 --partition=big {script}"
        assert start.startswith("+ srun ")
    assert slurm.lines("calls") == []


@pytest.mark.parametrize("words", [["configs/none.yaml"], ["--seed", "1"], ["configs"]])
@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
@pytest.mark.usefixtures("config")
def test_a_config_that_is_not_there_is_not_submitted(slurm, words, dry):
    done = subprocess.run(
        [slurm.root / "launch/gpu_slurm.sh", *dry, *words],
        env=slurm.environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert f"{words[0]}: no such file" in done.stderr
    assert slurm.lines("calls") == []


@pytest.mark.usefixtures("config")
def test_without_slurm_nothing_is_installed(slurm):
    done = subprocess.run(
        [slurm.root / "launch/gpu_slurm.sh", "configs/a.yaml"],
        env=slurm.environment | {"PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "sbatch is not found here" in done.stderr


# All GPUs of one machine

CONFIG = "configs/quickstart.yaml"


def local(tmp_path, *words, smi=None, dry=("--dry-run",), **variables):
    if smi is not None:
        write(tmp_path / "tools/nvidia-smi", smi)
    return subprocess.run(
        [REPOSITORY / "launch/gpu_local.sh", *dry, *words],
        env={"PATH": f"{tmp_path / 'tools'}:/usr/bin:/bin", **variables},
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize(("driver", "cuda"), [("580.82.07", "cuda13"), ("550.54.15", "cuda12")])
def test_the_driver_chooses_cuda(tmp_path, driver, cuda):
    done = local(tmp_path, CONFIG, "--seed", "1 2", smi=f'echo "{driver}"; echo "{driver}"')
    assert done.returncode == 0
    assert f"2 GPUs, driver {driver[:3]}: {cuda}" in done.stderr
    assert f"+ export EXTRAS={cuda}" in done.stdout
    assert done.stdout.endswith(f"+ launch/local.sh {CONFIG} --seed 1\\ 2\n")
    assert "CUDA_VISIBLE_DEVICES" not in done.stdout


def test_extras_overrule_the_driver_and_gpus_chooses(tmp_path):
    done = local(tmp_path, EXTRAS="wandb cuda12", GPUS="2,3")
    assert done.returncode == 0
    assert "+ export EXTRAS=wandb\\ cuda12\n" in done.stdout
    assert "+ export CUDA_VISIBLE_DEVICES=2\\,3\n" in done.stdout


@pytest.mark.parametrize("smi", ["echo no devices; exit 9", "echo No devices were found", "true"])
def test_no_gpu(tmp_path, smi):
    done = local(tmp_path, smi=smi)
    assert done.returncode == 1
    assert "nvidia-smi finds no GPU" in done.stderr


@pytest.mark.skipif(shutil.which("nvidia-smi") is not None, reason="this machine has nvidia-smi")
def test_a_dry_run_on_a_machine_without_nvidia(tmp_path):
    """As on a laptop: what would be done where there is a GPU."""
    done = local(tmp_path, CONFIG)
    assert done.returncode == 0
    assert "no nvidia-smi" in done.stderr
    assert "+ export EXTRAS=cuda13\n" in done.stdout
    assert done.stdout.endswith(f"+ launch/local.sh {CONFIG}\n")
    assert local(tmp_path, EXTRAS="wandb").stdout.startswith("+ export EXTRAS=cuda13\\ wandb\n")
    done = local(tmp_path, CONFIG, dry=())
    assert done.returncode == 1
    assert "no nvidia-smi" in done.stderr
    assert "--dry-run" in done.stderr


def test_a_dry_run_of_nothing(tmp_path):
    done = local(tmp_path, "nope.yaml", EXTRAS="cuda12")
    assert done.returncode == 2
    assert "nope.yaml: no such file" in done.stderr
    assert done.stdout == ""
