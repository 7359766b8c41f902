"""`t2g plan`: whether a run fits on accelerators that nobody has rented yet."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import rich.console
from rich.text import Text
from typing_extensions import TypedDict

from t2g_jax import user_code
from t2g_jax.config import Config, to_yaml
from t2g_jax.errors import T2GError
from t2g_jax.installation import pip_install
from t2g_jax.plan import table
from t2g_jax.plan.advice import advise
from t2g_jax.plan.measure import Need, from_json
from t2g_jax.plan.topologies import Topology, topology
from t2g_jax.printing import one_line
from t2g_jax.runtime import files


def run(
    config: Config,
    name: str,
    *,
    only: str | None = None,
    json_file: Path | None = None,
    console: rich.console.Console | None = None,
) -> list[Need]:
    """Prints the plan of a config for a topology.

    Args:
      name: of the topology, see `topologies`.
      only: a phase, to plan for it alone.
      json_file: where the plan is written, too.
      console: where it is printed; None: stdout.

    Raises:
      T2GError: the name is not known, libtpu is missing, or the mesh does not fit the topology.
    """
    where = topology(name)
    if json_file is not None and not json_file.parent.is_dir():  # said before minutes of compiling
        raise T2GError(f"--json {json_file}: No such folder: {json_file.parent}")
    needs, mesh, basis = measure_programs(config, where, only)
    console = console or rich.console.Console(highlight=False)
    how = {
        "compiled": "compiled for it",
        "counted": "memory and time are counted, not compiled: expect temporaries to differ",
    }[basis]
    axes = ", ".join(f"{axis} {size}" for axis, size in mesh.items() if size > 1) or "one device"
    about = f"{config.name} on {where.name}: {where.chips} chips, {axes}; {how}"
    table.show(console, needs, where, about)
    if json_file is not None:
        found = table.as_json(needs, where, mesh)
        try:
            json_file.write_text(json.dumps(found, indent=2) + "\n")
        except OSError as error:
            raise T2GError(f"--json {json_file}: {error.strerror}") from error
    return needs


def measure_programs(
    config: Config, where: Topology, only: str | None = None
) -> tuple[list[Need], dict[str, int], str]:
    """What each program needs, the mesh, and whether that was "compiled" or "counted".

    The work is done by `worker` in a process of its own.
    """
    if where.chip.is_tpu and importlib.util.find_spec("libtpu") is None:
        raise T2GError(
            f"--topology {where.name} needs the compiler for TPUs, which runs without one: "
            f"{pip_install('plan')}"
        )
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"{config.name}.yaml"
        file.write_text(to_yaml(config), encoding="utf-8")
        with open(Path(folder) / "stderr", "w+", encoding="utf-8", errors="replace") as errors:
            worker = subprocess.Popen(
                [sys.executable, "-m", "t2g_jax.plan.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=_environment(where),
            )
            try:
                return _listen(worker, config, where, file, only)
            except _Ended as ended:
                exit_status = worker.wait()  # until then it may go on writing
                errors.seek(0)
                said = [line for line in errors.read().splitlines() if line.strip()]
                raise T2GError(
                    f"the compiler for {where.name} ended {ended} (exit status "
                    f"{exit_status}): {said[-1][:500] if said else 'it said nothing'}"
                ) from None
            finally:
                worker.kill()
                worker.wait()


class _Answer(TypedDict, total=False):
    """A line of the worker: one of these."""

    mesh: dict[str, int]
    basis: str
    begins: str
    need: dict[str, Any]
    done: bool
    error: str


class _Ended(Exception):
    """The worker ended before it was done."""


def _listen(
    worker: subprocess.Popen, config: Config, where: Topology, file: Path, only: str | None
) -> tuple[list[Need], dict[str, int], str]:
    request: dict[str, Any] = {"config": str(file), "topology": where.name, "only": only}
    request["folders"] = user_code.folders()
    with contextlib.suppress(BrokenPipeError):  # it has ended; what it said is read below
        worker.stdin.write(json.dumps(request))
        worker.stdin.close()
    mesh: dict[str, int] = {}
    answered = f"the answer of the compiler for {where.name}"
    basis, doing, done = "", "before it began", False
    needs: list[Need] = []
    status = rich.console.Console(stderr=True)
    with status.status(f"{where.name}: starting the compiler") as progress:
        for text in worker.stdout:
            line = files.parse_json(text, _Answer, where=answered)
            if "error" in line:
                raise T2GError(line["error"])
            mesh, basis = line.get("mesh", mesh), line.get("basis", basis)
            if "begins" in line:
                doing = f"while it compiled {line['begins']}"
                progress.update(Text(one_line(f"{where.name}: {line['begins']}")))
            if "need" in line:
                needs.append(advise(from_json(line["need"]), config, where, mesh))
            done = done or "done" in line
    if not done:
        raise _Ended(doing)
    return needs, mesh, basis


def _environment(where: Topology) -> dict[str, str]:
    """The worker's environment: JAX on the CPU, unless a GPU is asked for and may be there."""
    env = dict(os.environ)
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [_root(), env.get("PYTHONPATH")]))
    if where.chip.is_tpu:
        # No chip is touched, so another process may have libtpu, too.
        about = {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
        return env | {"JAX_PLATFORMS": "cpu"} | about
    devices = f"--xla_force_host_platform_device_count={where.chips}"
    env["XLA_FLAGS"] = f"{env.get('XLA_FLAGS', '')} {devices}".strip()
    return env


def _root() -> str:
    return str(Path(__file__).resolve().parents[2])
