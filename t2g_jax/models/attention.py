"""Causal attention within segments: plain XLA, cuDNN on GPUs, and Pallas' splash kernel on TPUs.

All compute the same function; `choose` picks one for the hardware. Over a mesh each device computes
whole rows for some of the heads: axes that split the length of rows (context parallelism) split
heads here, by an all-to-all before and after ("DeepSpeed-Ulysses", arXiv 2309.14509).
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, Literal

import einops
import jax
import jax.numpy as jnp
from flax import struct
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from t2g_jax.errors import T2GError
from t2g_jax.numerics import soft_capped
from t2g_jax.parallel.sharding import axes_of, left_over, parts

Array = jax.Array
Backend = Literal["auto", "xla", "cudnn", "splash"]

_LANES = 128
"""Splash works on blocks of this many tokens."""
_SHORT = 256
"""Up to this length of rows XLA is as fast on a TPU, and needs little memory."""


@dataclasses.dataclass(frozen=True)
class AttentionSpec:
    """What attention does besides: soft-capped scores, and a window of earlier tokens.

    softcap: scores s become softcap · tanh(s / softcap); 0 leaves them.
    window: in local layers a token sees itself and window − 1 tokens before it.
    """

    softcap: float = 0.0
    window: int | None = None


@struct.dataclass
class AttentionMasks:
    """Who sees whom: the same for all layers, but for the window.

    segment_ids: [B, T]. full, local: masks [B, T, T], without and with the window; earlier_full,
    earlier_local: likewise of cached tokens, [B, T, S]. Masks are None where they are not needed.
    """

    segment_ids: Array
    full: Array | None = None
    local: Array | None = None
    earlier_full: Array | None = None
    earlier_local: Array | None = None


def make_masks(
    spec: AttentionSpec, backend: str, positions: Array, segment_ids: Array, cache: Any | None
) -> AttentionMasks:
    """`AttentionMasks` of tokens [B, T] whose positions within a segment are consecutive.

    Args:
      cache: None, or what has `segment_ids` and `positions` [B, S] of earlier tokens.
    """
    if backend == "splash":
        return AttentionMasks(segment_ids)
    length = segment_ids.shape[1]
    real = segment_ids[:, :, None] != 0
    full = (segment_ids[:, :, None] == segment_ids[:, None, :]) & real
    full &= jnp.tril(jnp.ones((length, length), bool))
    local = earlier = earlier_local = None
    if spec.window is not None:
        local = full & _near(positions, positions, spec.window)
    if cache is not None:
        earlier = (segment_ids[:, :, None] == cache.segment_ids[:, None, :]) & real
        if spec.window is not None:
            earlier_local = earlier & _near(positions, cache.positions, spec.window)
    return AttentionMasks(segment_ids, full, local, earlier, earlier_local)


def choose(
    backend: Backend,
    spec: AttentionSpec,
    *,
    platform: str,
    length: int,
    head_width: int,
    dtype: Any,
    cached: bool,
) -> Literal["xla", "cudnn", "splash"]:
    """The kernel for rows of a length.

    Raises:
      T2GError: the one that was asked for cannot compute this.
    """
    if cached:  # a few queries against many keys: no kernel is needed
        return "xla"
    half = jnp.dtype(dtype) in (jnp.bfloat16, jnp.float16)
    fits_cudnn = platform == "gpu" and half and not spec.softcap and head_width <= 128
    if backend == "auto":
        if platform == "tpu" and length > _SHORT:
            return "splash"
        return "cudnn" if fits_cudnn else "xla"
    if backend == "cudnn" and not fits_cudnn:
        raise T2GError(
            "model.attention is cudnn, which takes an NVIDIA GPU, compute_dtype bfloat16, heads of "
            f"at most 128 and no soft-cap; here are a {platform}, {jnp.dtype(dtype)}, heads of "
            f"{head_width} and a soft-cap of {spec.softcap}: set it to auto"
        )
    if backend == "splash" and platform not in ("tpu", "cpu"):
        raise T2GError(
            f"model.attention is splash, a kernel for TPUs; here is a {platform}: set it to auto"
        )
    return backend


def attend(
    q: Array,
    k: Array,
    v: Array,
    masks: AttentionMasks,
    spec: AttentionSpec,
    *,
    backend: str,
    platform: str,
    is_local: Array | bool = False,
    earlier: tuple[Array, Array] | None = None,
    sharding: NamedSharding | None = None,
) -> tuple[Array, tuple[Array, Array]]:
    """softmax(q kᵀ) v for every head.

    Args:
      q: [B, T, N, H], scaled. k, v: [B, T, K, H]; N / K queries share a key head.
      masks: from `make_masks`.
      is_local: whether this layer has the window; may be traced.
      earlier: keys [B, K, H, S] and values [B, K, S, H] of cached tokens.
      sharding: of the residual stream [B, T, D]: its first entry splits rows, its second lengths.

    Returns:
      mixed [B, T, N, H], and (k, v) as a cache holds them: [B, K, H, T] and [B, K, T, H].
    """
    fresh = _as_cached(k, v)
    by_heads = None
    if (sharding is not None and backend != "xla") or _splits_length(sharding):
        by_heads = _by_heads(sharding, q.shape[2], k.shape[2])
    if by_heads is not None:
        partition, repeats = by_heads
        k, v = (jnp.repeat(x, repeats, axis=2) for x in (k, v))
        placed = NamedSharding(sharding.mesh, partition)
        q, k, v = (jax.lax.with_sharding_constraint(x, placed) for x in (q, k, v))
    if backend == "cudnn":
        mixed = _cudnn(q, k, v, masks, spec, is_local)
    elif backend == "splash":
        kernel = functools.partial(_splash, spec=spec, interpret=platform == "cpu")
        if by_heads is not None:
            rows = P(by_heads[0][0])
            kernel = jax.shard_map(
                kernel,
                mesh=sharding.mesh,
                in_specs=(by_heads[0],) * 3 + (rows, P()),
                out_specs=by_heads[0],
                check_vma=False,
            )
        mixed = kernel(q, k, v, masks.segment_ids, jnp.asarray(is_local))
    else:
        keys_values = fresh if by_heads is None else _as_cached(k, v)
        mixed = _xla(q, *keys_values, masks, spec, is_local, earlier)
    if by_heads is not None:
        partition = P(*sharding.spec, *(None,) * (2 - len(sharding.spec)), None, None)
        mixed = jax.lax.with_sharding_constraint(mixed, NamedSharding(sharding.mesh, partition))
    return mixed, fresh


def _as_cached(k: Array, v: Array) -> tuple[Array, Array]:
    """[B, S, K, H] each, as a cache holds them: [B, K, H, S] and [B, K, S, H]."""
    return einops.rearrange(k, "b s k h -> b k h s"), einops.rearrange(v, "b s k h -> b k s h")


def _near(queries: Array, keys: Array, window: int) -> Array:
    """Whether keys at positions [B, S] are in the window of queries at [B, T]: [B, T, S]."""
    return queries[:, :, None] - keys[:, None, :] < window


def _splits_length(sharding: NamedSharding | None) -> bool:
    """Whether rows [B, T, D] are split along T."""
    if sharding is None or len(sharding.spec) < 2:
        return False
    return parts(sharding.mesh, *axes_of(sharding.spec[1])) > 1


def _by_heads(sharding: NamedSharding, heads: int, kv_heads: int) -> tuple[P, int] | None:
    """How [B, T, N, H] lies with heads over all axes that rows do not take, and how often keys are
    repeated for that; None if heads cannot be split so."""
    rows = sharding.spec[0] if sharding.spec else None
    axes = left_over(sharding.mesh, rows)
    shards = parts(sharding.mesh, *axes)
    if heads % shards:
        return None
    repeats = next(
        r
        for r in range(1, heads // kv_heads + 1)
        if (kv_heads * r) % shards == 0 and (heads // kv_heads) % r == 0
    )
    return P(rows, None, axes, None), repeats


def _xla(
    q: Array,
    k: Array,
    v: Array,
    masks: AttentionMasks,
    spec: AttentionSpec,
    is_local: Array | bool,
    earlier: tuple[Array, Array] | None,
) -> Array:
    """Keys [B, K, H, S], values [B, K, S, H]; the scores are in memory."""
    # Queries that share a key head lie beside each other: one matrix product for them all.
    length, kv_heads = q.shape[1], k.shape[1]
    q = einops.rearrange(q, "b t (k g) h -> b k (g t) h", k=kv_heads)

    def visible(full: Array, local: Array | None) -> Array:
        return full if local is None else jnp.where(is_local, local, full)

    scores = _scores(q, k, visible(masks.full, masks.local), spec)
    if earlier is None:
        weights = jax.nn.softmax(scores).astype(v.dtype)
        mixed = _mixed(weights, v)
    else:
        # Scores are joined, keys and values are not: that would copy the cache at every token.
        cached_k, cached_v = earlier
        cached = _scores(q, cached_k, visible(masks.earlier_full, masks.earlier_local), spec)
        weights = jax.nn.softmax(jnp.concatenate([cached, scores], -1)).astype(v.dtype)
        slots = cached.shape[-1]
        mixed = _mixed(weights[..., :slots], cached_v) + _mixed(weights[..., slots:], v)
    return einops.rearrange(mixed, "b k (g t) h -> b t (k g) h", t=length)


def _scores(q: Array, k: Array, mask: Array, spec: AttentionSpec) -> Array:
    """Masked attention scores [B, K, GT, S] in float32; a row with no key stays finite."""
    scores = jnp.einsum("bkqh,bkhs->bkqs", q, k, preferred_element_type=jnp.float32)
    scores = soft_capped(scores, spec.softcap)
    groups = q.shape[2] // mask.shape[1]
    return jnp.where(jnp.tile(mask, (1, groups, 1))[:, None], scores, -1e30)


def _mixed(weights: Array, v: Array) -> Array:
    """Values [B, K, S, H] summed by weights [B, K, GT, S]: [B, K, GT, H]."""
    return jnp.einsum("bkqs,bksh->bkqh", weights, v)


def _cudnn(
    q: Array, k: Array, v: Array, masks: AttentionMasks, spec: AttentionSpec, is_local: Array | bool
) -> Array:
    """Flash attention of cuDNN. Segments are a mask [B, 1, T, T]: bits, not scores, in memory."""
    mask = masks.full if masks.local is None else jnp.where(is_local, masks.local, masks.full)
    # A padding token sees itself: a row of the softmax without any key would be NaN.
    mask |= jnp.eye(mask.shape[1], dtype=bool)
    return jax.nn.dot_product_attention(
        q, k, v, mask=mask[:, None], scale=1.0, is_causal=True, implementation="cudnn"
    )


def _splash(
    q: Array,
    k: Array,
    v: Array,
    segment_ids: Array,
    is_local: Array,
    *,
    spec: AttentionSpec,
    interpret: bool,
) -> Array:
    """Splash attention of jax.experimental.pallas; rows are padded to whole blocks."""
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    length, heads = q.shape[1:3]
    block = min(512, -(-length // _LANES) * _LANES)
    padded = -(-length // block) * block
    pad = [(0, 0), (0, padded - length)]
    q, k, v = (jnp.pad(x, [*pad, (0, 0), (0, 0)]).swapaxes(1, 2) for x in (q, k, v))
    segment_ids = jnp.pad(segment_ids, pad)
    sizes = splash.BlockSizes(
        block_q=block,
        block_kv=block,
        block_q_dkv=block,
        block_kv_dkv=block,
        block_q_dq=block,
        block_kv_dq=block,
    )

    def kernel(window: int | None, q: Array, k: Array, v: Array, ids: Array) -> Array:
        shape = padded, padded
        mask = (
            splash.CausalMask(shape)
            if window is None
            else splash.LocalMask(shape, window_size=(window - 1, 0), offset=0)
        )
        run = splash.make_splash_mha(
            splash.MultiHeadMask([mask] * heads),
            block_sizes=sizes,
            attn_logits_soft_cap=spec.softcap or None,
            head_shards=1,
            q_seq_shards=1,
            interpret=interpret,
        )
        return jax.vmap(run)(q, k, v, splash.SegmentIds(ids, ids))

    full = functools.partial(kernel, None)
    if spec.window is None:
        mixed = full(q, k, v, segment_ids)
    else:
        local = functools.partial(kernel, spec.window)
        mixed = jax.lax.cond(is_local, local, full, q, k, v, segment_ids)
    return mixed.swapaxes(1, 2)[:, :length]
