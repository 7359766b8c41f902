"""Sampling completions: prefill the prompts once, then decode token by token from a KV cache."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.sharding import Mesh

from t2g_jax.models import heads
from t2g_jax.models.decoder import Cache, Decoder, DecoderConfig
from t2g_jax.parallel.shapes import bucket
from t2g_jax.parallel.sharding import (
    decoding_shardings,
    logits_sharding,
    lookup_sharding,
    rows_sharding,
    token_sharding,
    within,
)
from t2g_jax.sampling.distribution import Sampling, draw, log_distribution, most_likely

Array = jax.Array


@struct.dataclass
class Completions:
    """What was sampled, padded to N = max_new_tokens.

    tokens: [B, N] int32. logprobs: [B, N] float32, of the distribution really sampled from.
    cutoffs: [B, N] float32, see `sampling.distribution`. lengths: [B] int32, stop token included.
    ended: [B] bool, whether a stop token was sampled (otherwise the completion was cut off).
    broken: [B] bool, whether it ends before a token for which the model gave no distribution: a
      logit was NaN or +Inf.
    """

    tokens: Array
    logprobs: Array
    cutoffs: Array
    lengths: Array
    ended: Array
    broken: Array


def pad_prompts(
    prompts: Sequence[Sequence[int]], *, width: int | None = None, rows: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Right-pads prompts to one width, so that few shapes are ever compiled.

    Args:
      prompts: non-empty token lists.
      width: P. None: see `parallel.shapes.bucket`.
      rows: pad with empty rows, for which nothing is sampled, up to this many.

    Returns:
      tokens [rows, P] int32, lengths [rows] int32.

    Raises:
      ValueError: there is no prompt, one is empty, one is longer than `width`, or there are more
        than `rows`.
    """
    lengths = [len(prompt) for prompt in prompts]
    if not lengths or min(lengths) == 0:
        raise ValueError("sampling needs at least one prompt and at least one token in each")
    rows = rows or len(prompts)
    if len(prompts) > rows:
        raise ValueError(f"{len(prompts)} prompts do not fit into {rows} rows")
    width = bucket(prompts) if width is None else width
    if max(lengths) > width:
        raise ValueError(f"a prompt of {max(lengths)} tokens does not fit into a width of {width}")
    tokens = np.zeros((rows, width), np.int32)
    for row, prompt in enumerate(prompts):
        tokens[row, : len(prompt)] = prompt
    return tokens, np.array(lengths + [0] * (rows - len(prompts)), np.int32)


