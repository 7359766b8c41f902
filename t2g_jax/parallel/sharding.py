"""Where arrays live: the mesh and one table that maps parameter paths to mesh axes."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, use_abstract_mesh
from jax.sharding import PartitionSpec as P

from t2g_jax.chunked import HeadSharding
from t2g_jax.config import MeshConfig
from t2g_jax.errors import T2GError

AnyMesh = Mesh | AbstractMesh
AXES = ("data", "fsdp", "context", "tensor")

Rules = Sequence[tuple[str, P]]

FSDP = ("fsdp", "context")
"""What parameters are spread over, beside tensor: devices that share a row have each a part."""

RULES: Rules = (
    (r"decoder/embed/embedding$", P("tensor", FSDP)),
    (r"decoder/layers/attention/(query|key|value)/kernel$", P(None, FSDP, "tensor", None)),
    (r"decoder/layers/attention/(query|key|value)/bias$", P(None, "tensor")),
    (r"decoder/layers/attention/out/kernel$", P(None, "tensor", None, FSDP)),
    (r"decoder/layers/mlp/(gate|up)/kernel$", P(None, FSDP, "tensor")),
    (r"decoder/layers/mlp/down/kernel$", P(None, "tensor", FSDP)),
    (r"decoder/layers/mlp/(gate|up)/bias$", P(None, "tensor")),
    (r"decoder/layers/mlp/router$", P(None, FSDP)),
    (r"decoder/layers/mlp/expert_(gate|up)$", P(None, None, FSDP, "tensor")),
    (r"decoder/layers/mlp/expert_down$", P(None, None, "tensor", FSDP)),
    (r"decoder/layers/(attention/(query|key|value)|mlp/(gate|up))/lora_a$", P(None, FSDP)),
    (
        r"decoder/layers/(attention/(query|key|value)|mlp/(gate|up))/lora_b$",
        P(None, None, "tensor"),
    ),
    (r"decoder/layers/(attention/out|mlp/down)/lora_a$", P(None, "tensor")),
    (r"decoder/layers/(attention/out|mlp/down)/lora_b$", P(None, None, FSDP)),
    (r"decoder/layers/(attention/out|mlp/down)/bias$", P()),
    (r"_norm/scale$", P()),
    (r"lm_head/kernel$", P(FSDP, "tensor")),
    (r"(value_head|span_head)/out/(kernel|bias)$", P()),
)
"""First match wins. Layers are stacked by `nn.scan`, so their first axis is the layer.

Adapters lie as their kernels: inputs and outputs over the same axes, the rank whole. Experts are
whole on every device that has a part of their width.
"""

EVERY = (*FSDP, "tensor")
"""All but data: devices that decode the same rows."""

DECODING: Sequence[tuple[str, Sequence[P]]] = (
    (
        r"attention/(query|key|value)/(kernel|lora_b)$",
        (P(None, None, EVERY), P(None, None, "tensor", FSDP)),
    ),
    (r"attention/out/(kernel|lora_a)$", (P(None, EVERY), P(None, "tensor", FSDP))),
    (r"mlp/(gate|up)/(kernel|lora_b)$", (P(None, None, EVERY),)),
    (r"mlp/down/(kernel|lora_a)$", (P(None, EVERY),)),
    (r"mlp/expert_(gate|up)$", (P(None, None, None, EVERY),)),
    (r"mlp/expert_down$", (P(None, None, EVERY),)),
    (r"mlp/router$|lora_[ab]$", (P(),)),
    (r"lm_head/kernel$", (P(None, EVERY),)),
)
"""Where weights lie while tokens are decoded, if it is not where `RULES` have them.

