"""Several processes of one run, as far as one can tell alone; tests/multihost/ has two."""

import importlib.util
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from t2g_jax.errors import T2GError
from t2g_jax.runtime import hosts


@pytest.fixture
def environment(monkeypatch):
    """environment(NAME=value, …) sets what `initialize` looks at; nothing else is set."""

    def environment(**values):
        for name in (hosts.AUTO, *hosts.ADDRESS):
            monkeypatch.delenv(name, raising=False)
        for name, value in values.items():
            monkeypatch.setenv(name, value)

    return environment


@pytest.fixture
def joined(monkeypatch):
    """What `jax.distributed.initialize` was called with."""
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda **settings: calls.append(settings))
    yield calls
    jax.config.update("jax_enable_preemption_service", True)


def test_nobody_is_looked_for_unless_asked(environment, joined):
    environment()
    hosts.initialize()
    environment(T2G_COORDINATOR="", T2G_DISTRIBUTED="")
    hosts.initialize()
    assert joined == []
    assert not hosts.several()
    assert hosts.is_primary()
    assert hosts.count() == 1


def test_an_address_says_all(environment, joined):
    environment(T2G_COORDINATOR="10.0.0.1:9876", T2G_NUM_PROCESSES="4", T2G_PROCESS_ID="3")
    hosts.initialize()
    (settings,) = joined
    assert settings["coordinator_address"] == "10.0.0.1:9876"
    assert (settings["num_processes"], settings["process_id"]) == (4, 3)
    assert settings["cluster_detection_method"] == "deactivate"


def test_says_whom_it_waits_for(environment, joined, capsys):
    """Before it waits: if nobody comes, JAX ends the process."""
    environment(**ADDRESS)
    hosts.initialize()
    said = capsys.readouterr().err
    assert "5 minutes at most: T2G_COORDINATOR=a:1, T2G_NUM_PROCESSES=2, T2G_PROCESS_ID=0" in said
    assert joined[0]["initialization_timeout"] == 300


def test_jax_finds_it_out(environment, joined):
    environment(T2G_DISTRIBUTED="auto")
    hosts.initialize()
    (settings,) = joined
    assert not {"coordinator_address", "cluster_detection_method"} & settings.keys()


ADDRESS = {"T2G_COORDINATOR": "a:1", "T2G_NUM_PROCESSES": "2", "T2G_PROCESS_ID": "0"}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"T2G_DISTRIBUTED": "yes"}, "T2G_DISTRIBUTED is 'yes'; it can only be auto"),
        ({"T2G_PROCESS_ID": "0"}, "T2G_PROCESS_ID needs T2G_COORDINATOR, T2G_NUM_PROCESSES too"),
        ({"T2G_DISTRIBUTED": "auto"} | ADDRESS, "leave out one or the other"),
        (ADDRESS | {"T2G_COORDINATOR": "a"}, "T2G_COORDINATOR is 'a'; give host:port"),
        (ADDRESS | {"T2G_COORDINATOR": "a:b"}, "T2G_COORDINATOR is 'a:b'; give host:port"),
        (ADDRESS | {"T2G_COORDINATOR": "a:99999"}, "T2G_COORDINATOR is 'a:99999'; give host:port"),
        (ADDRESS | {"T2G_PROCESS_ID": "2"}, "T2G_PROCESS_ID is '2' and T2G_NUM_PROCESSES '2'"),
        (ADDRESS | {"T2G_NUM_PROCESSES": "two"}, "T2G_NUM_PROCESSES 'two'; give numbers"),
    ],
)
def test_variables_that_make_no_sense(environment, joined, values, message):
    environment(**values)
    with pytest.raises(T2GError, match=message):
        hosts.initialize()
    assert joined == []


def test_who_finds_nobody_says_where_it_looked(environment, monkeypatch):
    def fail(**_):
        raise RuntimeError("DEADLINE_EXCEEDED: connect\nmore")

    monkeypatch.setattr(jax.distributed, "initialize", fail)
    environment(**ADDRESS)
    with pytest.raises(T2GError, match=r"DEADLINE_EXCEEDED: connect\); see to T2G_COORDINATOR=a:1"):
        hosts.initialize()
    jax.config.update("jax_enable_preemption_service", True)


