"""What to change in a config so that a program fits."""

from __future__ import annotations

import dataclasses
import math

from t2g_jax.config import Config, OptimizerConfig, section_of
from t2g_jax.plan.measure import Need
from t2g_jax.plan.topologies import GIB, Topology
from t2g_jax.run.workspace import ANNOTATE, SFT


def advise(need: Need, config: Config, topology: Topology, mesh: dict[str, int]) -> Need:
    """The same need; if it does not fit, with what to change, what helps most first."""
    if need.fits:
        return need
    how = {"update": _update, "sample": _sample}.get(need.name, _fewer_rows)
    found = [*how(need, config, mesh), *_everywhere(need, config, topology, mesh)]
    return dataclasses.replace(need, advice=tuple(dict.fromkeys(found)))


def _update(need: Need, config: Config, mesh: dict[str, int]) -> list[str]:
    settings = getattr(config, section_of(need.phase))
    path, found = section_of(need.phase), []
    rows = _rows_per_chip(need, mesh)
    if config.model.remat != "full":
        found.append("model.remat: full")
    if rows > 1:
        room, parts = _room(need, "temporaries"), 2
        while parts < rows and need.memory["temporaries"] > parts * room:
            parts *= 2
        found.append(f"{path}.micro_batches: {settings.micro_batches * min(parts, rows)}")
    if config.lora.rank == 0:
        found += _optimizer(need, settings.optimizer, config, path)
        if need.phase != SFT:
            found.append("lora.rank: 16 (adapters: no optimizer state and no copy as a reference)")
    if rows == 1 and need.memory.get("temporaries", 0) > need.available / 3:
        found.append(
            f"mesh.context: {2 * mesh['context']} (each row over several chips), with "
            f"mesh.fsdp: {max(mesh['fsdp'] // 2, 1)}"
        )
    return found


def _optimizer(need: Need, optimizer: OptimizerConfig, config: Config, path: str) -> list[str]:
    found: list[str] = []
    state = need.memory.get("optimizer", 0.0)
    if config.model.param_dtype == "float32":
        found.append(
            f"model.param_dtype: bfloat16 with {path}.optimizer.rounding: stochastic (weights and "
            f"what is kept beside: {_gib(need.memory.get('weights', 0) / 2)} less each)"
        )
    elif optimizer.rounding == "float32_copy":
        found.append(f"{path}.optimizer.rounding: stochastic (no float32 copy of the weights)")
    if optimizer.name == "adamw":
        found.append(f"{path}.optimizer.name: adafactor (up to {_gib(state)} less)")
        if optimizer.moment_dtype == "float32":
            found.append(f"{path}.optimizer.moment_dtype: bfloat16 ({_gib(state / 4)} less)")
    return found


def _sample(need: Need, config: Config, mesh: dict[str, int]) -> list[str]:
    found = _fewer_rows(need, config, mesh)
    if mesh["tensor"] == 1 and math.prod(mesh.values()) > 1:
        found.append("mesh.tensor: 2 or more, up to model's kv_heads")
    found.append("a lower model.context_length or sampling.max_new_tokens")
    return found


def _fewer_rows(need: Need, config: Config, mesh: dict[str, int]) -> list[str]:
    """As many as there is room for, if all but weights and what is kept grows with them."""
    grows = ("temporaries", "KV cache")
    room = _room(need, *grows)
    if _rows_per_chip(need, mesh) <= 1 or room <= 0:
        return []
    path = section_of(need.phase)
    settings = getattr(config, path)
    what, now = "rows_at_once", _rows(need)
    if hasattr(settings, "batch_size"):
        what, now = "batch_size", settings.batch_size
    fitting = int(now * room / sum(need.memory.get(kind, 0.0) for kind in grows))
    return [f"{path}.{what}: {max(min(fitting, now // 2), 1)} (fewer rows at once)"]


def _room(need: Need, *kinds: str) -> float:
    """Bytes that are there for these kinds of memory."""
    return need.available - need.total + sum(need.memory.get(kind, 0.0) for kind in kinds)


def _everywhere(need: Need, config: Config, topology: Topology, mesh: dict[str, int]) -> list[str]:
    found: list[str] = []
    if config.model.compute_dtype == "float32":
        found.insert(0, "model.compute_dtype: bfloat16")
    if mesh["data"] > 1:
        found.insert(
            0,
            f"mesh: {{data: 1, fsdp: {mesh['data'] * mesh['fsdp']}}} (weights and optimizer spread "
            "over all chips)",
        )
    if config.model.param_dtype == "float32" and (need.name != "update" or config.lora.rank):
        found.append("model.param_dtype: bfloat16 (halves the weights)")
    if need.phase in (SFT, ANNOTATE) or mesh["data"] == 1:
        factor = -(-need.total // need.available)
        chips = topology.chips * 2 ** max((int(factor) - 1).bit_length(), 1)
        found.append(f"{chips} chips of {topology.chip.name}, or chips with more memory")
    return found


def _rows_per_chip(need: Need, mesh: dict[str, int]) -> int:
    split = mesh["data"] * mesh["fsdp"]
    if need.name == "sample":
        split *= mesh["context"]
    return _rows(need) // split


def _rows(need: Need) -> int:
    return int(need.shape.split("[")[1].split(",")[0])


def _gib(size: float) -> str:
    return f"{size / GIB:.1f} GiB"
