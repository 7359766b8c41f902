"""Distillation: from the policy with feedback in its prompt, or another teacher, to the policy.

On sampled tokens: of the teacher (`self_distillation`, RLTF-SD) or of the student
(`sampled_reverse_kl`). On whole next-token distributions: `logit_distillation` (SDPO, GKD, OPSD),
whose reverse KL `sampled_reverse_kl` estimates, and `top_k_distillation` where of the teacher only
its most likely tokens are known. Whole distributions from hidden states, without [B, T, V] in
memory: `logprobs.distillation_from_hidden` and `top_k_distillation_from_hidden`.

All unreduced, to minimize. A divergence that is used as an advantage, a number without a gradient,
says of a state that it is a bad one, and not which token to say instead: differentiate it.
"""

import math
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from t2g_jax.divergences import (
    check_divergence,
    check_top_k,
    log_total,
    mixed_divergence,
    put,
    teacher_outcomes,
    top_and_tail,
)
from t2g_jax.losses.importance import sequence_ratio, token_ratio
from t2g_jax.losses.likelihood import weighted
from t2g_jax.losses.policy_gradient import cispo, clipped_surrogate, reinforce
from t2g_jax.numerics import (
    as_float,
    by_token,
    check_axis,
    check_count,
    check_number,
    chosen,
    defined,
    same_shape,
    settled,
    the_mask,
)

Correction = Literal["none", "importance", "sequence_importance", "ppo", "cispo"]
TopKOf = Literal["teacher", "student"]


