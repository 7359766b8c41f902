"""launch/jobset.yaml: what Kubernetes would refuse, and what would go wrong without a word."""

import math
import pathlib
import re
import shlex
import subprocess
import tomllib

import pytest
import yaml

from t2g_jax.commands import parsers
from t2g_jax.config import load_config
from t2g_jax.runtime.hosts import ADDRESS, AUTO, EXIT_PREEMPTED

REPOSITORY = pathlib.Path(__file__).parents[2]
MANIFEST = REPOSITORY / "launch/jobset.yaml"


def for_gpus(text):
    """By the command in the file's own header."""
    command = re.search(r"sed '([^']+)' launch/jobset.yaml", text)[1]
    return subprocess.run(
        ["sed", command], input=text, capture_output=True, text=True, check=True
    ).stdout


@pytest.fixture(params=["tpu", "gpu"])
def kind(request):
    return request.param


@pytest.fixture
def jobset(kind):
    text = MANIFEST.read_text()
    return yaml.safe_load(text if kind == "tpu" else for_gpus(text))


@pytest.fixture
def job(jobset):
    (replicated,) = jobset["spec"]["replicatedJobs"]
    assert replicated.keys() == {"name", "replicas", "template"}
    return replicated["template"]["spec"]


@pytest.fixture
def pod(job):
    return job["template"]["spec"]


@pytest.fixture
def container(pod):
    (container,) = pod["containers"]
    return container


def test_is_a_jobset(jobset):
    assert jobset["apiVersion"] == "jobset.x-k8s.io/v1alpha2"
    assert jobset["kind"] == "JobSet"
    assert jobset["spec"].keys() == {"network", "failurePolicy", "replicatedJobs"}


def test_a_pod_for_each_host_of_the_slice(kind, job, pod, container):
    assert job["completionMode"] == "Indexed"
    assert job["parallelism"] == job["completions"]
    requests, limits = (container["resources"][name] for name in ("requests", "limits"))
    assert requests == limits
    assert len(requests) == 1
    selector = pod["nodeSelector"]
    if kind == "tpu":
        shape = selector["cloud.google.com/gke-tpu-topology"].split("x")
        chips = math.prod(map(int, shape))
        assert job["completions"] * requests["google.com/tpu"] == chips
    else:
        assert "nvidia.com/gpu" in requests
        assert not [key for key in selector if "tpu" in key]


def test_what_was_preempted_starts_again_and_what_fails_thrice_does_not(jobset, job, pod):
    assert job["backoffLimit"] == 0
    assert pod["restartPolicy"] == "Never"  # which podFailurePolicy asks for
    in_order, disrupted = job["podFailurePolicy"]["rules"]
    assert in_order["onExitCodes"]["values"] == [EXIT_PREEMPTED]
    assert in_order["onExitCodes"]["containerName"] == pod["containers"][0]["name"]
    assert disrupted["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]
    assert {rule["action"] for rule in (in_order, disrupted)} == {"FailJob"}
    (rule,) = jobset["spec"]["failurePolicy"]["rules"]
    assert rule["onJobFailureReasons"] == ["PodFailurePolicy"]
    assert rule["action"] == "RestartJobSetAndIgnoreMaxRestarts"
    assert jobset["spec"]["failurePolicy"]["maxRestarts"] == 3
    assert pod["terminationGracePeriodSeconds"] >= 300


@pytest.mark.parametrize(
    ("attempt", "seconds"), [(0, 0), (1, 1), (3, 7), (5, 31), (6, 60), (99, 60)]
)
def test_each_start_waits_longer_than_the_one_before(pod, container, tmp_path, attempt, seconds):
    (pause,) = pod["initContainers"]
    assert pause["image"] == container["image"]
    assert pause["env"][0]["valueFrom"]["fieldRef"]["fieldPath"].endswith("restart-attempt']")
    sleep = tmp_path / "sleep"
    sleep.write_text('#!/bin/sh\necho "$1"\n')
    sleep.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", pause["env"][0]["name"]: str(attempt)}
    done = subprocess.run(pause["command"], env=environment, capture_output=True, text=True)
    assert done.stdout == f"{seconds}\n"


def test_the_command_is_one_of_t2g_and_its_work_folder_is_in_the_bucket(pod, container):
    program, command, config, *rest = container["command"]
    assert program == "t2g"
    _, commands = parsers()
    arguments = commands[command].parse_args([config, *rest])
    load_config(REPOSITORY / config)
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    (name,) = (n for path, n in mounts.items() if arguments.workdir.is_relative_to(path))
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert volumes.keys() == set(mounts.values())
    assert volumes[name]["csi"]["driver"] == "gcsfuse.csi.storage.gke.io"


def test_the_processes_find_each_other(kind, jobset, job, container):
    variables = {entry["name"]: entry for entry in container["env"]}
    if kind == "tpu":
        assert variables[AUTO]["value"] == "auto"
        assert not set(ADDRESS) & variables.keys()
        return
    assert AUTO not in variables
    coordinator, count, index = (variables[name] for name in ADDRESS)
    # JobSet's name of the first pod of the first job: <jobset>-<job>-<index>-<pod>.<jobset>
    name = jobset["metadata"]["name"]
    replicated = jobset["spec"]["replicatedJobs"][0]["name"]
    host, port = coordinator["value"].split(":")
    assert host == f"{name}-{replicated}-0-0.{name}"
    assert jobset["spec"]["network"]["enableDNSHostnames"] is True
    assert int(port) in [entry["containerPort"] for entry in container["ports"]]
    assert count["value"] == str(job["completions"])
    assert "job-completion-index" in index["valueFrom"]["fieldRef"]["fieldPath"]


def test_variables_are_text_as_kubernetes_wants_them(container):
    assert all(isinstance(v["value"], str) for v in container["env"] if "value" in v)
    (source,) = container["envFrom"]
    assert source["secretRef"]["optional"] is True


def test_the_image_has_what_the_command_needs():
    lines = (REPOSITORY / "launch/Dockerfile").read_text().splitlines()
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    extras = next(line for line in lines if line.startswith("ARG ")).split("=")[1].split(",")
    assert set(extras) <= project["optional-dependencies"].keys()
    copied = [shlex.split(line)[1:-1] for line in lines if line.startswith("COPY ")]
    names = {name for line in copied for name in line}
    assert all((REPOSITORY / name).exists() for name in names)
    assert {"pyproject.toml", "t2g_jax", "configs", project["readme"]} <= names