A token of each row is little to compute, and gathering layers for it would take much longer. So
weights stay and activations go to them: products that widen have their outputs split, those that
narrow their inputs ("Megatron-LM", arXiv 1909.08053), and devices exchange what enters and leaves
attention and MLP. The first spec that divides evenly; if none does, that of `RULES`.
"""

ROWS = ("data", "fsdp")
"""What the rows of a batch are spread over, as fully sharded data parallelism wants."""

BATCH = P(ROWS, "context")
"""Batches [B, T]: rows over data and fsdp, and each row over context, a stretch to a device."""


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh of `AXES` over all devices; an axis of −1 takes what others leave.

    Inner axes exchange the most, so they get the devices with the fastest links: those of one
    process and, on TPUs, neighbors in the torus. Of several TPU slices, whose links are slow, each
    holds a part of the data axis, and nothing but gradients crosses.

    Raises:
      T2GError: the axes do not multiply to the number of devices, or data is no multiple of the
        TPU slices.
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes: tuple[int, ...] = (config.data, config.fsdp, config.context, config.tensor)
    asked = ", ".join(f"{axis}={size}" for axis, size in zip(AXES, sizes, strict=True))
    fixed = math.prod(size for size in sizes if size != -1)
    if sizes.count(-1) > 1:
        raise T2GError(f"mesh: at most one axis may be -1, got {asked}")
    if len(devices) % fixed or (fixed != len(devices) and -1 not in sizes):
        multiple = "a multiple of " if -1 in sizes else ""
        raise T2GError(
            f"mesh {asked} needs {multiple}{fixed} devices, there are {len(devices)}: "
            "set mesh.data, mesh.fsdp, mesh.context and mesh.tensor to multiply to that"
        )
    shape = tuple(len(devices) // fixed if size == -1 else size for size in sizes)
    return Mesh(_arranged(devices, shape), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _arranged(devices: list[jax.Device], shape: tuple[int, ...]) -> np.ndarray:
    if devices[0].platform != "tpu":
        in_order = sorted(devices, key=lambda x: (_slice(x), x.process_index, x.id))
        return np.array(in_order, object).reshape(shape)
    slices = len(set(map(_slice, devices)))
    if slices == 1:
        return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    data, *inner = shape
    if data % slices:
        raise T2GError(
            f"mesh: the data axis ({data}) must be a multiple of the {slices} TPU slices, as no "
            "other axis may cross them: set mesh.data to such a multiple, and the others lower"
        )
    return mesh_utils.create_hybrid_device_mesh(
        (data // slices, *inner),
        (slices, *(1 for _ in inner)),
        devices,
        allow_split_physical_axes=True,
    )


def _slice(device: jax.Device) -> int:
    """Which of the groups of devices with fast links it is in."""
    return getattr(device, "slice_index", None) or 0


def param_specs(params: Any, rules: Rules = RULES) -> Any:
    """The PartitionSpec of every parameter.

    Raises:
      T2GError: a parameter matches no rule, or a rule uses an axis twice or too many dimensions.
    """

    def spec(path, leaf):
        name = path_name(path)
        for pattern, candidate in rules:
            if re.search(pattern, name):
                used = [axis for entry in candidate for axis in axes_of(entry)]
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

    What is neither lies whole on every device. Mesh axes that do not divide a dimension evenly are
    left out, the last ones first.
    """
    params = jax.tree.leaves_with_path(getattr(state, "params", state))
    specs = jax.tree.leaves(
        param_specs(getattr(state, "params", state), rules), is_leaf=lambda x: isinstance(x, P)
    )
    by_path = {
        path_name(path): (leaf.shape, divisible(spec, leaf.shape, mesh))
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


def decoding_shardings(params: Any, mesh: Mesh) -> Any:
    """The shardings of parameters while tokens are decoded, see `DECODING`."""

    def sharding(path, leaf, stored):
        name = path_name(path)
        specs = next((specs for pattern, specs in DECODING if re.search(pattern, name)), ())
        return NamedSharding(mesh, first_even([*specs, stored.spec], leaf.shape, mesh))

    return jax.tree.map_with_path(sharding, params, state_shardings(params, mesh))


def batch_sharding(mesh: Mesh, *, micro_batched: bool = False) -> NamedSharding:
    """The sharding of batches [B, T], see `BATCH`; a leading micro-batch axis is not sharded."""
    return NamedSharding(mesh, P(None, *BATCH) if micro_batched else BATCH)


def rows_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of sampled rows: each whole on one device, or on those of its tensor axis."""
    return NamedSharding(mesh, P((*ROWS, "context")))


def token_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of the residual stream [B, 1, D] while decoding: whole but for data."""
    return NamedSharding(mesh, P("data"))


def logits_sharding(mesh: Mesh, vocab_size: int) -> NamedSharding:
    """The sharding of logits [B, V] while tokens are decoded, as the LM head leaves them."""
    split = P("data", EVERY)
    return NamedSharding(mesh, first_even([split, P("data")], (0, vocab_size), mesh))


def heads_shardings(mesh: Mesh, heads: int, kv_heads: int, width: int) -> tuple[NamedSharding, ...]:
    """The shardings of queries, keys or values [B, 1, N, H] while tokens are decoded.

    First as weights compute or read them, see `DECODING`; then as attention does, where the cache
    has their rows.
    """
    specs = P("data", None, EVERY), P("data", None, "tensor", FSDP), P("data")
    split = first_even(specs, (0, 1, heads, width), mesh)
    rows = P((*ROWS, "context"), None, divisible(P("tensor"), (kv_heads,), mesh)[0])
    return NamedSharding(mesh, split), NamedSharding(mesh, rows)


def parts(mesh: AnyMesh, *axes: str) -> int:
    """The number of devices along some axes."""
    return math.prod(mesh.shape[axis] for axis in axes)


@contextlib.contextmanager
def within(mesh: Mesh | None) -> Iterator[None]:
    """Inside, what is traced can see the mesh, see `numerics.matrix_product`."""
    with contextlib.nullcontext() if mesh is None else use_abstract_mesh(mesh.abstract_mesh):
        yield


def lookup_sharding(mesh: Mesh, width: int) -> NamedSharding:
    """The sharding of [B, T, D] as it leaves the token embedding: D split as the embedding's.

    Each device looks up its part of D for the rows of others too; then rows go where they belong,
    an exchange of activations. Without it the compiler gathers the embedding.
    """
    return NamedSharding(mesh, P("data", None, *divisible(P(FSDP), (width,), mesh)))


def head_spread(kernel: Any, mesh: Mesh) -> HeadSharding:
    """How the LM head's kernel [D, V] lies and is read: gathered, but for tensor, by chunks."""
    stored, read = P(FSDP, "tensor"), P(None, "tensor")
    return HeadSharding(
        *(NamedSharding(mesh, divisible(spec, kernel.shape, mesh)) for spec in (stored, read))
    )


def path_name(path: tuple) -> str:
    """`decoder/layers/mlp/up/kernel` for a key path of jax.tree_util."""
    return "/".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path)


