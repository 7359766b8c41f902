"""How much a step function has to compute and to move, counted from shapes.

The compiler's own counts take a loop's body once; these are sums over matrix products, and what
tests compare with the compiler's count where there is no loop.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
from jax.sharding import Mesh

from t2g_jax.models import lora
from t2g_jax.models.decoder import DecoderConfig
from t2g_jax.parallel.sharding import parts


@dataclasses.dataclass(frozen=True)
class Work:
    """What all devices do together.

    flops: that the mathematics needs, each once: what MFU counts. executed: with what is computed
    again in the backward pass. tokens: read or generated. hbm_bytes: that one device reads from and
    writes to its memory, at least. network_bytes: that it receives, where nothing was compiled
    that says so: layers gathered for each pass, gradients scattered.
    """

    flops: float
    executed: float
    tokens: int
    hbm_bytes: float
    network_bytes: float = 0.0

    def __add__(self, other: Work) -> Work:
        """What both take for the same tokens, one after the other."""
        return Work(
            self.flops + other.flops,
            self.executed + other.executed,
            self.tokens,
            self.hbm_bytes + other.hbm_bytes,
            self.network_bytes + other.network_bytes,
        )


def layer_flops(model: DecoderConfig, rank: int = 0) -> float:
    """FLOPs a token of the linear layers of all blocks, forward."""
    width, experts = model.width, max(model.experts_per_token if model.experts else 1, 1)
    queries, keys = model.heads * model.head_width, model.kv_heads * model.head_width
    linear = [(width, queries), (width, keys), (width, keys), (queries, width)]
    mlp = [(width, model.mlp_width)] * 2 + [(model.mlp_width, width)]
    products = sum(2 * i * o for i, o in linear) + experts * sum(2 * i * o for i, o in mlp)
    products += 2 * width * model.experts
    adapted = linear + ([] if model.experts else mlp)
    adapters = sum(2 * rank * (i + o) for i, o in adapted)
    return float(model.layers * (products + adapters))


def attention_flops(model: DecoderConfig, length: float, *, causal: bool = True) -> float:
    """FLOPs a token of a row, forward: scores and mixed values; half of the pairs if causal."""
    seen = length / 2 if causal else length
    total = 0.0
    for local in model.locality:
        pairs = min(seen, model.window) if local and model.window and causal else seen
        total += 4 * pairs * model.heads * model.head_width
    return total


def head_flops(model: DecoderConfig) -> float:
    """FLOPs a token of the LM head, forward."""
    return 2.0 * model.width * model.vocab_size


def update_work(
    model: DecoderConfig,
    params: Any,
    mesh: Mesh,
    *,
    rows: int,
    length: int,
    micro_batches: int,
    with_logits: bool,
    state_bytes: float,
    gradient_bytes: float,
    passes_over_head: int = 1,
) -> Work:
    """An update on rows × length tokens.

    Forward F; backward 2 F, or F where adapters are trained, as frozen weights have no gradient.
    Executed: once more F of the layers with remat full, of attention alone with products; the LM
    head's logits once more, and once more for each further pass.
    """
    rank, tokens = lora.rank(params), rows * length
    linear, pairs = layer_flops(model, rank), attention_flops(model, length)
    head = head_flops(model) if with_logits else 0.0
    back = 1 if rank else 2
    again = {"none": 0.0, "products": pairs, "full": linear + pairs}[model.remat]
    flops = (linear + head) * (1 + back) + 3 * pairs
    executed = flops + again + passes_over_head * head
    passes = 2 + (model.remat == "full")
    moved = micro_batches * passes * _layers_bytes(model, params, mesh)
    moved += 2 * state_bytes + 2 * micro_batches * gradient_bytes
    moved += passes * _activation_bytes(model, tokens / _token_parts(mesh))
    received = micro_batches * _gathered_bytes(model, params, mesh) * (2 if rank else 3)
    data = parts(mesh, "data")
    received += 2 * gradient_bytes * (data - 1) / data
    return Work(flops * tokens, executed * tokens, tokens, moved, received)


def forward_work(
    model: DecoderConfig, params: Any, mesh: Mesh, *, rows: int, length: int, heads: int = 1
) -> Work:
    """A pass without gradients over rows × length tokens, and so many LM heads."""
    tokens = rows * length
    a_token = layer_flops(model, lora.rank(params)) + attention_flops(model, length)
    flops = tokens * (a_token + heads * head_flops(model))
    moved = _layers_bytes(model, params, mesh)
    moved += _activation_bytes(model, tokens / _token_parts(mesh))
    return Work(flops, flops, tokens, moved, _gathered_bytes(model, params, mesh))


def sampling_work(
    model: DecoderConfig, params: Any, mesh: Mesh, *, rows: int, prompt: int, new: int
) -> Work:
    """Prefill, then `new` tokens of every row; each reads the whole cache and the weights.

    Those are laid out anew after the prefill, and then stay: a device reads its part of them.
    """
    prefill = forward_work(model, params, mesh, rows=rows, length=prompt, heads=0)
    slots = prompt + new
    a_token = layer_flops(model, lora.rank(params)) + head_flops(model)
    decode = rows * new * (a_token + attention_flops(model, slots, causal=False))
    its_part = _layers_bytes(model, params, mesh) / parts(mesh, "fsdp", "context")
    relaid = prefill.network_bytes / parts(mesh, "fsdp", "context")
    a_step = its_part + cache_bytes(model, mesh, rows, slots)
    return Work(
        prefill.flops + decode,
        prefill.executed + decode,
        rows * new,
        prefill.hbm_bytes + new * a_step,
        prefill.network_bytes + relaid + new * _exchanged_bytes(model, mesh, rows),
    )


def cache_bytes(model: DecoderConfig, mesh: Mesh, rows: int, slots: int) -> float:
    """Keys and values of rows × slots tokens, on one device."""
    a_token = (
        2 * model.layers * model.kv_heads * model.head_width * jax.numpy.dtype(model.dtype).itemsize
    )
    return a_token * slots * math.ceil(rows / parts(mesh, "data", "fsdp", "context"))


def _gathered_bytes(model: DecoderConfig, params: Any, mesh: Mesh) -> float:
    """What a device lacks of all parameters."""
    devices = parts(mesh, "fsdp", "context")
    return _layers_bytes(model, params, mesh) * (devices - 1) / devices


def _exchanged_bytes(model: DecoderConfig, mesh: Mesh, rows: int) -> float:
    """A token of all rows: sums after attention and MLP, and heads and logits that change sides."""
    devices = parts(mesh, "fsdp", "context", "tensor")
    size = jax.numpy.dtype(model.dtype).itemsize
    shared = rows / parts(mesh, "data")
    own = shared / parts(mesh, "fsdp", "context")
    sums = 2 * 2 * shared * model.width * size
    moved = 2 * own * (model.heads + model.kv_heads) * model.head_width * size
    logits = 4 * own * model.vocab_size
    return (model.layers * (sums + moved) + logits) * (devices - 1) / devices


def _layers_bytes(model: DecoderConfig, params: Any, mesh: Mesh) -> float:
    """All parameters as products read them on one device: whole but for the tensor axis."""
    size = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
    return size * jax.numpy.dtype(model.dtype).itemsize / parts(mesh, "tensor")


def _activation_bytes(model: DecoderConfig, tokens: float) -> float:
    """What the layers write and read again for so many tokens, one pass."""
    experts = max(model.experts_per_token if model.experts else 1, 1)
    wide = 8 * model.width + 2 * model.heads * model.head_width + 4 * experts * model.mlp_width
    return 2 * tokens * model.layers * wide * jax.numpy.dtype(model.dtype).itemsize


def _token_parts(mesh: Mesh) -> int:
    return parts(mesh, "data", "fsdp", "context")
