"""The sums over the vocabulary behind `logprobs`, a chunk of the LM head's columns at a time.

The forward pass keeps running maxima and sums; the backward pass computes each chunk's logits
again. What is in memory is one chunk of logits, never [..., V].
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax import lax

from t2g_jax.numerics import matrix_product, soft_capped

Carry = TypeVar("Carry")
Sums = tuple[jax.Array, jax.Array, jax.Array, jax.Array]


class Head(NamedTuple):
    """Hidden states [..., D] and columns [D, V] of the LM head that reads them."""

    hidden: jax.Array
    kernel: jax.Array

    @property
    def dtype(self) -> jnp.dtype:
        """The type of logits and sums: float64 if either input is, float32 otherwise."""
        double = jnp.float64 in (self.hidden.dtype, self.kernel.dtype)
        return jnp.dtype(jnp.float64 if double else jnp.float32)

    def logits(self, temperature: jax.Array, softcap: float = 0.0) -> jax.Array:
        """[..., V], soft-capped if asked, then scaled by the temperature, a scalar or [...]."""
        products = matrix_product(self.hidden, self.kernel, preferred_element_type=self.dtype)
        return soft_capped(products, softcap) / temperature[..., None]


class HeadSharding(NamedTuple):
    """How a kernel [D, V] that is spread over devices is read: a chunk at a time is gathered.

    kernel: where it lies, and its gradient. chunk: where columns lie while products read them.
    """

    kernel: jax.sharding.Sharding
    chunk: jax.sharding.Sharding


class Chunks(NamedTuple):
    """How V columns are cut: into `shards` equal parts, from each of which a chunk takes `size`.

    With one part per device that holds columns, every chunk has columns of every device and cutting
    moves none. The last chunk starts early enough to fit, which avoids a padded copy of the kernel;
    its columns that an earlier chunk has seen are not `fresh`. `softcap` is that of the logits.
    """

    vocabulary: int
    size: int
    shards: int
    softcap: float = 0.0
    spread: HeadSharding | None = None

    @property
    def columns(self) -> int:
        return self.vocabulary // self.shards

    @property
    def single(self) -> bool:
        """One chunk holds the whole vocabulary."""
        return self.columns <= self.size

    def scan(self, add_chunk: Callable[[Carry, jax.Array], Carry], carry: Carry) -> Carry:
        """carry ← add_chunk(carry, i) for every chunk i."""

        def step(carry: Carry, index: jax.Array) -> tuple[Carry, None]:
            return add_chunk(carry, index), None

        return lax.scan(step, carry, jnp.arange(-(-self.columns // self.size)))[0]

    def logits(self, head: Head, index: jax.Array, temperature: jax.Array) -> jax.Array:
        """[..., shards · size], those of a chunk's columns."""
        chunk = head._replace(kernel=self.take(head.kernel, index))
        return chunk.logits(temperature, self.softcap)

    def take(self, kernel: jax.Array, index: jax.Array) -> jax.Array:
        """[D, V] → [D, shards · size], the columns of a chunk, where products read them."""
        return self._read(self._cut(kernel, index))

    def whole(self, kernel: jax.Array) -> jax.Array:
        """[D, V], where products read it if all columns are one chunk."""
        return self._read(kernel)

    def _read(self, columns: jax.Array) -> jax.Array:
        if self.spread is None:
            return columns
        return lax.with_sharding_constraint(columns, self.spread.chunk)

    def placed(self, kernel: jax.Array) -> jax.Array:
        """[D, any], where the kernel lies."""
        if self.spread is None:
            return kernel
        return lax.with_sharding_constraint(kernel, self.spread.kernel)

    def _cut(self, kernel: jax.Array, index: jax.Array) -> jax.Array:
        parts = kernel.reshape(-1, self.shards, self.columns)
        chunk = lax.dynamic_slice_in_dim(parts, self._start(index), self.size, axis=2)
        # First where it lies, or the compiler would gather the kernel and cut then.
        return self.placed(chunk.reshape(-1, self.shards * self.size))

    def add(self, kernel: jax.Array, index: jax.Array, chunk: jax.Array) -> jax.Array:
        """[D, V] with a chunk added in its place."""
        chunk = self._cut(kernel, index) + self.placed(chunk)
        chunk = chunk.reshape(-1, self.shards, self.size)
        parts = kernel.reshape(-1, self.shards, self.columns)
        parts = lax.dynamic_update_slice_in_dim(parts, chunk, self._start(index), axis=2)
        return parts.reshape(kernel.shape)

    def ids(self, index: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Token ids of a chunk's columns, and which of them are fresh; [shards · size] each."""
        column = self._start(index) + jnp.arange(self.size)
        ids = jnp.arange(self.shards)[:, None] * self.columns + column
        fresh = jnp.broadcast_to(column >= index * self.size, ids.shape)
        return ids.reshape(-1), fresh.reshape(-1)

    def find(self, tokens: jax.Array, index: jax.Array) -> jax.Array:
        """Where tokens are among a chunk's fresh columns; beyond its end where they are not."""
        column = tokens % self.columns
        fresh = (column >= index * self.size) & (column < (index + 1) * self.size)
        fresh &= (tokens >= 0) & (tokens < self.vocabulary)
        place = tokens // self.columns * self.size + column - self._start(index)
        return jnp.where(fresh, place, self.shards * self.size)

    def _start(self, index: jax.Array) -> jax.Array:
        return jnp.minimum(index * self.size, self.columns - self.size)


# ------------------------------------------------------------------ log-probabilities and entropy


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def logprobs(
    chunks: Chunks,
    head: Head,
    tokens: jax.Array,
    temperature: jax.Array,
    cutoff: jax.Array | None,
) -> tuple[jax.Array, jax.Array]:
    """Log-probability of `tokens` and entropy, [...]: `logprobs.token_logprobs_from_hidden`."""
    return _logprobs_forward(chunks, head, tokens, temperature, cutoff)[0]


def _logprobs_forward(
    chunks: Chunks,
    head: Head,
    tokens: jax.Array,
    temperature: jax.Array,
    cutoff: jax.Array | None,
) -> tuple[tuple[jax.Array, jax.Array], tuple[Any, ...]]:
    threshold = None
    if cutoff is not None:
        log_total, _, _ = statistics(chunks, head, tokens, temperature, None)
        threshold = cutoff + log_total
    log_total, mean, own_logit = statistics(chunks, head, tokens, temperature, threshold)
    entropy = log_total - mean
    residuals = head, tokens, temperature, threshold, log_total, entropy
    return (own_logit - log_total, entropy), residuals


def _logprobs_backward(
    chunks: Chunks, residuals: tuple[Any, ...], cotangents: tuple[jax.Array, jax.Array]
) -> tuple[Head, None, None, None]:
    head, tokens, temperature, threshold, log_total, entropy = residuals
    d_logprobs, d_entropy = cotangents

    def d_logits(index: jax.Array, logits: jax.Array) -> jax.Array:
        own, kept = _selected(chunks, index, tokens, logits, threshold)
        log_probs = logits - log_total[..., None]
        probs = jnp.where(kept, jnp.exp(log_probs), 0)
        # ∂ log π(y)/∂zᵥ = 1[v = y] − π(v);  ∂H/∂zᵥ = −π(v) (log π(v) + H)
        surprise = log_probs + entropy[..., None]
        return d_logprobs[..., None] * (own - probs) - d_entropy[..., None] * probs * surprise

    return head_gradient(chunks, head, temperature, d_logits), None, None, None


logprobs.defvjp(_logprobs_forward, _logprobs_backward)


def statistics(
    chunks: Chunks,
    head: Head,
    tokens: jax.Array,
    temperature: jax.Array,
    threshold: jax.Array | None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """log Σ exp z and the mean of z under softmax(z), over the kept columns; the token's own z."""

    def add_chunk(carry: Sums, index: jax.Array) -> Sums:
        maximum, total, moment, own_logit = carry
        logits = chunks.logits(head, index, temperature)
        own, kept = _selected(chunks, index, tokens, logits, threshold)
        highest = jnp.max(jnp.where(kept, logits, lowest(logits)), axis=-1)
        new_maximum = jnp.maximum(maximum, highest)
        shifted = logits - new_maximum[..., None]
        weights = jnp.where(kept, jnp.exp(shifted), 0)
        # total = Σ exp(z − maximum), moment = Σ (z − maximum) exp(z − maximum)
        drop = maximum - new_maximum
        moment = jnp.exp(drop) * (moment + drop * total) + jnp.sum(weights * shifted, axis=-1)
        total = jnp.exp(drop) * total + jnp.sum(weights, axis=-1)
        own_logit += jnp.sum(jnp.where(own, logits, 0), axis=-1)
        return new_maximum, total, moment, own_logit

    zeros = jnp.zeros_like(head.hidden[..., 0], dtype=head.dtype)
    carry = zeros + lowest(zeros), zeros, zeros, zeros
    maximum, total, moment, own_logit = chunks.scan(add_chunk, carry)
    return maximum + jnp.log(total), maximum + moment / total, own_logit


def _selected(
    chunks: Chunks,
    index: jax.Array,
    tokens: jax.Array,
    logits: jax.Array,
    threshold: jax.Array | None,
) -> tuple[jax.Array, jax.Array]:
    """Which columns of a chunk are the token's own, and which the sums run over."""
    ids, fresh = chunks.ids(index)
    own = (tokens[..., None] == ids) & fresh
    kept = fresh if threshold is None else own | (fresh & (logits >= threshold[..., None]))
    return own, kept


# ------------------------------------------------------------------ full KL


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def full_kl(chunks: Chunks, head: Head, reference: Head, temperature: jax.Array) -> jax.Array:
    """KL(policy ‖ reference), [...]. See `t2g_jax.logprobs.full_kl_from_hidden`."""
    return _full_kl_forward(chunks, head, reference, temperature)[0]


def _full_kl_forward(
    chunks: Chunks, head: Head, reference: Head, temperature: jax.Array
) -> tuple[jax.Array, tuple[Any, ...]]:
    def add_chunk(carry: Any, index: jax.Array) -> Any:
        maximum, total, moment, ref_maximum, ref_total = carry
        _, fresh = chunks.ids(index)
        logits, ref_logits = (chunks.logits(x, index, temperature) for x in (head, reference))
        new_maximum = jnp.maximum(maximum, jnp.max(logits, axis=-1))
        new_ref_maximum = jnp.maximum(ref_maximum, jnp.max(ref_logits, axis=-1))
        weights = jnp.where(fresh, jnp.exp(logits - new_maximum[..., None]), 0)
        ref_weights = jnp.where(fresh, jnp.exp(ref_logits - new_ref_maximum[..., None]), 0)
        # total = Σ exp(z − maximum), moment = Σ (z − z_ref) exp(z − maximum)
        scale, ref_scale = jnp.exp(maximum - new_maximum), jnp.exp(ref_maximum - new_ref_maximum)
        total = scale * total + jnp.sum(weights, axis=-1)
        moment = scale * moment + jnp.sum(weights * (logits - ref_logits), axis=-1)
        ref_total = ref_scale * ref_total + jnp.sum(ref_weights, axis=-1)
        return new_maximum, total, moment, new_ref_maximum, ref_total

    zeros = jnp.zeros_like(head.hidden[..., 0], dtype=head.dtype)
    low = zeros + lowest(zeros)
    maximum, total, moment, ref_maximum, ref_total = chunks.scan(
        add_chunk, (low, zeros, zeros, low, zeros)
    )
    log_total = maximum + jnp.log(total)
    ref_log_total = ref_maximum + jnp.log(ref_total)
    kl = moment / total - log_total + ref_log_total
    return kl, (head, reference, temperature, log_total, ref_log_total, kl)


def _full_kl_backward(
    chunks: Chunks, residuals: tuple[Any, ...], d_kl: jax.Array
) -> tuple[Head, None, None]:
    head, reference, temperature, log_total, ref_log_total, kl = residuals

    def d_logits(index: jax.Array, logits: jax.Array) -> jax.Array:
        _, fresh = chunks.ids(index)
        log_probs = logits - log_total[..., None]
        ref_logits = chunks.logits(reference, index, temperature)
        log_ratio = log_probs - (ref_logits - ref_log_total[..., None])
        probs = jnp.where(fresh, jnp.exp(log_probs), 0)
        # ∂KL/∂zᵥ = π(v) (log π(v) − log π_ref(v) − KL)
        return d_kl[..., None] * probs * (log_ratio - kl[..., None])

    return head_gradient(chunks, head, temperature, d_logits), None, None


full_kl.defvjp(_full_kl_forward, _full_kl_backward)


# ------------------------------------------------------------------ shared


def head_gradient(
    chunks: Chunks,
    head: Head,
    temperature: jax.Array,
    d_logits: Callable[[jax.Array, jax.Array], jax.Array],
) -> Head:
    """Gradient of a head from d_logits(chunk index, its logits), the gradient of those logits."""
    narrow = head.hidden.dtype == head.kernel.dtype == jnp.bfloat16
    # Fast products; bfloat16 has the range of float32.
    product_dtype = jnp.bfloat16 if narrow else head.dtype

    def products(head: Head) -> jax.Array:
        hidden, kernel = (x.astype(product_dtype) for x in head)
        return matrix_product(hidden, kernel)

    def add_chunk(gradient: Head, index: jax.Array) -> Head:
        chunk = head._replace(kernel=chunks.take(head.kernel, index))
        logits = chunk.logits(temperature, chunks.softcap)
        d_products = d_logits(index, logits) / temperature[..., None]
        if chunks.softcap:  # d tanh = 1 − tanh²
            d_products *= 1 - (logits * temperature[..., None] / chunks.softcap) ** 2
        # The transpose of the product, rather than products of our own, so that gradients have the
        # sharding of their operands, and are summed over devices, wherever types say so.
        (d_chunk,) = jax.vjp(products, chunk)[1](d_products.astype(product_dtype))
        return Head(
            gradient.hidden + d_chunk.hidden, chunks.add(gradient.kernel, index, d_chunk.kernel)
        )

    # The hidden states' gradient sums over chunks; of the kernel's, each column is written once.
    zeros = Head(
        jnp.zeros_like(head.hidden, dtype=head.dtype), chunks.placed(jnp.zeros_like(head.kernel))
    )
    gradient = chunks.scan(add_chunk, zeros)
    return jax.tree.map(lambda g, x: g.astype(x.dtype), gradient, head)


def lowest(x: jax.Array) -> float:
    """Finite, so that differences to it are; −inf − (−inf) is not."""
    return float(jnp.finfo(x.dtype).min)
