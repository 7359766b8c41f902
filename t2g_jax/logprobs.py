"""Log-probabilities, entropy and full KL of a language model's next-token distributions.

From logits where they exist, and from hidden states where [B, T, V] logits would not fit: the LM
head is then applied to a slice of the vocabulary at a time, with a running logsumexp, and once more
in the backward pass.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from t2g_jax import chunked
from t2g_jax.chunked import Chunks, Head, HeadSharding
from t2g_jax.chunked_distillation import Divergence, distillation, outcomes_of, top_tokens
from t2g_jax.deprecation import keep_old_names
from t2g_jax.divergences import (
    check_divergence,
    check_top_k,
    mixed_divergence,
    teacher_outcomes,
)
from t2g_jax.kl import divergence
from t2g_jax.numerics import as_float, check_count, check_number, chosen, settled

CHUNK_SIZE = 4096

keep_old_names(
    __name__,
    {
        "Spread": "HeadSharding",
        "from_hidden": "token_logprobs_from_hidden",
        "from_logits": "token_logprobs_from_logits",
    },
)


class LogProbs(NamedTuple):
    """Per token, under the distribution that was asked for (temperature, truncation).

    >>> from t2g_jax import logprobs
    >>> logprobs.token_logprobs_from_logits([[0.0, 0.0]], [1], with_entropy=False)
    LogProbs(logprobs=Array([-0.6931472], dtype=float32), entropy=None)
    """

    logprobs: jax.Array
    """[...] log-probability of the token."""
    entropy: jax.Array | None
    """[...] entropy of the distribution, nats; None if not asked for."""


def token_logprobs(logits: ArrayLike, tokens: ArrayLike) -> jax.Array:
    """log softmax(logits)[tokens].

    >>> from t2g_jax import token_logprobs
    >>> print(*(f"{x:.3f}" for x in token_logprobs([[0.0, 0.0], [1.0, 0.0]], [1, 0])))
    -0.693 -0.313

    Args:
      logits: [..., V] float.
      tokens: [...] int in [0, V).

    Returns:
      [...], nats; NaN without a gradient where logits hold NaN or +inf, or −inf only, or a token is
      not in [0, V): what pads with −100 masks such places (`where=` of the losses).

    Raises:
      ValueError: logits without the last axis and tokens differ in shape, or tokens are not
        integers.
    """
    return token_logprobs_from_logits(logits, tokens, with_entropy=False).logprobs


def token_logprobs_from_logits(
    logits: ArrayLike,
    tokens: ArrayLike,
    *,
    temperature: ArrayLike = 1.0,
    cutoff: ArrayLike | None = None,
    with_entropy: bool = True,
) -> LogProbs:
    """As `token_logprobs_from_hidden`, from logits [..., V].

    >>> from t2g_jax import logprobs
    >>> found = logprobs.token_logprobs_from_logits([[2.0, 0.0]], [0], temperature=2.0)
    >>> print(f"{found.logprobs[0]:.3f}, entropy {found.entropy[0]:.3f}")
    -0.313, entropy 0.582
    """
    logits, tokens = as_float(logits), _integers(tokens)
    temperature, cutoff = _settings(tokens, temperature, cutoff, logits.dtype)
    if logits.shape[:-1] != tokens.shape:
        raise ValueError(
            "logits must have the shape of tokens and a vocabulary axis, but logits has shape "
            f"{logits.shape} and tokens has shape {tokens.shape}"
        )
    ok = jnp.isfinite(jnp.max(logits, axis=-1))
    logits = jnp.where(ok[..., None], logits, 0)
    tokens, known = _known(tokens, logits.shape[-1])
    return _where(ok & known, _dense(logits / temperature[..., None], tokens, cutoff, with_entropy))


def token_logprobs_from_hidden(
    hidden: ArrayLike,
    kernel: ArrayLike,
    tokens: ArrayLike,
    *,
    temperature: ArrayLike = 1.0,
    cutoff: ArrayLike | None = None,
    softcap: float = 0.0,
    chunk_size: int = CHUNK_SIZE,
    vocab_shards: int = 1,
    spread: HeadSharding | None = None,
    with_entropy: bool = True,
) -> LogProbs:
    """Log-probability of each token, and the entropy, without [..., V] in memory.

    z = hidden · kernel / temperature,   log π(v) = zᵥ − log Σᵤ exp zᵤ,   H = −Σᵥ π(v) log π(v).

    With a cutoff, the sums run over K = {v : log π(v) ≥ cutoff} ∪ {token} and log-probability and
    entropy are those of π renormalized over K: the distribution a top-k or top-p sampler drew from.
    Which tokens are in K has no gradient.

    >>> import jax.numpy as jnp
    >>> from t2g_jax import logprobs
    >>> hidden, kernel = jnp.array([[1.0, 0.0]]), jnp.array([[1.0, 0.0, 0.0], [0.0, 1.0, 2.0]])
    >>> found = logprobs.token_logprobs_from_hidden(hidden, kernel, jnp.array([0]), chunk_size=2)
    >>> print(f"{found.logprobs[0]:.3f}, entropy {found.entropy[0]:.3f}")
    -0.551, entropy 0.975

    Args:
      hidden: [..., D] float; hidden[i] predicts tokens[i].
      kernel: [D, V] float, the LM head. Products accumulate in float32.
      tokens: [...] int in [0, V).
      temperature: > 0, scalar or [...]. No gradient flows to it.
      cutoff: [...] float, log-probability under the whole distribution at this temperature;
        −inf where nothing was cut. A value half way between the last kept and the first dropped
        token keeps the set stable under rounding. No gradient flows to it.
      softcap: products p of hidden and kernel become softcap · tanh(p / softcap), as in Gemma 2;
        0 leaves them.
      chunk_size: columns of the kernel held at a time. A vocabulary that is no larger takes the
        ordinary path, which keeps its logits for the backward pass.
      vocab_shards: how many devices the kernel's columns are sharded over. Chunks are then cut
        from each shard, so that the kernel is never gathered. Must divide V.
      spread: where the kernel lies, if its rows are sharded too, and where a chunk of it is
        gathered; its gradient is scattered likewise. The kernel is never whole on one device.
      with_entropy: False leaves the entropy None.

    Returns:
      LogProbs of [...] float32 (float64 from float64); NaN without a gradient where hidden is not
      finite, or a token is not in [0, V).

    Raises:
      ValueError: shapes do not fit, tokens are not integers, vocab_shards does not divide V, or a
        setting is out of range.
      TypeError: softcap is no Python number, or chunk_size or vocab_shards no integer.
    """
    head, tokens = _head("hidden", hidden, "kernel", kernel), _integers(tokens)
    chunks = _chunks(head, chunk_size, vocab_shards, softcap, spread)
    if head.hidden.shape[:-1] != tokens.shape:
        raise ValueError(
            "hidden must have the shape of tokens and a feature axis, but hidden has shape "
            f"{head.hidden.shape} and tokens has shape {tokens.shape}"
        )
    temperature, cutoff = _settings(tokens, temperature, cutoff, head.dtype)
    head, ok = _finite(head)
    tokens, known = _known(tokens, chunks.vocabulary)
    if chunks.single:
        head = head._replace(kernel=chunks.whole(head.kernel))
        result = _dense(head.logits(temperature, softcap), tokens, cutoff, with_entropy)
    else:
        result = LogProbs(*chunked.logprobs(chunks, head, tokens, temperature, cutoff))
        if not with_entropy:
            result = result._replace(entropy=None)
    return _where(ok & known, result)


def full_kl_from_hidden(
    hidden: ArrayLike,
    kernel: ArrayLike,
    ref_hidden: ArrayLike,
    ref_kernel: ArrayLike,
    *,
    temperature: ArrayLike = 1.0,
    softcap: float = 0.0,
    chunk_size: int = CHUNK_SIZE,
    vocab_shards: int = 1,
    spread: HeadSharding | None = None,
    where: ArrayLike | None = None,
) -> jax.Array:
    """Exact KL(policy ‖ reference) of each next-token distribution, without [..., V] in memory.

    Σᵥ π(v) (log π(v) − log π_ref(v)), both at the given temperature. Gradients reach hidden and
    kernel; none the reference. The same as `kl.full` of the two log-softmaxes, and as
    `distillation_from_hidden` with α = 1.

    >>> import jax.numpy as jnp
    >>> from t2g_jax import logprobs
    >>> policy, reference, kernel = jnp.array([[1.0, 0.0]]), jnp.array([[0.0, 0.0]]), jnp.eye(2)
    >>> kl = logprobs.full_kl_from_hidden(policy, kernel, reference, kernel, chunk_size=1)
    >>> print(f"{kl[0]:.3f}")
    0.111

    Args:
      hidden, kernel: [..., D] and [D, V], the policy's.
      ref_hidden, ref_kernel: [..., R] and [R, V], the reference's; R may differ from D.
      temperature, softcap, chunk_size, vocab_shards, spread: for both, see
        `token_logprobs_from_hidden`.
      where: [...] bool or float, tokens that count; elsewhere the KL is 0, without a gradient.

    Returns:
      [...], nats; NaN without a gradient where a hidden state is not finite.

    Raises:
      ValueError: shapes do not fit, vocab_shards does not divide V, or a setting is out of range.
      TypeError: see `token_logprobs_from_hidden`.
    """
    head = _head("hidden", hidden, "kernel", kernel)
    reference = _head("ref_hidden", ref_hidden, "ref_kernel", ref_kernel)
    chunks = _chunks(head, chunk_size, vocab_shards, softcap, spread)
    _agree("ref", head, reference)
    temperature, _ = _settings(head.hidden[..., 0], temperature, None, head.dtype)
    head, ok = _finite(head)
    reference, ref_ok = _finite(lax.stop_gradient(reference))
    if chunks.single:
        log_probs, ref_log_probs = (
            jax.nn.log_softmax(
                x._replace(kernel=chunks.whole(x.kernel)).logits(temperature, softcap)
            )
            for x in (head, reference)
        )
        result = divergence(log_probs, ref_log_probs)
    else:
        result = chunked.full_kl(chunks, head, reference, temperature)
    return settled(result, ok & ref_ok, where, like="hidden[..., 0]")


def distillation_from_hidden(
    hidden: ArrayLike,
    kernel: ArrayLike,
    teacher_hidden: ArrayLike,
    teacher_kernel: ArrayLike,
    *,
    alpha: float = 0.5,
    top_k: int | None = None,
    top_k_of: Literal["teacher", "student"] = "teacher",
    entry_clip: float | None = None,
    temperature: ArrayLike = 1.0,
    softcap: float = 0.0,
    chunk_size: int = CHUNK_SIZE,
    vocab_shards: int = 1,
    spread: HeadSharding | None = None,
    where: ArrayLike | None = None,
) -> jax.Array:
    """`losses.logit_distillation` from hidden states, without [..., V] in memory.

    >>> import jax.numpy as jnp
    >>> from t2g_jax import logprobs
    >>> kernel = jnp.eye(3)  # hidden states are their logits
    >>> student, teacher = jnp.array([[1.0, 0.0, 0.0]]), jnp.array([[2.0, 0.0, 0.0]])
    >>> for top_k in (None, 1):
    ...     loss = logprobs.distillation_from_hidden(student, kernel, teacher, kernel, top_k=top_k)
    ...     print(f"{loss[0]:.4f}")
    0.0260
    0.0260

    Args:
      hidden, kernel: [..., D] and [D, V], the student's.
      teacher_hidden, teacher_kernel: [..., R] and [R, V]; no gradient.
      alpha: 0 KL(t ‖ s), 1 KL(s ‖ t), between them the mixture; a Python number.
      top_k: compare the k most likely tokens and all others together, which is exact: the LM head
        is read once more to find them. None: the whole vocabulary.
      top_k_of: whose most likely tokens.
      entry_clip: the most that one token, or the tail, adds to the divergence, nats.
      temperature, softcap, chunk_size, vocab_shards, spread: for both, see
        `token_logprobs_from_hidden`.
      where: [...] bool or float, tokens that count; elsewhere the loss is 0, without a gradient.

    Returns:
      [...], nats; NaN without a gradient where a hidden state is not finite.

    Raises:
      ValueError: shapes do not fit, or alpha, top_k, top_k_of, entry_clip or another setting are
        out of range.
      TypeError: alpha or entry_clip is no Python number, or top_k no integer; or see
        `token_logprobs_from_hidden`.
    """
    check_divergence(alpha, entry_clip)
    if top_k is not None:
        check_count("top_k", top_k, least=1)
    top_k_of = chosen("top_k_of", top_k_of, ("teacher", "student"))
    head = _head("hidden", hidden, "kernel", kernel)
    teacher = _head("teacher_hidden", teacher_hidden, "teacher_kernel", teacher_kernel)
    _agree("teacher", head, teacher)
    chunks = _chunks(head, chunk_size, vocab_shards, softcap, spread)
    chunks = chunks._replace(size=min(chunks.size, chunks.columns))
    temperature, _ = _settings(head.hidden[..., 0], temperature, None, head.dtype)
    head, ok = _finite(head)
    teacher, teacher_ok = _finite(lax.stop_gradient(teacher))
    if top_k is None or top_k >= chunks.vocabulary:
        of = Divergence(alpha, entry_clip)
        result = distillation(chunks, of, head, teacher, temperature)
    else:
        ranked = teacher if top_k_of == "teacher" else lax.stop_gradient(head)
        tokens, theirs = top_tokens(chunks, top_k, ranked, temperature)
        if top_k_of == "student":
            theirs = lax.stop_gradient(outcomes_of(chunks, teacher, tokens, temperature))
        own = outcomes_of(chunks, head, tokens, temperature)
        result = mixed_divergence(own, theirs, alpha, entry_clip)
    return settled(result, ok & teacher_ok, where, like="hidden[..., 0]")


def top_k_distillation_from_hidden(
    hidden: ArrayLike,
    kernel: ArrayLike,
    token_ids: ArrayLike,
    teacher_logprobs: ArrayLike,
    *,
    teacher_tail: ArrayLike | None = None,
    alpha: float = 0.5,
    entry_clip: float | None = None,
    temperature: ArrayLike = 1.0,
    softcap: float = 0.0,
    chunk_size: int = CHUNK_SIZE,
    vocab_shards: int = 1,
    spread: HeadSharding | None = None,
    where: ArrayLike | None = None,
) -> jax.Array:
    """`losses.top_k_distillation` from hidden states, without [..., V] in memory.

    >>> import jax.numpy as jnp
    >>> from t2g_jax import logprobs
    >>> student, kernel = jnp.log(jnp.array([[0.5, 0.25, 0.25]])), jnp.eye(3)
    >>> teacher = jnp.log(jnp.array([[0.75]]))  # of token 0, all that a server said
    >>> loss = logprobs.top_k_distillation_from_hidden(student, kernel, [[0]], teacher, alpha=0.0)
    >>> print(f"{loss[0]:.3f}")
    0.131

    Args:
      hidden, kernel: [..., D] and [D, V], the student's.
      token_ids, teacher_logprobs: [..., k], the teacher's most likely tokens; no gradient.
      teacher_tail: [...], of all others together; see `losses.top_k_distillation`.
      alpha, entry_clip: see `losses.logit_distillation`.
      temperature, softcap, chunk_size, vocab_shards, spread: the student's, see
        `token_logprobs_from_hidden`.
      where: [...] bool or float, tokens that count; elsewhere the loss is 0, without a gradient.

    Returns:
      [...], nats; NaN without a gradient where a hidden state is not finite, or a teacher's
      log-probability is NaN or +inf.

    Raises:
      ValueError: shapes do not fit, token_ids are not integers, or alpha, entry_clip or another
        setting are out of range.
      TypeError: alpha or entry_clip is no Python number; or see `token_logprobs_from_hidden`.
    """
    check_divergence(alpha, entry_clip)
    head = _head("hidden", hidden, "kernel", kernel)
    check_top_k("hidden", head.hidden, token_ids, teacher_logprobs)
    chunks = _chunks(head, chunk_size, vocab_shards, softcap, spread)
    chunks = chunks._replace(size=min(chunks.size, chunks.columns))
    tokens, theirs, teacher_ok = teacher_outcomes(
        token_ids, teacher_logprobs, teacher_tail, chunks.vocabulary
    )
    temperature, _ = _settings(head.hidden[..., 0], temperature, None, head.dtype)
    head, ok = _finite(head)
    own = outcomes_of(chunks, head, tokens, temperature)[..., : theirs.shape[-1]]
    result = mixed_divergence(own, theirs, alpha, entry_clip)
    return settled(result, ok & teacher_ok, where, like="hidden[..., 0]")


def _agree(name: str, head: Head, other: Head) -> None:
    """ValueError unless two heads are of as many hidden states, and of as many tokens."""
    for part, ours, theirs in (
        ("hidden", head.hidden.shape[:-1], other.hidden.shape[:-1]),
        ("kernel", head.kernel.shape[1:], other.kernel.shape[1:]),
    ):
        if ours != theirs:
            ours, theirs = (getattr(x, part).shape for x in (head, other))
            raise ValueError(
                f"{part} and {name}_{part} must agree in all but the feature axis, but they have "
                f"shapes {ours} and {theirs}"
            )


def _dense(
    logits: jax.Array, tokens: jax.Array, cutoff: jax.Array | None, with_entropy: bool
) -> LogProbs:
    """LogProbs from temperature-scaled logits that are finite or −inf."""
    # Compare and sum instead of gather: it fuses, and works on a sharded vocabulary.
    own = tokens[..., None] == jnp.arange(logits.shape[-1])
    log_probs = jax.nn.log_softmax(logits)
    if cutoff is not None:
        kept = own | (lax.stop_gradient(log_probs) >= cutoff[..., None])
        log_probs = jax.nn.log_softmax(jnp.where(kept, logits, -jnp.inf))
    logprobs = jnp.sum(jnp.where(own, log_probs, 0), axis=-1)
    if not with_entropy:
        return LogProbs(logprobs, None)
    possible = log_probs != -jnp.inf
    safe = jnp.where(possible, log_probs, 0)
    return LogProbs(logprobs, -jnp.sum(jnp.where(possible, jnp.exp(safe) * safe, 0), axis=-1))


def _head(hidden_name: str, hidden: ArrayLike, kernel_name: str, kernel: ArrayLike) -> Head:
    hidden, kernel = jnp.asarray(hidden), jnp.asarray(kernel)
    if kernel.ndim != 2 or hidden.shape[-1:] != kernel.shape[:1]:
        raise ValueError(
            f"{hidden_name} must be [..., D] and {kernel_name} [D, V], but {hidden_name} has shape "
            f"{hidden.shape} and {kernel_name} has shape {kernel.shape}"
        )
    return Head(hidden, kernel)


def _chunks(
    head: Head, chunk_size: int, vocab_shards: int, softcap: float, spread: HeadSharding | None
) -> Chunks:
    vocabulary = head.kernel.shape[1]
    check_count("chunk_size", chunk_size, least=1)
    check_count("vocab_shards", vocab_shards, least=1)
    check_number("softcap", softcap, static=True)
    if vocabulary % vocab_shards:
        raise ValueError(
            f"vocab_shards must divide the vocabulary, but {vocab_shards} does not divide "
            f"{vocabulary}"
        )
    return Chunks(vocabulary, chunk_size, vocab_shards, softcap, spread)


def _finite(head: Head) -> tuple[Head, jax.Array]:
    """The head with zeros for hidden states that are not finite, and which are."""
    ok = jnp.all(jnp.isfinite(head.hidden), axis=-1)
    return head._replace(hidden=jnp.where(ok[..., None], head.hidden, 0)), ok


def _integers(tokens: ArrayLike) -> jax.Array:
    tokens = jnp.asarray(tokens)
    if not jnp.issubdtype(tokens.dtype, jnp.integer):
        raise ValueError(f"tokens must be integers, got {tokens.dtype}")
    return tokens


def _known(tokens: jax.Array, vocabulary: int) -> tuple[jax.Array, jax.Array]:
    """The tokens, 0 in place of those that are not in [0, V), and which are.

    One that no column is of would leave nothing to sum where a cutoff drops all others.
    """
    known = tokens >= 0
    if vocabulary <= jnp.iinfo(tokens.dtype).max:  # or V itself does not fit their type
        known &= tokens < vocabulary
    return jnp.where(known, tokens, 0), known


def _where(ok: jax.Array, result: LogProbs) -> LogProbs:
    return jax.tree.map(lambda x: jnp.where(ok, x, jnp.nan), result)


def _settings(
    tokens: jax.Array, temperature: ArrayLike, cutoff: ArrayLike | None, dtype: jnp.dtype
) -> tuple[jax.Array, jax.Array | None]:
    """Temperature and cutoff as constants of the computation, their shapes checked."""
    if np.ndim(temperature) == 0:  # one for each token may be anything where it is masked
        check_number("temperature", temperature, positive=True)
    temperature = lax.stop_gradient(jnp.asarray(temperature, dtype))
    if temperature.ndim and temperature.shape != tokens.shape:
        raise ValueError(
            "temperature must be a scalar or have the shape of tokens, but temperature has shape "
            f"{temperature.shape} and tokens has shape {tokens.shape}"
        )
    if cutoff is None:
        return temperature, None
    cutoff = lax.stop_gradient(jnp.asarray(cutoff, dtype))
    if cutoff.shape != tokens.shape:
        raise ValueError(
            f"cutoff and tokens must have the same shape, but cutoff has shape {cutoff.shape} "
            f"and tokens has shape {tokens.shape}"
        )
    return temperature, cutoff