def self_distillation(
    logprobs: ArrayLike,
    advantages: ArrayLike,
    *,
    correction: Correction = "none",
    old_logprobs: ArrayLike | None = None,
    teacher_logprobs: ArrayLike | None = None,
    epsilon_low: float = 0.2,
    epsilon_high: float = 0.2,
    logprob_floor: float | None = None,
    token_weights: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    segment_ids: ArrayLike | None = None,
    where: ArrayLike | None = None,
) -> jax.Array:
    """Learning a revised answer y₁ as if it had been the first: w · loss(log π(y₁ | x₀), A).

    y₁ was sampled from π(· | x₁), whose prompt x₁ holds the first attempt and the feedback. With
    ρₜ = exp(log π(yₜ | x₀) − log π_sampled(yₜ)), A is commonly `advantages.first_turn` and the loss
      none                 −A log π              `reinforce`: advantage-weighted regression, the
                                                 authors' choice
      importance           −sg[ρₜ] A log π       weighs each token by its own ratio alone
      sequence_importance  −sg[Πₜ ρₜ] A log π    weighs a sequence by the ratio of all its tokens
      ppo                  max(−ρA, −clip(ρ) A)  see `clipped_surrogate`
      cispo                −sg[clip(ρ)] A log π  see `cispo`

    Only sequence_importance is unbiased for the policy gradient E_{y ~ π(·|x₀)}[A(y) ∇log π(y|x₀)]
    (as a sum over tokens; up to the ratio's clip at e^±20), at the price of a variance that grows
    with the length. The others are biased: importance leaves out how likely the tokens before t and
    after t were to be sampled.

    RLTF-SD, arXiv 2602.02482. With correction none and A = 1 on correct y₁, 0 elsewhere, it is
    rejection-sampling SFT, `nll`.

    >>> from t2g_jax import losses
    >>> logprobs = [[-1.0, -6.0]]  # of a revised answer, from the first prompt
    >>> losses.self_distillation(logprobs, [[0.5]], logprob_floor=-5.0)
    Array([[0.5, 0. ]], dtype=float32)

    Args:
      logprobs: [B, T] float, log π(y₁ | x₀) under the policy being trained.
      advantages: [B, T] float, or [B, 1]; no gradient.
      correction: how the mismatch between π(· | x₁) and π(· | x₀) is treated.
      old_logprobs: [B, T] float, log π(y₁ | x₀) under the policy as it was when it sampled y₁;
        what logprob_floor looks at. No gradient.
      teacher_logprobs: [B, T] float, log π(y₁ | x₁) under the distribution that y₁ was really
        sampled from: the denominator of ρ. Without it old_logprobs is, which only corrects for the
        updates since sampling. No gradient; not used by correction none.
      epsilon_low, epsilon_high: clip range of ppo and cispo, 0 or more.
      logprob_floor: tokens less likely than this from x₀ are dropped: loss 0, no gradient. Judged
        by old_logprobs, or by logprobs without it. The authors' value is −5.
      token_weights: [B, T] float, or [B, 1], w, for instance from the critique's spans, or of
        `truncated_importance`. No gradient.
      mask: [B, T], which tokens make up y₁, for sequence_importance, which needs it.
      segment_ids: [B, T], which sequence of a packed row they belong to, see `sequence_ratio`.
      where: in place of the mask: the loss is 0, without a gradient, where it is off.

    Returns:
      [B, T]; NaN without a gradient where an input is not finite and the token is not dropped.

    Raises:
      ValueError: shapes differ, the correction is unknown, it needs a ratio and neither
        teacher_logprobs nor old_logprobs is given, or a mask and there is none; mask and where are
        both given; an epsilon is negative or NaN.
    """
    correction = chosen("correction", correction, get_args(Correction))
    check_number("epsilon_low", epsilon_low)
    check_number("epsilon_high", epsilon_high)
    advantages = by_token("logprobs", logprobs, "advantages", advantages)
    if mask is not None or where is not None:
        mask = the_mask(logprobs, mask, where, like="logprobs")
    given = {"old_logprobs": old_logprobs, "teacher_logprobs": teacher_logprobs}
    given = {name: array for name, array in given.items() if array is not None}
    logprobs, advantages, *_ = same_shape(logprobs=logprobs, advantages=advantages, **given)
    sampled_logprobs = old_logprobs if teacher_logprobs is None else teacher_logprobs

    if correction == "none":
        loss = reinforce(logprobs, advantages)
    elif sampled_logprobs is None:
        raise ValueError(
            f"correction {correction!r} needs teacher_logprobs (log π of the tokens under the "
            "distribution that they were sampled from) or old_logprobs"
        )
    elif correction == "importance":
        loss = cispo(
            logprobs, sampled_logprobs, advantages, epsilon_low=math.inf, epsilon_high=math.inf
        )
    elif correction == "sequence_importance":
        if mask is None:
            raise ValueError(
                "correction 'sequence_importance' needs mask: the tokens that make up y₁"
            )
        ratio = sequence_ratio(
            logprobs, sampled_logprobs, mask, segment_ids=segment_ids, mean=False
        )
        loss = reinforce(logprobs, lax.stop_gradient(ratio) * advantages)
    else:
        clip = clipped_surrogate if correction == "ppo" else cispo
        loss = clip(
            logprobs,
            sampled_logprobs,
            advantages,
            epsilon_low=epsilon_low,
            epsilon_high=epsilon_high,
        )

    if logprob_floor is not None:
        from_first_prompt = logprobs if old_logprobs is None else jnp.asarray(old_logprobs)
        loss = jnp.where(lax.stop_gradient(from_first_prompt) < logprob_floor, 0, loss)
    if where is not None:
        loss = jnp.where(mask != 0, loss, 0)
    return weighted(loss, token_weights)


def sampled_reverse_kl(
    logprobs: ArrayLike,
    teacher_logprobs: ArrayLike,
    *,
    sampled_logprobs: ArrayLike | None = None,
    token_weights: ArrayLike | None = None,
    where: ArrayLike | None = None,
) -> jax.Array:
    """KL(π ‖ teacher) from tokens that the student sampled: ρ d, d = log π(yₜ) − log π_teacher(yₜ).

    The value is the estimate ρ d, whose mean is the KL of the next-token distribution; the gradient
    is sg[ρ d] ∇log π, whose mean is the KL's:

      ∇ Σᵥ π(v) d(v) = Σᵥ π(v) (d(v) + 1) ∇log π(v) = E[d ∇log π],   as E[∇log π] = 0.

    Differentiating d itself (`kl.k1` as a loss) gives E[∇log π] = 0, which is to learn nothing.
    It is `reinforce` with the advantage −d, and has the gradient of `kl.k2`; the expectation over
    all tokens, without the noise of sampling, is `logit_distillation` with α = 1. Each token
    answers for its own divergence alone; to have it answer for those that follow as well, as the KL
    of whole sequences wants, give `advantages.gae` the rewards −d.

    "On-Policy Distillation", Lu and Thinking Machines Lab, 2025; MiniLLM, arXiv 2306.08543, Eq. 2.

    >>> import jax
    >>> from t2g_jax import losses
    >>> def loss(logprobs):
    ...     return losses.sampled_reverse_kl(logprobs, [-3.0, -2.0]).sum()
    >>> jax.value_and_grad(loss)(jax.numpy.array([-1.0, -2.5]))
    (Array(1.5, dtype=float32), Array([ 2. , -0.5], dtype=float32))

    Args:
      logprobs: [B, T] float, of the student's tokens under the policy being trained.
      teacher_logprobs: [B, T] float, of the same tokens under the teacher; no gradient.
      sampled_logprobs: [B, T] float, under the distribution that they were really drawn from, for
        ρ = π / π_sampled; no gradient. Without it ρ is 1: the tokens are the policy's own.
      token_weights: [B, T] float, or [B, 1]; no gradient.
      where: [B, T] bool or float, tokens that count; elsewhere the loss is 0, without a gradient.

    Returns:
      [B, T], nats; NaN without a gradient where an input is not finite.

    Raises:
      ValueError: shapes differ.
    """
    given = {"logprobs": logprobs, "teacher_logprobs": teacher_logprobs}
    if sampled_logprobs is not None:
        given["sampled_logprobs"] = sampled_logprobs
    ok, logprobs, teacher, *sampled = defined(**given)
    estimate = logprobs - teacher
    for old in sampled:
        estimate *= token_ratio(logprobs, old)
    estimate = lax.stop_gradient(estimate)
    loss = estimate + estimate * (logprobs - lax.stop_gradient(logprobs))
    return weighted(settled(loss, ok, where), token_weights)


