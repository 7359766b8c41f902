"""Heads that read the decoder's hidden states, and the parameter tree that holds them all.

    params = {"decoder": …, "lm_head": …, "value_head": …, "span_head": …}

`lm_head` is absent when the embeddings are tied; `value_head` and `span_head` are there for the
phases that asked for them.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from t2g_jax.models.decoder import Decoder, DecoderConfig
from t2g_jax.numerics import soft_capped

Array = jax.Array
Params = dict[str, Any]

SPAN_CLASSES = np.array([-1.0, 0.0, 1.0], np.float32)
"""Reward of each class of the span-reward head, in the order of its logits."""


class ValueHead(nn.Module):
    """V(state before the next token) from the hidden state; zero at the start."""

    @nn.compact
    def __call__(self, hidden: Array) -> Array:
        """[B, T, D] → [B, T] float32."""
        hidden = hidden.astype(jnp.float32)
        return nn.Dense(1, kernel_init=nn.initializers.zeros, name="out")(hidden)[..., 0]


class SpanRewardHead(nn.Module):
    """Classifies each token it stands on as poor (−1), neutral (0) or good (+1)."""

    @nn.compact
    def __call__(self, hidden: Array) -> Array:
        """[B, T, D] → logits [B, T, 3] float32."""
        return nn.Dense(3, name="out")(hidden.astype(jnp.float32))


@functools.partial(jax.jit, static_argnames=("config", "heads"))
def init_params(config: DecoderConfig, key: Array, *, heads: tuple[str, ...] = ()) -> Params:
    """Random parameters of a decoder and its heads.

    Args:
      config: shape of the decoder.
      key: PRNG key.
      heads: any of "value_head", "span_head".
    """
    decoder_key, lm_key, heads_key = jax.random.split(key, 3)
    tokens = jnp.zeros((1, 2), jnp.int32)
    params: Params = {
        "decoder": Decoder(config).init(decoder_key, tokens, tokens, tokens)["params"]
    }
    if not config.tie_embeddings:
        shape = config.width, config.vocab_size
        kernel = 0.02 * jax.random.normal(lm_key, shape, config.param_dtype)
        params["lm_head"] = {"kernel": kernel}
    return add_heads(params, config, heads_key, heads=heads)


def add_heads(params: Params, config: DecoderConfig, key: Array, *, heads) -> Params:
    """The same parameters with fresh heads for those of `heads` that are missing."""
    modules = {"value_head": ValueHead(), "span_head": SpanRewardHead()}
    hidden = jnp.zeros((1, 1, config.width))
    params = dict(params)
    for index, name in enumerate(sorted(modules)):
        if name in heads and name not in params:
            params[name] = modules[name].init(jax.random.fold_in(key, index), hidden)["params"]
    return params


def lm_kernel(params: Params) -> Array:
    """The LM head's matrix [D, V]: its own, or the transposed embeddings when they are tied."""
    if "lm_head" in params:
        return params["lm_head"]["kernel"]
    return params["decoder"]["embed"]["embedding"].T


def capped(logits: Array, config: DecoderConfig) -> Array:
    """Products of hidden states and the LM head as the model's logits: soft-capped, if it does."""
    return soft_capped(logits, config.final_softcap)


def hidden_states(
    params: Params,
    config: DecoderConfig,
    tokens: Array,
    positions: Array,
    segment_ids: Array,
    *,
    sharding: jax.sharding.NamedSharding | None = None,
    lookup_sharding: jax.sharding.Sharding | None = None,
) -> Array:
    """Hidden states [B, T, D] of whole rows (no cache), computed in the given sharding.

    `lookup_sharding` is that of embeddings as they are looked up, see `Decoder`.
    """
    decoder = Decoder(config, sharding, lookup_sharding)
    # Converted here, once: some compilers keep copies of their own of what each layer converts.
    # Not so the embeddings, whose gradient is a sum over tokens.
    layers = as_computed(params["decoder"]["layers"], config)
    converted = params["decoder"] | {"layers": layers}
    return _apply(decoder, converted, tokens, positions, segment_ids)[0]


def as_computed(params: Params, config: DecoderConfig) -> Params:
    """Matrices in the type that the decoder computes in; norms read their scales as they are."""

    def convert(path, leaf):
        return leaf if path[-1].key == "scale" else leaf.astype(config.dtype)

    return jax.tree.map_with_path(convert, params)


def values(params: Params, hidden: Array) -> Array:
    """The value head's output [B, T] float32."""
    return _apply(ValueHead(), params["value_head"], hidden)


def span_logits(params: Params, hidden: Array) -> Array:
    """The span-reward head's logits [B, T, 3] float32, classes in the order −1, 0, +1."""
    return _apply(SpanRewardHead(), params["span_head"], hidden)


def _apply(module: nn.Module, params: Params, *inputs: Array) -> Any:
    return module.apply({"params": params}, *inputs)
