"""The divergences behind `logprobs`' distillation, a chunk of the LM head's columns at a time.

As `t2g_jax.chunked`: forward with running sums, backward with each chunk's logits computed again.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from t2g_jax.chunked import Chunks, Head, head_gradient, lowest, statistics
from t2g_jax.divergences import entries_and_slopes, put, top_and_tail

# ------------------------------------------------------------------ over the whole vocabulary


class Divergence(NamedTuple):
    """Which, as `losses.logit_distillation` has them."""

    alpha: float
    entry_clip: float | None = None


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def distillation(
    chunks: Chunks, of: Divergence, head: Head, teacher: Head, temperature: jax.Array
) -> jax.Array:
    """Divergence from the teacher, [...]. See `t2g_jax.logprobs.distillation_from_hidden`."""
    return _distillation_forward(chunks, of, head, teacher, temperature)[0]


def _distillation_forward(
    chunks: Chunks, of: Divergence, head: Head, teacher: Head, temperature: jax.Array
) -> tuple[jax.Array, tuple[Any, ...]]:
    tokens = jnp.zeros(head.hidden.shape[:-1], jnp.int32)
    totals = [statistics(chunks, x, tokens, temperature, None)[0] for x in (head, teacher)]

    def add_chunk(carry: tuple[jax.Array, jax.Array], index: jax.Array) -> Any:
        _, fresh = chunks.ids(index)
        both = _both(chunks, index, head, teacher, totals, temperature)
        return tuple(
            so_far + jnp.sum(jnp.where(fresh, x, 0), axis=-1)
            for so_far, x in zip(carry, entries_and_slopes(*both, *of), strict=True)
        )

    zeros = jnp.zeros_like(head.hidden[..., 0], dtype=head.dtype)
    loss, slope = chunks.scan(add_chunk, (zeros, zeros))
    return loss, (head, teacher, temperature, totals, slope)


def _distillation_backward(
    chunks: Chunks, of: Divergence, residuals: tuple[Any, ...], d_loss: jax.Array
) -> tuple[Head, None, None]:
    head, teacher, temperature, totals, slope_total = residuals

    def d_logits(index: jax.Array, logits: jax.Array) -> jax.Array:
        del logits
        _, fresh = chunks.ids(index)
        student, theirs = _both(chunks, index, head, teacher, totals, temperature)
        _, slope = entries_and_slopes(student, theirs, *of)
        # ∂/∂zᵥ of Σᵤ d(log s(u)) with log s = z − log Σ exp z: d'(v) − s(v) Σᵤ d'(u)
        slope -= jnp.exp(student) * slope_total[..., None]
        return d_loss[..., None] * jnp.where(fresh, slope, 0)

    return head_gradient(chunks, head, temperature, d_logits), None, None


distillation.defvjp(_distillation_forward, _distillation_backward)


def _both(
    chunks: Chunks,
    index: jax.Array,
    head: Head,
    teacher: Head,
    totals: list[jax.Array],
    temperature: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """A chunk's log-probabilities, the student's and the teacher's."""
    student, theirs = (
        chunks.logits(x, index, temperature) - total[..., None]
        for x, total in zip((head, teacher), totals, strict=True)
    )
    return student, theirs


# ------------------------------------------------------------------ over k tokens and the tail

Three = tuple[jax.Array, jax.Array, jax.Array]