@pytest.fixture
def nowhere(monkeypatch):
    """A machine where JAX finds no cluster, whatever it is in truth."""
    for name in ("KUBERNETES_SERVICE_HOST", "SLURM_JOB_ID", "OMPI_MCA_orte_hnp_uri"):
        monkeypatch.delenv(name, raising=False)
    for name in [name for name in os.environ if name.startswith(("TPU_", "SLURM_"))]:
        monkeypatch.delenv(name)
    yield monkeypatch
    jax.config.update("jax_enable_preemption_service", True)


def search(**values: str) -> str:
    """What a command says where JAX's own search finds nothing.

    In a process of its own: JAX looks for a cluster before its first computation only.
    """
    command = [
        sys.executable,
        "-W",
        "error",
        "-c",
        "from t2g_jax.runtime import hosts; hosts.initialize()",
    ]
    ended = subprocess.run(
        command, env=os.environ | values, capture_output=True, text=True, timeout=120
    )
    assert ended.returncode == 1, ended.stderr
    return ended.stderr.strip().splitlines()[-1]


def test_where_jax_finds_no_cluster_we_say_so(environment, nowhere):
    """JAX's own words are about an argument that nobody gave."""
    environment(T2G_DISTRIBUTED="auto")
    assert search() == (
        "t2g_jax.errors.T2GError: JAX found no Cloud TPU, Slurm or Kubernetes here "
        "(T2G_DISTRIBUTED=auto): leave T2G_DISTRIBUTED out to run alone, or set T2G_COORDINATOR, "
        "T2G_NUM_PROCESSES, T2G_PROCESS_ID on every process of the run"
    )


def test_in_a_pod_without_the_package_of_kubernetes_we_name_it(environment, nowhere):
    if importlib.util.find_spec("kubernetes"):
        pytest.skip("the package of Kubernetes is installed here")
    environment(T2G_DISTRIBUTED="auto")
    said = search(KUBERNETES_SERVICE_HOST="10.0.0.1")
    assert "pod of Kubernetes without its package: pip " in said
    assert "[k8s]'" in said


@pytest.mark.parametrize("failure", [OSError("metadata server\nis gone"), KeyError("SLURM_NTASKS")])
def test_whatever_a_cluster_raises_is_one_line(environment, nowhere, failure):
    def fail(**_):
        raise failure

    nowhere.setattr(jax.distributed, "initialize", fail)
    environment(T2G_DISTRIBUTED="auto")
    with pytest.raises(T2GError, match=r"did not find each other \(") as error:
        hosts.initialize()
    assert "\n" not in str(error.value)


def test_alone_everything_is_ones_own():
    made = object()
    assert hosts.broadcast_from_primary(lambda: made) is made
    with pytest.raises(KeyError):
        hosts.broadcast_from_primary(lambda: {}["nothing"])
    assert hosts.gathered({"a": 1}) == [{"a": 1}]
    (arrays,) = hosts.gathered_arrays({"x": np.arange(3)})
    np.testing.assert_array_equal(arrays["x"], [0, 1, 2])
    assert hosts.leave(3) == 3
    hosts.agree(None)
    with pytest.raises(T2GError, match=r"^the folder is gone$"):
        hosts.agree("the folder is gone")


def test_arrays_are_placed_and_fetched():
    mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    rows, whole = NamedSharding(mesh, P("x")), NamedSharding(mesh, P())
    tree = {"a": np.arange(16.0), "b": np.ones(3)}
    placed = hosts.place(tree, {"a": rows, "b": whole})
    assert placed["a"].sharding == rows
    assert placed["b"].sharding == whole
    keys = hosts.place(jax.random.split(jax.random.key(0), 8), rows)  # one for all, and keys
    assert keys.sharding.shard_shape(keys.shape) == (1,)
    fetched = hosts.fetch(placed)
    assert all(isinstance(leaf, np.ndarray) for leaf in fetched.values())
    jax.tree.map(np.testing.assert_array_equal, fetched, tree)
