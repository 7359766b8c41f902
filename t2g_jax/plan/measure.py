"""What one program needs on one chip: by the compiler where there is one, otherwise counted."""

from __future__ import annotations

import dataclasses
import re
import time
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import Mesh

from t2g_jax.models.decoder import DecoderConfig
from t2g_jax.parallel.sharding import parts
from t2g_jax.plan import hlo
from t2g_jax.plan.programs import Program
from t2g_jax.plan.topologies import GIB, Topology

Basis = Literal["compiled", "counted"]


@dataclasses.dataclass(frozen=True)
class Need:
    """What a program needs; bytes and seconds of one chip, unless said otherwise.

    memory: by kind; "temporaries" is what the compiler adds. total: its sum, at the program's peak.
    fits: total ≤ available. advice: what to change if not. flops, executed: of all chips, see
    `work.Work`. seconds: the longest of compute_seconds, memory_seconds and network_seconds, each
    at the maker's rate: no run is faster. mfu: flops / (seconds × peak of all chips): no run is
    better. compiler_seconds: the sum of what the compiler expects of each operation, None where it
    does not say. network: bytes received, by kind of collective, "counted" where no compiler told.
    problem: what the compiler said if it gave up.
    """

    phase: str
    name: str
    shape: str
    basis: Basis
    memory: dict[str, float]
    total: float
    available: float
    fits: bool
    flops: float
    executed: float
    tokens: int
    hbm_bytes: float
    compute_seconds: float
    memory_seconds: float
    network_seconds: float
    seconds: float
    mfu: float
    compiler_seconds: float | None = None
    network: dict[str, float] = dataclasses.field(default_factory=dict)
    compile_seconds: float = 0.0
    problem: str = ""
    advice: tuple[str, ...] = ()


def compiled(program: Program, topology: Topology) -> Need:
    """By compiling it for the topology whose devices its inputs lie on."""
    began = time.monotonic()
    try:
        executable = program.lower().compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error) and "Ran out of memory" not in str(error):
            raise
        return _too_large(program, topology, str(error), time.monotonic() - began)
    took = time.monotonic() - began
    found = executable.memory_analysis()
    text = _text(executable)
    # Results that do not lie where arguments were are temporaries, too.
    beyond = found.temp_size_in_bytes + found.generated_code_size_in_bytes
    beyond += found.output_size_in_bytes - found.alias_size_in_bytes
    # Layouts pad some arguments.
    padding = max(found.argument_size_in_bytes - sum(program.inputs.values()), 0)
    return _need(
        program,
        topology,
        temporaries=beyond + padding,
        network=hlo.collective_bytes(text, unknown_trips=program.loop) if text else None,
        cycles=hlo.cycles(text, unknown_trips=program.loop) if text else 0.0,
        took=took,
    )


def counted(program: Program, topology: Topology, model: DecoderConfig, mesh: Mesh) -> Need:
    """By a count of what is in memory at the peak: an estimate."""
    return _need(program, topology, temporaries=_temporaries(program, model, mesh), basis="counted")


def _text(executable: Any) -> str:
    """The compiled program's text; "" where XLA cannot print what libtpu compiled.

    Some of libtpu's asynchronous operations have more operands than jaxlib's printer allows.
    """
    try:
        return executable.as_text()
    except jax.errors.JaxRuntimeError as error:
        if "RET_CHECK" not in str(error):
            raise
        return ""


def _need(
    program: Program,
    topology: Topology,
    *,
    temporaries: float,
    network: dict[str, float] | None = None,
    cycles: float = 0.0,
    took: float = 0.0,
    problem: str = "",
    basis: Basis = "compiled",
) -> Need:
    chip, work = topology.chip, program.work
    inside = {kind: min(size, temporaries) for kind, size in program.inside.items()}
    rest = {"temporaries": max(temporaries - sum(inside.values()), 0.0)}
    memory = program.inputs | program.resident | inside | rest
    total = sum(memory.values())
    compute = work.executed / topology.chips / chip.flops
    reading = work.hbm_bytes / chip.bandwidth
    if network is None:
        network = {"counted": work.network_bytes} if work.network_bytes else {}
    exchange = sum(network.values()) / topology.link
    seconds = max(compute, reading, exchange)
    return Need(
        phase=program.phase,
        name=program.name,
        shape=program.shape,
        basis=basis,
        memory=memory,
        total=total,
        available=chip.memory,
        fits=total <= chip.memory and not problem,
        flops=work.flops,
        executed=work.executed,
        tokens=work.tokens,
        hbm_bytes=work.hbm_bytes,
        compute_seconds=compute,
        memory_seconds=reading,
        network_seconds=exchange,
        seconds=seconds,
        mfu=work.flops / (seconds * chip.flops * topology.chips),
        compiler_seconds=cycles / chip.clock if cycles and chip.clock else None,
        network=network,
        compile_seconds=took,
        problem=problem,
    )


def _too_large(program: Program, topology: Topology, message: str, took: float) -> Need:
    """A program that the compiler found no memory for; it says how much it wanted."""
    wanted = [float(x) for x in re.findall(r"\(([\d.]+)G\)", message)]
    inputs = sum(program.inputs.values())
    # What it names is all that lies in memory while the program runs, or its temporaries alone.
    temporaries = max(max(wanted, default=0.0) * GIB - inputs, 0.0)
    line = message.splitlines()[0][:300]
    return _need(program, topology, temporaries=temporaries, took=took, problem=line)


def _temporaries(program: Program, model: DecoderConfig, mesh: Mesh) -> float:
    """Gradients, what layers keep for the backward pass, one layer at work, a chunk of logits."""
    rows, length = _tokens_at_once(program.shape)
    tokens = rows * length / parts(mesh, "data", "fsdp", "context")
    size = np.dtype(model.dtype).itemsize
    inside = sum(program.inside.values())
    tensor = parts(mesh, "tensor")
    experts = max(model.experts_per_token if model.experts else 1, 1)
    wide = (4 * model.width * tensor + 3 * experts * model.mlp_width) / tensor
    wide += 4 * (model.heads + model.kv_heads) * model.head_width / tensor
    layer_weights = _layer_size(model) * size / tensor
    at_work = 2 * tokens * wide * size + 2 * layer_weights
    if model.attention == "xla":
        scores = model.heads * length * 4 / tensor * (3 if program.name == "update" else 2)
        at_work += tokens * scores
    logits = 3 * tokens * 4096 * 4
    if program.name == "update":
        kept = {"full": model.width, "products": wide + 2 * model.width, "none": 3 * wide}
        kept_bytes = tokens * model.layers * kept[model.remat] * size
        return inside + kept_bytes + 2 * at_work + logits
    if program.name == "sample":
        if model.param_dtype == model.dtype:
            return inside + at_work
        converted = model.layers * _layer_size(model) * size / parts(mesh, "tensor", "fsdp")
        return inside + converted + at_work
    return at_work + logits


def _layer_size(model: DecoderConfig) -> float:
    attention = 2 * model.width * (model.heads + model.kv_heads) * model.head_width
    return attention + 3 * max(model.experts, 1) * model.width * model.mlp_width


def _tokens_at_once(shape: str) -> tuple[int, int]:
    """Rows and length of a shape as programs write it: "4 × [16, 4096]", "[16, 96 + 32]"."""
    inner = re.search(r"\[(\d+), (\d+)", shape)
    return int(inner[1]), int(inner[2])


def to_json(need: Need) -> dict[str, Any]:
    return dataclasses.asdict(need)


def from_json(data: dict[str, Any]) -> Need:
    return Need(**data | {"advice": tuple(data.get("advice", ()))})
