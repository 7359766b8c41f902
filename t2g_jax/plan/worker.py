"""`python -m t2g_jax.plan.worker`: measures the programs of a plan, in a process of its own.

Compilers for other machines are a library that can end its process, and JAX must be told of them
before it starts. Reads a request from stdin, writes a line of JSON for each program.
"""

from __future__ import annotations

import json
import os
import sys
from typing import IO, Any

import jax

from t2g_jax import user_code
from t2g_jax.config import load_config
from t2g_jax.errors import T2GError
from t2g_jax.parallel.sharding import make_mesh
from t2g_jax.plan import measure, topologies
from t2g_jax.plan.programs import programs


def main() -> int:
    request = json.loads(sys.stdin.read())
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answers:
        os.dup2(2, 1)  # what libraries print is no answer
        try:
            _answer(request, answers)
            _write(answers, {"done": True})
        except T2GError as error:
            _write(answers, {"error": str(error)})
    return 0


def _answer(request: dict[str, Any], answers: IO[str]) -> None:
    for folder in request["folders"]:
        user_code.look_in(folder)
    config = load_config(request["config"])
    topology = topologies.topology(request["topology"])
    devices, basis = _devices(topology)
    mesh = make_mesh(config.mesh, devices)
    _write(answers, {"mesh": dict(mesh.shape), "basis": basis})
    for program in programs(config, mesh, request["only"]):
        _write(answers, {"begins": f"{program.phase}: {program.name}"})
        if basis == "compiled":
            need = measure.compiled(program, topology)
        else:
            from t2g_jax.run import pretrained

            vocabulary = 0 if config.model.pretrained else config.tokenizer.vocabulary_size
            model = pretrained.decoder_config(config, vocabulary)
            need = measure.counted(program, topology, model, mesh)
        _write(answers, {"need": measure.to_json(need)})


def _devices(topology: topologies.Topology) -> tuple[list[Any], measure.Basis]:
    if topology.chip.is_tpu:
        from jax.experimental import topologies as jax_topologies

        options: dict[str, Any] = {}
        if topology.chip.cores == 2:
            options["chip_config_name"] = "megacore"
        if topology.chips == 1:  # libtpu takes a host to have four
            options["chips_per_host_bounds"] = [1, 1, 1]
        description = jax_topologies.get_topology_desc(
            topology.libtpu_name, platform="tpu", **options
        )
        return list(description.devices), "compiled"
    devices = jax.devices()
    if (
        devices[0].platform == "gpu"
        and topology.chip.device_kind in devices[0].device_kind
        and len(devices) >= topology.chips
    ):
        return devices[: topology.chips], "compiled"
    # Devices of the host stand in for them: shapes are all that is asked of them.
    return jax.devices("cpu")[: topology.chips], "counted"


def _write(answers: IO[str], line: dict[str, Any]) -> None:
    print(json.dumps(line), file=answers, flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