def logit_distillation(
    student_logits: ArrayLike,
    teacher_logits: ArrayLike,
    *,
    alpha: float = 0.5,
    top_k: int | None = None,
    top_k_of: TopKOf = "teacher",
    entry_clip: float | None = None,
    where: ArrayLike | None = None,
    axis: int = -1,
) -> jax.Array:
    """Divergence of the student's next-token distributions s from the teacher's t.

      alpha = 0      KL(t ‖ s), forward: covers what the teacher would say
      alpha = 1      KL(s ‖ t), reverse: seeks its modes
      0 < alpha < 1  α KL(t ‖ m) + (1 − α) KL(s ‖ m),   m = α t + (1 − α) s   (½: Jensen–Shannon)

    SDPO, arXiv 2601.20802: the teacher is the policy itself with feedback in its prompt, the tokens
    are the student's. GKD, arXiv 2306.13649, Eq. 1–2, has the same ends; the mixture vanishes at
    both, hence the separate cases. The forward KL has the gradient of `nll` averaged over tokens
    that the teacher says, the reverse one that of `sampled_reverse_kl` over the student's.

    >>> import jax.numpy as jnp
    >>> from t2g_jax import losses
    >>> student, teacher = jnp.log(jnp.array([[0.5, 0.5]])), jnp.log(jnp.array([[0.9, 0.1]]))
    >>> for alpha in (0.0, 0.5, 1.0):
    ...     print(f"{losses.logit_distillation(student, teacher, alpha=alpha)[0]:.3f}")
    0.368
    0.102
    0.511

    Args:
      student_logits: [..., V] float.
      teacher_logits: [..., V] float; no gradient.
      alpha: in [0, 1], a Python number.
      top_k: int, compare the k most likely tokens and, as one more outcome, everything else. A
        lower bound of the divergence over the whole vocabulary, which None compares.
      top_k_of: whose most likely tokens. SDPO's authors take the student's.
      entry_clip: the most that one outcome adds to the divergence, nats, a Python number; it has no
        gradient beyond. OPSD, arXiv 2601.18734: a few tokens of style ("wait") would outweigh all
        others; its authors take 0.05 with alpha 0. None: no limit.
      where: [...] bool or float, tokens that count; elsewhere the loss is 0, without a gradient.
      axis: the vocabulary's.

    Returns:
      [...], nats, never negative up to rounding (with entry_clip it may be); NaN without a gradient
      where logits hold NaN or +inf, or −inf only.

    Raises:
      ValueError: shapes differ, there is no such axis, or alpha, top_k, top_k_of or entry_clip are
        out of range.
      TypeError: alpha or entry_clip is no Python number, or top_k no integer.
    """
    student, teacher = same_shape(student_logits=student_logits, teacher_logits=teacher_logits)
    check_divergence(alpha, entry_clip)
    check_axis("student_logits", student, axis)
    if top_k is not None:
        check_count("top_k", top_k, least=1)
    top_k_of = chosen("top_k_of", top_k_of, get_args(TopKOf))

    student, teacher = (jnp.moveaxis(x, axis, -1) for x in (student, teacher))
    (student, student_ok), (teacher, teacher_ok) = map(_log_softmax, (student, teacher))
    teacher = lax.stop_gradient(teacher)
    if top_k is not None and top_k < student.shape[-1]:
        ranking = lax.stop_gradient(teacher if top_k_of == "teacher" else student)
        student, teacher = (top_and_tail(x, ranking, top_k)[0] for x in (student, teacher))
    loss = mixed_divergence(student, teacher, alpha, entry_clip)
    return settled(loss, student_ok & teacher_ok, where, like="student_logits[..., 0]")


