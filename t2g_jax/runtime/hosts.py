"""Several processes, one run: how they find each other, and how they agree.

All processes of a run execute the same program on the same data. Only the first one asks judges and
writes files; what it alone can know comes to the others by `broadcast_from_primary`. So they take
the same turns, and meet in the same collective operations.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec

from t2g_jax.errors import T2GError, reason
from t2g_jax.installation import pip_install
from t2g_jax.printing import tell

EXIT_LOST = 70
"""EX_SOFTWARE of sysexits.h: this process is stuck, or another of its run is gone."""

AUTO = "T2G_DISTRIBUTED"
ADDRESS = ("T2G_COORDINATOR", "T2G_NUM_PROCESSES", "T2G_PROCESS_ID")
EXIT_PREEMPTED = 75
"""EX_TEMPFAIL of sysexits.h: nothing is wrong, run the same command again."""
_PATIENCE = 10
"""Seconds that a process that failed waits for the others before it ends."""
_SILENCE = 60
"""Seconds without a heartbeat after which a process counts as gone."""
_ARRIVAL = 300
"""Seconds that a process waits for the others at the beginning."""


def initialize() -> None:
    """Joins the other processes of the run, if the environment speaks of any.

    `T2G_COORDINATOR` (host:port of the first process), `T2G_NUM_PROCESSES` and `T2G_PROCESS_ID`
    (from 0) say all that is needed. With `T2G_DISTRIBUTED=auto` JAX finds it out itself: on Cloud
    TPU, under Slurm, Kubernetes and Open MPI. If the others do not come within five minutes, JAX
    ends the process (SIGABRT).

    Raises:
      T2GError: the variables contradict each other, or JAX cannot tell where the others are.
    """
    given = {name: os.environ[name] for name in ADDRESS if os.environ.get(name)}
    auto = os.environ.get(AUTO, "")
    if joined() or not (given or auto):
        return
    if auto not in ("", "auto"):
        raise T2GError(f"{AUTO} is {auto!r}; it can only be auto, or not be set")
    if auto and given:
        raise T2GError(f"{AUTO} and {', '.join(given)} are set; leave out one or the other")
    settings: dict[str, Any] = {}
    if given:
        if missing := [name for name in ADDRESS if name not in given]:
            raise T2GError(f"{', '.join(given)} needs {', '.join(missing)} too")
        settings = _address(*given.values())
    how = f"{AUTO}=auto" if auto else ", ".join(f"{k}={v}" for k, v in given.items())
    # SIGTERM is ours, see `preemption`.
    jax.config.update("jax_enable_preemption_service", False)
    # Said before: if nobody comes, JAX ends the process with a message of its own, far from this.
    waits = f"t2g: waiting for the other processes of the run, {_ARRIVAL // 60} minutes at most"
    tell(f"{waits}: {how}")
    try:
        with _ended_by_signals(), warnings.catch_warnings():
            # Said by `_no_cluster`, if it comes to that.
            warnings.filterwarnings("ignore", "Kubernetes environment detected")
            jax.distributed.initialize(
                **settings,
                initialization_timeout=_ARRIVAL,
                heartbeat_timeout_seconds=_SILENCE,
                shutdown_timeout_seconds=_SILENCE,
            )
    except Exception as error:  # whatever looks for a cluster, a library of its own, raises
        if auto and isinstance(error, ValueError) and "coordinator_address" in str(error):
            raise T2GError(_no_cluster()) from error
        raise T2GError(
            f"the processes of this run did not find each other ({reason(error)}); "
            f"see to {how}: all must be started, with the same command"
        ) from error


def _no_cluster() -> str:
    fix = f"leave {AUTO} out to run alone, or set {', '.join(ADDRESS)} on every process of the run"
    if "KUBERNETES_SERVICE_HOST" in os.environ and not find_spec("kubernetes"):
        fix = f"this is a pod of Kubernetes without its package: {pip_install('k8s')}; or {fix}"
    return f"JAX found no Cloud TPU, Slurm or Kubernetes here ({AUTO}=auto): {fix}"


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Inside, SIGTERM and Ctrl-C end the process at once; there is nothing to save yet.

    Python's own handlers would be called when the wait is over.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)}
    handled = {number: handler for number, handler in before.items() if callable(handler)}
    for number in handled:
        signal.signal(number, signal.SIG_DFL)
    try:
        yield
    finally:
        for number, handler in handled.items():
            signal.signal(number, handler)


def _address(coordinator: str, count: str, index: str) -> dict[str, Any]:
    host, _, port = coordinator.rpartition(":")
    if not (host and port.isdecimal() and 0 < int(port) < 2**16):
        raise T2GError(f"T2G_COORDINATOR is {coordinator!r}; give host:port of the first process")
    if not (count.isdecimal() and index.isdecimal() and int(index) < int(count)):
        raise T2GError(
            f"T2G_PROCESS_ID is {index!r} and T2G_NUM_PROCESSES {count!r}; give numbers, the first "
            "from 0 to one less than the second"
        )
    return {
        "coordinator_address": coordinator,
        "num_processes": int(count),
        "process_id": int(index),
        "cluster_detection_method": "deactivate",
    }


def joined() -> bool:
    """Whether `initialize` found the others."""
    return jax.distributed.is_initialized()


def count() -> int:
    """How many processes there are."""
    return jax.process_count() if joined() else 1


def several() -> bool:
    """Whether this process is one of several."""
    return count() > 1


def is_primary() -> bool:
    """Whether this is the process that writes files, asks judges and talks."""
    return not joined() or jax.process_index() == 0


_alone = False


def broadcast_from_primary(work: Callable[[], Any]) -> Any:
    """What `work` returns on the first process, on all of them; the others do not call it.

    It must be JSON (tuples become lists; NaN is allowed), and `work` must not need the others. A
    single process just does it.

    Raises:
      T2GError: `work` failed, on all processes.
    """
    global _alone
    if _alone or not several():
        return work()
    outcome: dict[str, Any] = {}
    failure: Exception | None = None
    if is_primary():
        _alone = True
        try:
            outcome["value"] = work()
        except Exception as error:
            failure, outcome["error"] = error, f"{error}" or type(error).__name__
        finally:
            _alone = False
    outcome = json.loads(_broadcast(json.dumps(outcome, default=_plain).encode()))
    if failure is not None:
        raise failure
    if "error" in outcome:
        raise T2GError(outcome["error"])
    return outcome["value"]


def agree(problem: str | None) -> None:
    """Goes on if no process has a problem; else all raise a T2GError that names the first one."""
    if not several():
        problems = [problem]
    else:
        problems = [part["problem"] for part in gathered({"problem": problem})]
    for process, found in enumerate(problems):
        if found is not None:
            where = f"process {process}: " if several() else ""
            raise T2GError(f"{where}{found}")


def require_alike(mine: Mapping[str, Any]) -> None:
    """Goes on if all processes have the same values, JSON; they would wait for each other forever.

    Raises:
      T2GError: one differs from the first process; on all of them, with the keys and both values.
    """
    mine = json.loads(json.dumps(mine))
    first = broadcast_from_primary(lambda: mine)
    keys = [key for key in first | mine if first.get(key) != mine.get(key)]
    shown = ", ".join(f"{key} is {mine.get(key)!r}, not {first.get(key)!r}" for key in keys[:8])
    agree(
        f"{shown}, as in process 0: start all with the same command, configuration and version"
        if keys
        else None
    )


def gathered(value: Any) -> list[Any]:
    """The values, JSON, of all processes in their order, on each of them."""
    if not several():
        return [value]
    return [json.loads(part) for part in _gathered(json.dumps(value).encode())]


def gathered_arrays(arrays: Mapping[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
    """As `gathered`, of NumPy arrays by name, whose shapes may differ from process to process."""
    if not several():
        return [dict(arrays)]
    mine = io.BytesIO()
    np.savez(mine, allow_pickle=False, **arrays)
    return [dict(np.load(io.BytesIO(part))) for part in _gathered(mine.getvalue())]


def _gathered(mine: bytes) -> list[bytes]:
    sizes = multihost_utils.process_allgather(np.array(len(mine), np.int32))
    parts = multihost_utils.process_allgather(_padded(mine, int(sizes.max())))
    return [part[:n].tobytes() for part, n in zip(parts, sizes, strict=True)]


def _plain(number: Any) -> Any:
    """NumPy's numbers as Python's."""
    return number.item()


def _broadcast(message: bytes) -> bytes:
    size = int(multihost_utils.broadcast_one_to_all(np.array(len(message), np.int32)))
    return multihost_utils.broadcast_one_to_all(_padded(message, size))[:size].tobytes()


def _padded(message: bytes, size: int) -> np.ndarray:
    """As an array of one of few lengths, each of which is compiled once."""
    padded = np.zeros(1 << max(size - 1, 1023).bit_length(), np.uint8)
    part = np.frombuffer(message, np.uint8)[: len(padded)]
    padded[: len(part)] = part
    return padded


# --- Arrays ---------------------------------------------------------------------------------------


def place(tree: Any, shardings: Any) -> Any:
    """Arrays, the same on every process, where the shardings say; each process puts its own part.

    Args:
      tree: NumPy arrays, or JAX's. Those that are spread over all processes already are moved.
      shardings: a tree of the same structure, or one for all.
    """
    if isinstance(shardings, jax.sharding.Sharding):
        only = shardings
        shardings = jax.tree.map(lambda _: only, tree)
    if not several():
        return jax.device_put(tree, shardings)

    def placed(x: Any, sharding: jax.sharding.Sharding) -> jax.Array:
        if isinstance(x, jax.Array) and not x.is_fully_addressable:
            return jax.device_put(x, sharding)
        if isinstance(x, jax.Array) and jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(placed(jax.random.key_data(x), sharding))
        whole = np.asarray(x)
        return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])

    return jax.tree.map(placed, tree, shardings)


def fetch(tree: Any) -> Any:
    """NumPy arrays of JAX's, whole on every process."""
    leaves, structure = jax.tree.flatten(tree)
    apart = {
        i: leaf
        for i, leaf in enumerate(leaves)
        if isinstance(leaf, jax.Array)
        and not (leaf.is_fully_addressable or leaf.is_fully_replicated)
    }
    if apart:
        one = next(iter(apart.values())).sharding
        assert isinstance(one, NamedSharding)
        whole = NamedSharding(one.mesh, PartitionSpec())
        together = jax.jit(_same, out_shardings=whole)(list(apart.values()))
        for i, leaf in zip(apart, together, strict=True):
            leaves[i] = leaf
    return jax.device_get(jax.tree.unflatten(structure, leaves))


def _same(x: Any) -> Any:
    return x


# --- The end --------------------------------------------------------------------------------------


def lost_another(error: Exception) -> bool:
    """Whether an error is what collective operations raise when another process is gone."""
    cause: BaseException | None = error
    while cause is not None and several():
        # The memory of one device may be exhausted at any time: that is a process's own failure.
        if isinstance(cause, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" not in str(cause):
            return True
        cause = cause.__cause__ or cause.__context__
    return False


def leave(status: int) -> int:
    """Ends the process with a status, if it is one of several; else returns it.

    One that is done, or was asked to stop, waits for the others. One that failed gives them a few
    seconds to fail the same way, and then ends without them. They end too: JAX ends processes that
    have lost another, and so does the watchdog.
    """
    if not joined():
        return status
    if status in (0, EXIT_PREEMPTED):
        multihost_utils.sync_global_devices("t2g leaves")
    shutdown = threading.Thread(target=jax.distributed.shutdown, daemon=True)
    shutdown.start()
    shutdown.join(_PATIENCE)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # the ordinary way waits for collective operations that will never end
