"""Low-rank adapters: the linear layers of attention and MLP learn x W + (α / r) (x A) B, W fixed.

"LoRA: Low-Rank Adaptation of Large Language Models", Hu et al., arXiv 2106.09685. A and B are the
leaves `lora_a` and `lora_b` beside each `kernel`; `decoder.Linear` applies them where they are.
Fresh ones change nothing, as B is zero: the policy starts as its reference. Heads have no adapters,
they are trained themselves; embeddings, norms and the LM head stay as they are.
"""

from __future__ import annotations

import math
import zlib
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from t2g_jax.models.decoder import DecoderConfig
from t2g_jax.models.heads import Params

Array = jax.Array
Path = tuple[str, ...]

LAYERS = ("decoder", "layers")
ADAPTERS = ("lora_a", "lora_b")
HEADS = ("value_head", "span_head")
"""Trained beside the adapters."""


def add_adapters(params: Params, key: Array, *, rank: int) -> Params:
    """The same parameters with fresh adapters beside the kernels of all layers.

    A is uniform in ±1/√(inputs), as in Hugging Face's peft, and B zero.

    Args:
      params: without adapters. A kernel is [L, inputs…, outputs…], stacked over the layers.
      key: PRNG key.
      rank: r; A is [L, inputs…, r] and B [L, r, outputs…].
    """
    flat = flatten_dict(params)
    for path, kernel in list(flat.items()):
        if not _has_adapters(path):
            continue
        split_at = _input_end(path)
        layers, inputs, outputs = (
            kernel.shape[:1],
            kernel.shape[1:split_at],
            kernel.shape[split_at:],
        )
        bound = 1 / math.sqrt(math.prod(inputs))
        own_key = jax.random.fold_in(key, zlib.crc32("/".join(path).encode()))
        a = jax.random.uniform(own_key, (*layers, *inputs, rank), minval=-bound, maxval=bound)
        flat[*path[:-1], "lora_a"] = a
        flat[*path[:-1], "lora_b"] = jnp.zeros((*layers, rank, *outputs))
    return unflatten_dict(flat)


def without_adapters(params: Params) -> Params:
    """The parameters that the adapters were added to: the same arrays, no copy."""
    return _where(params, lambda path: path[-1] not in ADAPTERS)


def merge_adapters(params: Params, config: DecoderConfig) -> Params:
    """Parameters without adapters of the same function: each kernel is W + (α / r) A B."""
    flat = flatten_dict(params)
    merged = flatten_dict(without_adapters(params))
    for path in merged:
        if (*path[:-1], "lora_a") in flat and path[-1] == "kernel":
            a, b = (flat[*path[:-1], name] for name in ADAPTERS)
            change = jax.vmap(lambda a, b: jnp.tensordot(a, b, axes=1, precision="highest"))(a, b)
            merged[path] = merged[path] + config.lora_alpha / a.shape[-1] * change
    return unflatten_dict(merged)


def rank(params: Params) -> int:
    """The rank of the adapters, 0 if there are none."""
    ranks = (leaf.shape[-1] for path, leaf in flatten_dict(params).items() if path[-1] == "lora_a")
    return next(ranks, 0)


def split(params: Params) -> tuple[Params, Params]:
    """What is trained and what stays as it is; `join` puts them together again.

    With adapters these and the heads are trained; without, everything is, and nothing stays.
    """
    if not rank(params):
        return params, {}

    def trained(path: Path) -> bool:
        return path[-1] in ADAPTERS or path[0] in HEADS

    return _where(params, trained), _where(params, lambda path: not trained(path))


def join(trained: Params, frozen: Params) -> Params:
    """The parameters that `split` took apart: the same arrays, no copy."""
    if not frozen:
        return trained
    return unflatten_dict(flatten_dict(frozen) | flatten_dict(trained))


def input_axes(module: str) -> int:
    """Axes of inputs of a module's matrix: attention's output reads heads × head width."""
    return 2 if module == "out" else 1


def _where(params: Params, wanted: Any) -> Params:
    flat = flatten_dict(params)
    return unflatten_dict({path: leaf for path, leaf in flat.items() if wanted(path)})


def _has_adapters(path: Path) -> bool:
    """Whether a leaf is the kernel of a linear layer of attention or MLP."""
    return path[: len(LAYERS)] == LAYERS and path[-1] == "kernel"


def _input_end(path: Path) -> int:
    """Where the inputs of a stacked kernel end."""
    return 1 + input_axes(path[-2])
