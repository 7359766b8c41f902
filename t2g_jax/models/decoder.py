"""A Llama-style decoder in Flax Linen: RMSNorm, rotary positions, grouped-query attention, SwiGLU.

Nothing here knows about meshes, losses or sampling. One call serves training, prefill and decoding:

    hidden, fresh = Decoder(config).apply({"params": p}, tokens, positions, segment_ids, cache)

`fresh` holds the keys and values of just these tokens; whoever decodes writes them into its cache.
The decoder only reads the cache, so a decoding loop can update it in place.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import einops
import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from t2g_jax.numerics import matrix_product

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """The shape of a decoder. Hashable, so it can be a static argument of jitted functions."""

    vocab_size: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    head_width: int
    mlp_width: int
    rope_theta: float = 10_000.0
    norm_epsilon: float = 1e-5
    tie_embeddings: bool = True
    dtype: Any = jnp.float32
    """Of activations and matrix products; parameters stay float32."""
    remat: bool = False
    """Recompute whole layers in the backward pass instead of keeping their matrix products."""
    lora_alpha: float = 32.0
    """Low-rank adapters, if the parameters have them, count alpha / rank; see `models.lora`."""

    def __post_init__(self):
        if self.heads % self.kv_heads:
            raise ValueError(f"heads={self.heads} is not a multiple of kv_heads={self.kv_heads}")
        if self.head_width % 2:
            raise ValueError(f"head_width={self.head_width} must be even for rotary positions")


@struct.dataclass
class Cache:
    """Keys and values of earlier tokens, and which sequence each slot belongs to.

    keys: [L, B, K, H, S] and values: [L, B, K, S, H], as attention reads them; segment_ids: [B, S],
    0 marks an empty slot.
    Slots need not be contiguous: rotary positions are already inside the keys.
    """

    keys: Array
    values: Array
    segment_ids: Array

    @classmethod
    def empty(cls, config: DecoderConfig, batch: int, slots: int) -> Cache:
        shape = (config.layers, batch, config.kv_heads)
        keys = jnp.zeros((*shape, config.head_width, slots), config.dtype)
        values = jnp.zeros((*shape, slots, config.head_width), config.dtype)
        return cls(keys, values, jnp.zeros((batch, slots), jnp.int32))

    def write(self, fresh: tuple[Array, Array], segment_ids: Array, slot: Array | int) -> Cache:
        """Puts N tokens (keys [L, B, K, H, N], values [L, B, K, N, H]) at slots slot … slot+N−1."""
        keys, values = (x.astype(self.keys.dtype) for x in fresh)
        return Cache(
            jax.lax.dynamic_update_slice_in_dim(self.keys, keys, slot, axis=4),
            jax.lax.dynamic_update_slice_in_dim(self.values, values, slot, axis=3),
            jax.lax.dynamic_update_slice_in_dim(self.segment_ids, segment_ids, slot, axis=1),
        )


class Decoder(nn.Module):
    """Tokens to hidden states (after the final norm, ready for any head)."""

    config: DecoderConfig
    sharding: jax.sharding.Sharding | None = None
    """Of the residual stream [B, T, D]; None leaves it to the compiler."""

    @nn.compact
    def __call__(
        self, tokens: Array, positions: Array, segment_ids: Array, cache: Cache | None = None
    ) -> tuple[Array, tuple[Array, Array]]:
        """Runs the layers.

        Args:
          tokens: [B, T] int32.
          positions: [B, T] int32, counted from 0 within each segment.
          segment_ids: [B, T] int32; tokens attend within their segment only, 0 marks padding.
          cache: earlier tokens that come before all of these, or None.

        Returns:
          hidden [B, T, D] in `config.dtype`, and (keys, values) as they are in `Cache`.
        """
        config = self.config
        embed = nn.Embed(
            config.vocab_size,
            config.width,
            embedding_init=nn.initializers.normal(0.02),
            dtype=config.dtype,
            name="embed",
        )
        x = embed(tokens)
        if self.sharding is not None:
            x = jax.lax.with_sharding_constraint(x, self.sharding)
        angles = rotary_angles(positions, config.head_width, config.rope_theta)
        rotation = jnp.cos(angles), jnp.sin(angles)
        same = segment_ids[:, :, None] == segment_ids[:, None, :]
        causal = jnp.tril(jnp.ones((tokens.shape[1],) * 2, bool))
        mask = same & causal & (segment_ids[:, :, None] != 0)
        earlier = None if cache is None else (cache.keys, cache.values)
        earlier_mask = (
            None
            if cache is None
            else (segment_ids[:, :, None] == cache.segment_ids[:, None, :])
            & (segment_ids[:, :, None] != 0)
        )
        # Products are kept for the backward pass; what is cheap takes longer to keep than to redo.
        kept = None if config.remat else jax.checkpoint_policies.dots_with_no_batch_dims_saveable
        layer = nn.remat(Layer, prevent_cse=False, policy=kept)
        layers = nn.scan(
            layer,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(nn.broadcast, nn.broadcast, nn.broadcast, 0),
            length=config.layers,
        )
        x, fresh = layers(config, name="layers")(x, rotation, mask, earlier_mask, earlier)
        return RMSNorm(config, name="final_norm")(x), fresh


class Layer(nn.Module):
    """Attention and a gated MLP, each on a normalised copy of the residual stream."""

    config: DecoderConfig

    @nn.compact
    def __call__(self, x, rotation, mask, earlier_mask, earlier):
        config = self.config
        attended, fresh = Attention(config, name="attention")(
            RMSNorm(config, name="attention_norm")(x), rotation, mask, earlier_mask, earlier
        )
        x = x + attended
        x = x + SwiGLU(config, name="mlp")(RMSNorm(config, name="mlp_norm")(x))
        return x, fresh


class Attention(nn.Module):
    """Grouped-query attention over these tokens and, if given, the cached earlier ones."""

    config: DecoderConfig

    @nn.compact
    def __call__(self, x, rotation, mask, earlier_mask, earlier):
        config = self.config
        project = functools.partial(_dense, config=config)
        q = project((config.heads, config.head_width), name="query")(x)
        k = project((config.kv_heads, config.head_width), name="key")(x)
        v = project((config.kv_heads, config.head_width), name="value")(x)
        q, k = rotate(q, rotation), rotate(k, rotation)
        # Queries that share a key head lie beside each other: one matrix product for them all.
        q = einops.rearrange(q, "b t (k g) h -> b k (g t) h", k=config.kv_heads)
        q = q * config.head_width**-0.5
        k = einops.rearrange(k, "b s k h -> b k h s")
        v = einops.rearrange(v, "b s k h -> b k s h")

        scores = _scores(q, k, mask)
        if earlier is None:
            weights = jax.nn.softmax(scores).astype(v.dtype)
            mixed = _mixed(weights, v)
        else:
            # Scores are joined, keys and values are not: that would copy the cache at every token.
            cached_k, cached_v = earlier
            cached = _scores(q, cached_k, earlier_mask)
            weights = jax.nn.softmax(jnp.concatenate([cached, scores], -1)).astype(v.dtype)
            slots = cached.shape[-1]
            mixed = _mixed(weights[..., :slots], cached_v) + _mixed(weights[..., slots:], v)
        mixed = einops.rearrange(mixed, "b k (g t) h -> b t (k g) h", t=x.shape[1])
        out = _dense(config.width, config=config, axis=(-2, -1), name="out")(mixed)
        return out, (k, v)


class SwiGLU(nn.Module):
    """down(silu(gate(x)) · up(x)), Shazeer, arXiv 2002.05202."""

    config: DecoderConfig

    @nn.compact
    def __call__(self, x):
        config = self.config
        gate = _dense(config.mlp_width, config=config, name="gate")(x)
        up = _dense(config.mlp_width, config=config, name="up")(x)
        return _dense(config.width, config=config, name="down")(nn.silu(gate) * up)


class Linear(nn.DenseGeneral):
    """x W, and where the parameters have adapters x W + (α / r) (x A) B.

    "LoRA", Hu et al., arXiv 2106.09685, Eq. 3. r is read from the adapters' shape.
    """

    lora_alpha: float = 32.0

    @nn.compact
    def __call__(self, x):
        y = super().__call__(x)
        if not self.has_variable("params", "lora_a"):
            return y
        a: Array = self.get_variable("params", "lora_a").astype(self.dtype)
        b: Array = self.get_variable("params", "lora_b").astype(self.dtype)
        narrow = matrix_product(x, a, axes=a.ndim - 1)
        return y + self.lora_alpha / a.shape[-1] * matrix_product(narrow, b)


class RMSNorm(nn.Module):
    """x / rms(x) · scale, computed in float32; Zhang & Sennrich, arXiv 1910.07467."""

    config: DecoderConfig

    @nn.compact
    def __call__(self, x):
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        x32 = x.astype(jnp.float32)
        mean_square = jnp.mean(jnp.square(x32), -1, keepdims=True)
        normed = x32 * jax.lax.rsqrt(mean_square + self.config.norm_epsilon)
        return (normed * scale).astype(self.config.dtype)


def rotary_angles(positions: Array, head_width: int, theta: float) -> Array:
    """Angles [B, T, H/2] of rotary position embedding; Su et al., arXiv 2104.09864, Eq. 15."""
    frequencies = theta ** (-jnp.arange(0, head_width, 2, dtype=jnp.float32) / head_width)
    return positions[..., None].astype(jnp.float32) * frequencies


def rotate(x: Array, rotation: tuple[Array, Array]) -> Array:
    """Rotates [B, T, N, H] by angles given as (cos, sin) [B, T, H/2].

    Halves are paired as in Hugging Face checkpoints.
    """
    cos, sin = (part[:, :, None] for part in rotation)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], -1)
    return turned.astype(x.dtype)


def _scores(q: Array, k: Array, mask: Array) -> Array:
    """Masked attention scores [B, K, GT, S] in float32; a row with no key stays finite."""
    scores = jnp.einsum("bkqh,bkhs->bkqs", q, k, preferred_element_type=jnp.float32)
    groups = q.shape[2] // mask.shape[1]
    return jnp.where(jnp.tile(mask, (1, groups, 1))[:, None], scores, -1e30)


def _mixed(weights: Array, v: Array) -> Array:
    """Values [B, K, S, H] summed by weights [B, K, GT, S]: [B, K, GT, H]."""
    return jnp.einsum("bkqs,bksh->bkqh", weights, v)


def _dense(features, *, config: DecoderConfig, name: str, axis=-1):
    return Linear(
        features,
        axis=axis,
        use_bias=False,
        dtype=config.dtype,
        kernel_init=nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal"),
        dot_general=_product,
        lora_alpha=config.lora_alpha,
        name=name,
    )


def _product(x: Array, kernel: Array, dimensions, precision=None) -> Array:
    """What `nn.DenseGeneral` calls to sum over the last axes of x and the first of the kernel."""
    return matrix_product(x, kernel, axes=len(dimensions[0][1]), precision=precision)