def vocab_shards(vocab_size: int, mesh: Mesh | None) -> int:
    """Parts that the LM head's columns are split into: of `token_logprobs_from_hidden`."""
    return 1 if mesh is None or vocab_size % mesh.shape["tensor"] else mesh.shape["tensor"]


def divisible(spec: P, shape: tuple[int, ...], mesh: AnyMesh) -> P:
    """The spec without the axes that do not divide their dimension evenly."""

    def fitting(entry: Any, size: int) -> Any:
        axes = axes_of(entry)
        while size % parts(mesh, *axes):
            axes = axes[:-1]
        return axes[0] if len(axes) == 1 else axes or None

    # A spec may leave the last dimensions out.
    return P(*(fitting(entry, size) for entry, size in zip(spec, shape, strict=False)))


def first_even(specs: Sequence[P], shape: tuple[int, ...], mesh: AnyMesh) -> P:
    """The first spec whose axes all divide their dimensions evenly; the last one must."""
    return next(spec for spec in specs if divisible(spec, shape, mesh) == spec)


def left_over(mesh: AnyMesh, *entries: Any) -> tuple[str, ...]:
    """The axes that these entries of a PartitionSpec do not use, in the mesh's order."""
    taken = {axis for entry in entries for axis in axes_of(entry)}
    return tuple(axis for axis in mesh.axis_names if axis not in taken)


def axes_of(entry: Any) -> tuple[str, ...]:
    """The mesh axes of one entry of a PartitionSpec: None, an axis, or a tuple of them."""
    return () if entry is None else (entry,) if isinstance(entry, str) else tuple(entry)
