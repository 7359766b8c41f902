"""Where arrays live: the mesh and one table that maps parameter paths to mesh axes."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from t2g_jax.config import MeshConfig
from t2g_jax.errors import T2GError

AXES = ("data", "fsdp", "tensor")

Rules = Sequence[tuple[str, P]]

RULES: Rules = (
    (r"decoder/embed/embedding$", P("tensor", "fsdp")),
    (r"decoder/layers/attention/(query|key|value)/kernel$", P(None, "fsdp", "tensor", None)),
    (r"decoder/layers/attention/out/kernel$", P(None, "tensor", None, "fsdp")),
    (r"decoder/layers/mlp/(gate|up)/kernel$", P(None, "fsdp", "tensor")),
    (r"decoder/layers/mlp/down/kernel$", P(None, "tensor", "fsdp")),
    (r"decoder/layers/(attention/(query|key|value)|mlp/(gate|up))/lora_a$", P(None, "fsdp")),
    (
        r"decoder/layers/(attention/(query|key|value)|mlp/(gate|up))/lora_b$",
        P(None, None, "tensor"),
    ),
    (r"decoder/layers/(attention/out|mlp/down)/lora_a$", P(None, "tensor")),
    (r"decoder/layers/(attention/out|mlp/down)/lora_b$", P(None, None, "fsdp")),
    (r"_norm/scale$", P()),
    (r"lm_head/kernel$", P("fsdp", "tensor")),
    (r"(value_head|span_head)/out/(kernel|bias)$", P()),
)
"""First match wins. Layers are stacked by `nn.scan`, so their first axis is the layer.

Adapters lie as their kernels: inputs and outputs over the same axes, the rank whole.
"""

READ_WHOLE = {"decoder/embed/embedding": P("tensor"), "lm_head/kernel": P(None, "tensor")}
"""What lies whole over fsdp while a step reads it, see `as_read`."""

BATCH = P(("data", "fsdp"))
"""Rows of a batch: over both axes, as fully sharded data parallelism wants."""


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A ("data", "fsdp", "tensor") mesh over all devices; an axis of −1 takes what others leave.

    Raises:
      T2GError: the axes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    shape: tuple[int, ...] = (config.data, config.fsdp, config.tensor)
    asked = ", ".join(f"{axis}={size}" for axis, size in zip(AXES, shape, strict=True))
    fixed = math.prod(size for size in shape if size != -1)
    if shape.count(-1) > 1:
        raise T2GError(f"mesh: at most one axis may be -1, got {asked}")
    if len(devices) % fixed or (fixed != len(devices) and -1 not in shape):
        multiple = "a multiple of " if -1 in shape else ""
        raise T2GError(
            f"mesh {asked} needs {multiple}{fixed} devices, there are {len(devices)}: "
            "set mesh.data, mesh.fsdp and mesh.tensor to multiply to that"
        )
    shape = tuple(len(devices) // fixed if size == -1 else size for size in shape)
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)


def param_specs(params: Any, rules: Rules = RULES) -> Any:
    """The PartitionSpec of every parameter.

    Raises:
      T2GError: a parameter matches no rule, or a rule uses an axis twice or too many dimensions.
    """

    def spec(path, leaf):
        name = path_name(path)
        for pattern, candidate in rules:
            if re.search(pattern, name):
                used = [axis for entry in candidate for axis in _axes(entry)]
                if len(used) != len(set(used)) or len(candidate) > leaf.ndim:
                    raise T2GError(
                        f"rule {pattern!r} → {candidate} does not fit {name} of shape {leaf.shape}:"
                        " an axis may be used once, and no more entries than dimensions"
                    )
                return candidate
        raise T2GError(f"no sharding rule matches parameter {name} of shape {leaf.shape}")

    return jax.tree.map_with_path(spec, params)


def state_shardings(state: Any, mesh: Mesh, rules: Rules = RULES) -> Any:
    """Shardings of parameters or of a train state: moments lie as their parameters.

    What is neither lies whole on every device. An axis that does not divide evenly is left
    unsharded.
    """
    params = jax.tree.leaves_with_path(getattr(state, "params", state))
    specs = jax.tree.leaves(
        param_specs(getattr(state, "params", state), rules), is_leaf=lambda x: isinstance(x, P)
    )
    by_path = {
        path_name(path): (leaf.shape, _divisible(spec, leaf.shape, mesh))
        for (path, leaf), spec in zip(params, specs, strict=True)
    }

    def sharding(path, leaf):
        name = path_name(path)
        for param, (shape, spec) in by_path.items():
            # A moment's path ends with its parameter's path; factored moments have other shapes.
            if (name == param or name.endswith("/" + param)) and leaf.shape == shape:
                return NamedSharding(mesh, spec)
        return NamedSharding(mesh, P())

    return jax.tree.map_with_path(sharding, state)


def batch_sharding(mesh: Mesh, *, micro_batched: bool = False) -> NamedSharding:
    """Rows over data and fsdp; with a leading micro-batch axis that is not sharded."""
    return NamedSharding(mesh, P(None, *BATCH) if micro_batched else BATCH)


def as_read(params: Any, mesh: Mesh | None) -> Any:
    """Parameters inside a step: the token embedding and the LM head gathered over fsdp, once.

    The compiler gathers a layer when it runs it, if the residual stream is told to stay in rows.
    These two it would rather leave as they are and exchange activations, all rows of them.
    """

    def place(path, leaf):
        spec = READ_WHOLE.get(path_name(path))
        if spec is None:
            return leaf
        sharding = NamedSharding(mesh, _divisible(spec, leaf.shape, mesh))
        return jax.lax.with_sharding_constraint(leaf, sharding)

    return params if mesh is None else jax.tree.map_with_path(place, params)


def path_name(path: tuple) -> str:
    """`decoder/layers/mlp/up/kernel` for a key path of jax.tree_util."""
    return "/".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path)


def vocab_shards(vocab_size: int, mesh: Mesh | None) -> int:
    """Parts that the LM head's columns are split into, see `logprobs.from_hidden`."""
    return 1 if mesh is None or vocab_size % mesh.shape["tensor"] else mesh.shape["tensor"]


def _divisible(spec: P, shape: tuple[int, ...], mesh: Mesh) -> P:
    def parts(entry):
        return math.prod(mesh.shape[axis] for axis in _axes(entry))

    entries = zip(spec, shape, strict=False)  # a spec may leave the last dimensions out
    return P(*(None if size % parts(entry) else entry for entry, size in entries))


def _axes(entry: Any) -> tuple[str, ...]:
    """The mesh axes of one entry of a PartitionSpec: None, an axis, or a tuple of them."""
    return () if entry is None else (entry,) if isinstance(entry, str) else tuple(entry)