@functools.partial(jax.jit, static_argnames=("config", "sampling", "mesh"))
def sample(
    params: heads.Params,
    tokens: Array,
    lengths: Array,
    keys: Array,
    *,
    config: DecoderConfig,
    sampling: Sampling,
    mesh: Mesh | None = None,
) -> Completions:
    """Samples one completion for each row.

    Each row has its own key, so what it yields does not depend on the rows beside it, their number
    or the mesh. The loop ends as soon as every row has met a stop token, or is broken.

    Args:
      params: with "decoder" (and "lm_head" unless tied).
      tokens: [B, P] int32 prompts, right-padded.
      lengths: [B] int32; a row of length 0 is a dummy and stays empty.
      keys: [B] typed PRNG keys.
      config, sampling: static.
      mesh: static, where rows and parameters are sharded over devices. Prompts are read with
        each layer gathered, as in training. Then weights are laid out once more, for decoding:
        they stay where they are, and the activations of all rows, which are smaller, go there.
    """
    rows = lookup = whole = split = None
    if mesh is not None:
        rows, lookup = rows_sharding(mesh), lookup_sharding(mesh, config.width)
        whole, split = token_sharding(mesh), logits_sharding(mesh, config.vocab_size)
    config = dataclasses.replace(config, remat="none")  # no gradient is asked for: less to trace
    batch, prompt_width = tokens.shape
    new = sampling.max_new_tokens
    stop_ids = jnp.array(sampling.stop_ids or (-1,), jnp.int32)

    def run(decoder, params, *inputs):
        return decoder.apply({"params": params["decoder"]}, *inputs)

    def computed(params):
        """Converted once, not at every token; with an LM head even where it is tied."""
        converted = heads.as_computed(params, config)
        return converted | {"lm_head": {"kernel": heads.lm_kernel(converted)}}

    positions = jnp.broadcast_to(jnp.arange(prompt_width), tokens.shape)
    segment_ids = (positions < lengths[:, None]).astype(jnp.int32)
    weights = computed(params)
    hidden, fresh = run(Decoder(config, rows, lookup), weights, tokens, positions, segment_ids)
    cache = Cache.empty(config, batch, prompt_width + new).write(fresh, positions, segment_ids, 0)
    final = jnp.maximum(lengths - 1, 0)[:, None, None]
    last = jnp.take_along_axis(hidden, final, axis=1)[:, 0]
    if mesh is not None:
        # Only when the prompts are read is the other layout in memory.
        params, cache = jax.lax.optimization_barrier((params, cache))
        weights = computed(params)
        weights = _placed(weights, decoding_shardings(weights, mesh))

    def logits_of(hidden):
        kernel = weights["lm_head"]["kernel"]
        products = jnp.matmul(_placed(hidden, whole), kernel, preferred_element_type=jnp.float32)
        return heads.capped(_placed(_placed(products, split), rows), config)

    def pick(logits, step):
        """Token, log-probability and cutoff; and whether there was a distribution to draw from."""
        if sampling.greedy:
            token = most_likely(logits)
            nothing = jnp.zeros(batch, jnp.float32)
            return token, nothing, nothing - jnp.inf, jnp.isfinite(jnp.max(logits, -1))
        log_probs, cutoff = log_distribution(logits, sampling)
        step_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, step)
        token = jax.vmap(draw)(step_keys, log_probs)
        logprob = jnp.take_along_axis(log_probs, token[:, None], -1)[:, 0]
        return token, logprob, cutoff, jnp.isfinite(logprob)  # one NaN logit makes all of them NaN

    def take(out, done, logits, step):
        """Token `step` of the rows that are not done: noted, and returned."""
        token, logprob, cutoff, finite = pick(logits, step)
        live = ~done & finite
        out = Completions(
            tokens=out.tokens.at[:, step].set(jnp.where(live, token, 0)),
            logprobs=out.logprobs.at[:, step].set(jnp.where(live, logprob, 0.0)),
            cutoffs=out.cutoffs.at[:, step].set(jnp.where(live, cutoff, -jnp.inf)),
            lengths=out.lengths + live,
            ended=out.ended | (live & jnp.isin(token, stop_ids)),
            broken=out.broken | (~done & ~finite),
        )
        return out, done | out.ended | out.broken, token

    def advance(carry):
        step, out, done, token, cache = carry
        segments = (~done).astype(jnp.int32)[:, None]
        positions = (lengths + step - 1)[:, None]
        decoder = Decoder(config, whole, decoding=mesh is not None)
        with within(mesh):
            hidden, fresh = run(decoder, weights, token[:, None], positions, segments, cache)
        cache = cache.write(fresh, positions, segments, prompt_width + step - 1)
        return step + 1, *take(out, done, logits_of(hidden[:, 0]), step), cache

    def unfinished(carry):
        step, _, done, _, _ = carry
        return (step < new) & ~jnp.all(done)

    empty = Completions(
        tokens=jnp.zeros((batch, new), jnp.int32),
        logprobs=jnp.zeros((batch, new), jnp.float32),
        cutoffs=jnp.full((batch, new), -jnp.inf, jnp.float32),
        lengths=jnp.zeros(batch, jnp.int32),
        ended=jnp.zeros(batch, bool),
        broken=jnp.zeros(batch, bool),
    )
    start = (jnp.int32(1), *take(empty, lengths == 0, logits_of(last), 0), cache)
    return jax.lax.while_loop(unfinished, advance, start)[1]


def _placed(x: Any, sharding: Any) -> Any:
    return x if sharding is None else jax.lax.with_sharding_constraint(x, sharding)
