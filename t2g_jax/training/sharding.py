"""Where arrays live: the mesh and one table that maps parameter paths to mesh axes."""

from __future__ import annotations

import re
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from t2g_jax.config import MeshConfig
from t2g_jax.errors import T2GError

AXES = ("data", "fsdp", "tensor")

RULES: tuple[tuple[str, P], ...] = (
    (r"decoder/embed/embedding$", P("tensor", "fsdp")),
    (r"decoder/layers/attention/(query|key|value)/kernel$", P(None, "fsdp", "tensor", None)),
    (r"decoder/layers/attention/out/kernel$", P(None, "tensor", None, "fsdp")),
    (r"decoder/layers/mlp/(gate|up)/kernel$", P(None, "fsdp", "tensor")),
    (r"decoder/layers/mlp/down/kernel$", P(None, "tensor", "fsdp")),
    (r"_norm/scale$", P()),
    (r"lm_head/kernel$", P("fsdp", "tensor")),
    (r"(value_head|span_head)/out/(kernel|bias)$", P()),
)
"""First match wins. Layers are stacked by `nn.scan`, so their first axis is the layer."""

BATCH = P(("data", "fsdp"))
"""Rows of a batch: over both axes, as fully sharded data parallelism wants."""


def make_mesh(config: MeshConfig, devices: list[jax.Device] | None = None) -> Mesh:
    """A ("data", "fsdp", "tensor") mesh over all devices; an axis of −1 takes what the others leave.

    Raises:
      T2GError: the axes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    shape = [config.data, config.fsdp, config.tensor]
    if shape.count(-1) > 1:
        raise T2GError(f"mesh: at most one axis may be -1, got {dict(zip(AXES, shape))}")
    fixed = 1
    for size in shape:
        fixed *= 1 if size == -1 else size
    shape = [len(devices) // fixed if size == -1 else size for size in shape]
    total = shape[0] * shape[1] * shape[2]
    if total != len(devices):
        raise T2GError(
            f"mesh {dict(zip(AXES, shape))} needs {max(total, fixed)} devices, "
            f"there are {len(devices)}: set mesh.data, mesh.fsdp and mesh.tensor to multiply to that"
        )
    return jax.make_mesh(tuple(shape), AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)


def param_specs(params: Any, rules=RULES) -> Any:
    """The PartitionSpec of every parameter.

    Raises:
      T2GError: a parameter matches no rule, or a rule uses an axis twice or too many dimensions.
    """

    def spec(path, leaf):
        name = path_name(path)
        for pattern, candidate in rules:
            if re.search(pattern, name):
                used = [axis for axis in candidate if axis is not None]
                if len(used) != len(set(used)) or len(candidate) > leaf.ndim:
                    raise T2GError(f"rule {pattern!r} → {candidate} does not fit {name}")
                return candidate
        raise T2GError(f"no sharding rule matches parameter {name} of shape {leaf.shape}")

    return jax.tree.map_with_path(spec, params)


def state_shardings(state: Any, mesh: Mesh, rules=RULES) -> Any:
    """Shardings of parameters or of a train state: moments lie as their parameters.

    What is neither lies whole on every device.

    An axis that does not divide evenly is left unsharded.
    """
    params = getattr(state, "params", state)
    by_path = {
        path_name(path): (leaf.shape, spec)
        for (path, leaf), spec in zip(
            jax.tree.leaves_with_path(params),
            jax.tree.leaves(param_specs(params, rules), is_leaf=lambda x: isinstance(x, P)),
        )
    }

    def sharding(path, leaf):
        name = path_name(path)
        for param, (shape, spec) in by_path.items():
            # A moment's path ends with its parameter's path; factored moments have other shapes.
            if (name == param or name.endswith("/" + param)) and leaf.shape == shape:
                return NamedSharding(mesh, _divisible(spec, shape, mesh))
        return NamedSharding(mesh, P())

    return jax.tree.map_with_path(sharding, state)


def batch_sharding(mesh: Mesh, *, micro_batched: bool = False) -> NamedSharding:
    """Rows over data and fsdp; with a leading micro-batch axis that is not sharded."""
    return NamedSharding(mesh, P(None, *BATCH) if micro_batched else BATCH)


def path_name(path: tuple) -> str:
    """`decoder/layers/mlp/up/kernel` for a key path of jax.tree_util."""
    return "/".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path)


def _divisible(spec: P, shape: tuple[int, ...], mesh: Mesh) -> P:
    return P(
        *(
            axis if axis is None or size % mesh.shape[axis] == 0 else None
            for axis, size in zip(spec, shape)
        )
    )