def top_tokens(
    chunks: Chunks, k: int, head: Head, temperature: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The k most likely tokens, [..., k]; and their log-probabilities and the tail's, [..., k + 1].

    No gradient.
    """

    def add_chunk(carry: Three, index: jax.Array) -> Three:
        tokens, highest, tail = carry
        ids, fresh = chunks.ids(index)
        logits = jnp.where(fresh, chunks.logits(head, index, temperature), -jnp.inf)
        both = jnp.concatenate([highest, logits], axis=-1)
        outcomes, places = top_and_tail(both, both, k)
        ids = jnp.zeros_like(logits, dtype=tokens.dtype) + ids.astype(tokens.dtype)
        ids = jnp.concatenate([tokens, ids], axis=-1)
        tokens = jnp.take_along_axis(ids, places, axis=-1)
        return tokens, outcomes[..., :k], jnp.logaddexp(tail, outcomes[..., k])

    # From the hidden states, so that they are sharded alike.
    zeros = jnp.zeros_like(head.hidden[..., :1], dtype=head.dtype)
    empty = zeros + jnp.full(k, -jnp.inf, head.dtype)
    tokens = jnp.zeros_like(empty, dtype=jnp.int32)
    tokens, highest, tail = chunks.scan(add_chunk, (tokens, empty, empty[..., 0]))
    outcomes = jnp.concatenate([highest, tail[..., None]], axis=-1)
    return tokens, outcomes - jax.nn.logsumexp(outcomes, axis=-1, keepdims=True)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def outcomes_of(chunks: Chunks, head: Head, tokens: jax.Array, temperature: jax.Array) -> jax.Array:
    """Log-probabilities of given tokens, and of all others together; [..., k] → [..., k + 1].

    −inf for a token that is not in the vocabulary, and for others if there are none.
    """
    return _outcomes_forward(chunks, head, tokens, temperature)[0]


def _outcomes_forward(
    chunks: Chunks, head: Head, tokens: jax.Array, temperature: jax.Array
) -> tuple[jax.Array, tuple[Any, ...]]:
    def add_chunk(carry: Three, index: jax.Array) -> Three:
        own, maximum, total = carry
        logits = chunks.logits(head, index, temperature)
        places, others = _places(chunks, tokens, index, logits)
        here = places < logits.shape[-1]
        found = jnp.take_along_axis(logits, jnp.where(here, places, 0), axis=-1)
        highest = jnp.max(jnp.where(others, logits, lowest(logits)), axis=-1)
        new_maximum = jnp.maximum(maximum, highest)
        weights = jnp.where(others, jnp.exp(logits - new_maximum[..., None]), 0)
        total = jnp.exp(maximum - new_maximum) * total + jnp.sum(weights, axis=-1)
        return jnp.where(here, found, own), new_maximum, total

    zeros = jnp.zeros_like(head.hidden[..., 0], dtype=head.dtype)
    nothing = jnp.where(tokens == tokens, -jnp.inf, zeros[..., None])
    own, maximum, total = chunks.scan(add_chunk, (nothing, zeros + lowest(zeros), zeros))
    tail = jnp.where(total > 0, maximum + jnp.log(jnp.where(total > 0, total, 1)), -jnp.inf)
    outcomes = jnp.concatenate([own, tail[..., None]], axis=-1)
    log_total = jax.nn.logsumexp(outcomes, axis=-1)
    return outcomes - log_total[..., None], (head, tokens, temperature, tail, log_total)


def _outcomes_backward(
    chunks: Chunks, residuals: tuple[Any, ...], d_outcomes: jax.Array
) -> tuple[Head, None, None]:
    head, tokens, temperature, tail, log_total = residuals
    d_own, d_tail = d_outcomes[..., :-1], d_outcomes[..., -1:]
    d_own = jnp.where((tokens >= 0) & (tokens < chunks.vocabulary), d_own, 0)
    d_total = jnp.sum(d_own, axis=-1, keepdims=True) + d_tail

    def d_logits(index: jax.Array, logits: jax.Array) -> jax.Array:
        places, others = _places(chunks, tokens, index, logits)
        _, fresh = chunks.ids(index)
        # The gradients of the tokens' own logits and of the tail's log Σ exp z, less the total's.
        own = put(jnp.zeros_like(logits), places, d_own)
        share = jnp.where(others, jnp.exp(logits - tail[..., None]), 0)
        probs = jnp.where(fresh, jnp.exp(logits - log_total[..., None]), 0)
        return own + d_tail * share - d_total * probs

    return head_gradient(chunks, head, temperature, d_logits), None, None


outcomes_of.defvjp(_outcomes_forward, _outcomes_backward)


def _places(
    chunks: Chunks, tokens: jax.Array, index: jax.Array, logits: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Where tokens are in a chunk, beyond its end if they are not; and which others it has."""
    places = chunks.find(tokens, index)
    _, fresh = chunks.ids(index)
    others = put(jnp.ones_like(logits, dtype=bool) & fresh, places, False)
    return places, others
