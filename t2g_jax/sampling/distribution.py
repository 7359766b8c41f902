"""The distribution a token is really sampled from: temperature, then top-k, then top-p.

The set of tokens that top-k and top-p keep is described by one number per token, the *cutoff*: the
kept tokens are those whose temperature-scaled log-probability is at least the cutoff. The trainer
gets the cutoff along with the tokens, so its importance ratios are those of the truncated
distribution (`logprobs.token_logprobs_from_hidden(..., cutoff=…)`) and equal 1 before the first
update.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp

Array = jax.Array

_TIE = 1e-5
"""Difference of log-probabilities, in nats, that may be rounding."""


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How to sample. Hashable: a static argument of jitted functions.

    temperature 0 takes the most likely token; top_k 0 and top_p 1 do not truncate.
    """

    max_new_tokens: int
    stop_ids: tuple[int, ...]
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self):
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be at least 1, got {self.max_new_tokens}")
        if self.temperature < 0:
            raise ValueError(f"temperature must not be negative, got {self.temperature}")
        if self.top_k < 0:
            raise ValueError(f"top_k must not be negative, got {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be in (0, 1], got {self.top_p}")

    @property
    def greedy(self) -> bool:
        return self.temperature == 0

    @property
    def truncates(self) -> bool:
        return self.top_k > 0 or self.top_p < 1


def log_distribution(logits: Array, sampling: Sampling) -> tuple[Array, Array]:
    """Log-probabilities of the sampled distribution and the cutoff that truncated it.

    Args:
      logits: [..., V].
      sampling: temperature > 0, top_k, top_p.

    Returns:
      log_probs [..., V] float32 (−inf where dropped), cutoff [...] float32 (−inf: nothing dropped).
    """
    log_probs = jax.nn.log_softmax(logits.astype(jnp.float32) / sampling.temperature)
    cutoff = truncation_cutoff(log_probs, top_k=sampling.top_k, top_p=sampling.top_p)
    if not sampling.truncates:
        return log_probs, cutoff
    kept = jnp.where(log_probs >= cutoff[..., None], log_probs, -jnp.inf)
    return jax.nn.log_softmax(kept), cutoff


def draw(key: Array, log_probs: Array) -> Array:
    """A token of a distribution: first a block of neighbors, then one token of the block.

    Either is argmax (log p + Gumbel noise). That takes 2 √V random numbers instead of V, which
    would be a good part of the time of a decoding step.

    Args:
      key: PRNG key.
      log_probs: [V], normalized; −inf is never drawn. Where one is NaN the token means nothing,
        but it is one of the V.
    """
    vocabulary = log_probs.shape[0]
    size = math.isqrt(vocabulary - 1) + 1
    blocks = -(-vocabulary // size)
    padding = (0, blocks * size - vocabulary)
    log_probs = jnp.pad(log_probs, padding, constant_values=-jnp.inf).reshape(blocks, size)
    block_key, token_key = jax.random.split(key)
    of_blocks = jnp.log(jnp.sum(jnp.exp(log_probs), axis=-1))
    block = most_likely(of_blocks + jax.random.gumbel(block_key, of_blocks.shape))
    of_tokens = log_probs[block]
    token = most_likely(of_tokens + jax.random.gumbel(token_key, of_tokens.shape))
    return jnp.minimum(block * size + token, vocabulary - 1)  # NaN ends in the padding


def most_likely(scores: Array) -> Array:
    """The first index of the maximum, [..., V] → [...] int32: argmax, which XLA does not fuse."""
    indices = jnp.arange(scores.shape[-1], dtype=jnp.int32)
    highest = jnp.max(scores, -1, keepdims=True)
    return jnp.min(jnp.where(scores == highest, indices, scores.shape[-1] - 1), -1)


def truncation_cutoff(log_probs: Array, *, top_k: int, top_p: float) -> Array:
    """The log-probability that separates what top-k and top-p keep from what they drop.

    Half way between the least likely kept and the most likely dropped token, so that recomputing
    the log-probabilities with a slightly different rounding keeps the same set.

    Args:
      log_probs: [..., V], normalized.
      top_k: keep the k most likely tokens; 0 keeps all.
      top_p: of these, renormalized, keep the fewest most likely ones whose mass reaches top_p.

    Returns:
      cutoff [...] float32; −inf where nothing is dropped. Tokens tied with the last kept, up to
        rounding, stay.
    """
    vocabulary = log_probs.shape[-1]
    top_k = min(top_k or vocabulary, vocabulary)
    if top_k == vocabulary and top_p == 1:
        return jnp.full(log_probs.shape[:-1], -jnp.inf, jnp.float32)
    likeliest = jax.lax.top_k(log_probs, top_k)[0]
    last_kept = likeliest[..., -1]
    if top_p < 1:
        probs = jnp.exp(likeliest)
        mass_before = jnp.cumsum(probs, -1) - probs
        keep = jnp.sum(mass_before < top_p * jnp.sum(probs, -1, keepdims=True), -1, keepdims=True)
        keep = jnp.maximum(keep, 1)  # where top_p is less than float32 has
        last_kept = jnp.take_along_axis(likeliest, keep - 1, -1)[..., 0]
    # Not compared to the bit: XLA may compute log_probs once for the sort and once more for this.
    tied = log_probs >= last_kept[..., None] - _TIE
    last_kept = jnp.min(jnp.where(tied, log_probs, jnp.inf), -1)
    first_dropped = jnp.max(jnp.where(tied, -jnp.inf, log_probs), -1)
    # A dropped token that is next to impossible must not drag the cutoff down with it.
    cutoff = 0.5 * (last_kept + jnp.maximum(first_dropped, last_kept - 1.0))
    return jnp.where(first_dropped == -jnp.inf, -jnp.inf, cutoff)