def top_k_distillation(
    student_logits: ArrayLike,
    token_ids: ArrayLike,
    teacher_logprobs: ArrayLike,
    *,
    teacher_tail: ArrayLike | None = None,
    alpha: float = 0.5,
    entry_clip: float | None = None,
    where: ArrayLike | None = None,
    axis: int = -1,
) -> jax.Array:
    """`logit_distillation` of k tokens and the tail, from the teacher's k most likely tokens alone.

    What an inference server says of a teacher: its k best tokens at each place and their
    log-probabilities. The student's tail is exact; the teacher's is what the k leave of 1.

    >>> import jax.numpy as jnp
    >>> from t2g_jax import losses
    >>> student, teacher = jnp.log(jnp.array([0.5, 0.25, 0.25])), jnp.log(jnp.array([0.75]))
    >>> print(f"{losses.top_k_distillation(student, [0], teacher, alpha=0.0):.3f}")
    0.131

    Args:
      student_logits: [..., V] float.
      token_ids: [..., k] int, different tokens; one that is not in [0, V) is padding.
      teacher_logprobs: [..., k] float, of these tokens under the teacher, at the temperature of the
        student's logits; no gradient. Should they hold more than 1 together, they are taken as they
        are and the tail for next to nothing: what comes out is then no divergence, and may be
        negative. By more than rounding, the teacher's are no normalized log-probabilities.
      teacher_tail: [...] float, the log-probability of all other tokens together, if it is known
        better than from the difference, which is rounding once the k hold nearly everything.
      alpha, entry_clip: see `logit_distillation`.
      where: [...] bool or float, tokens that count; elsewhere the loss is 0, without a gradient.
      axis: the vocabulary's, and the k tokens' in theirs.

    Returns:
      [...], nats; NaN without a gradient where logits hold NaN or +inf, or −inf only, or a
      teacher's log-probability is NaN or +inf.

    Raises:
      ValueError: shapes do not fit, token_ids are not integers, there is no such axis, or alpha or
        entry_clip are out of range.
      TypeError: alpha or entry_clip is no Python number.
    """
    check_divergence(alpha, entry_clip)
    named = {
        "student_logits": student_logits,
        "token_ids": token_ids,
        "teacher_logprobs": teacher_logprobs,
    }
    for name, array in named.items():
        check_axis(name, array, axis)
    student_logits, token_ids, teacher_logprobs = (
        jnp.moveaxis(jnp.asarray(x), axis, -1) for x in named.values()
    )
    student, student_ok = _log_softmax(as_float(student_logits))
    vocabulary = student.shape[-1]
    check_top_k("student_logits", student, token_ids, teacher_logprobs)
    token_ids, teacher, teacher_ok = teacher_outcomes(
        token_ids, teacher_logprobs, teacher_tail, vocabulary
    )
    known = token_ids < vocabulary
    own = jnp.take_along_axis(student, jnp.where(known, token_ids, 0), axis=-1)
    own = jnp.where(known, own, -jnp.inf)
    if teacher.shape[-1] > token_ids.shape[-1]:
        outside = put(jnp.ones_like(student, dtype=bool), token_ids, False)
        own = jnp.concatenate([own, log_total(student, outside)[..., None]], axis=-1)
    loss = mixed_divergence(own, teacher, alpha, entry_clip)
    return settled(loss, student_ok & teacher_ok, where, like="student_logits[..., 0]")


def _log_softmax(logits: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Log-probabilities, [..., V], and where they are defined, [...]."""
    ok = jnp.isfinite(jnp.max(logits, axis=-1))
    return jax.nn.log_softmax(jnp.where(ok[..., None], logits, 0)), ok
