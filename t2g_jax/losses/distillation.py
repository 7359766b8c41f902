"""Self-distillation: from the policy with feedback in its prompt to the policy without.

On sampled tokens (RLTF-SD) and on whole next-token distributions (SDPO, GKD). All unreduced, to
minimize.
"""

import math
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from t2g_jax.kl import divergence
from t2g_jax.losses.likelihood import weighted
from t2g_jax.losses.policy_gradient import cispo, clipped_surrogate, reinforce, sequence_ratio
from t2g_jax.numerics import same_shape

Correction = Literal["none", "importance", "sequence_importance", "ppo", "cispo"]


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
) -> jax.Array:
    """Learning a revised answer y₁ as if it had been the first: w · loss(log π(y₁ | x₀), A).

    y₁ was sampled from π(· | x₁), whose prompt x₁ holds the first attempt and the feedback. With
    ρₜ = exp(log π(yₜ | x₀) − log π_sampled(yₜ)), A is commonly `advantages.first_turn` and the loss
      none                 −A log π              advantage-weighted regression, the authors' choice
      importance           −sg[ρₜ] A log π       weighs each token by its own ratio alone
      sequence_importance  −sg[Πₜ ρₜ] A log π    weighs a sequence by the ratio of all its tokens
      ppo                  max(−ρA, −clip(ρ) A)  see `clipped_surrogate`
      cispo                −sg[clip(ρ)] A log π  see `cispo`

    Only sequence_importance is unbiased for the policy gradient E_{y ~ π(·|x₀)}[A(y) ∇log π(y|x₀)]
    (as a sum over tokens; up to the ratio's clip at e^±20), at the price of a variance that grows
    with the length. The others are biased: importance leaves out how likely the tokens before t and
    after t were to be sampled.

    RLTF-SD, arXiv 2602.02482. With correction none and A = 1 on correct y₁, 0 elsewhere, it is
    rejection-sampling SFT.

    Args:
      logprobs: [B, T] float, log π(y₁ | x₀) under the policy being trained.
      advantages: [B, T] float; no gradient.
      correction: how the mismatch between π(· | x₁) and π(· | x₀) is treated.
      old_logprobs: [B, T] float, log π(y₁ | x₀) under the policy as it was when it sampled y₁;
        what logprob_floor looks at. No gradient.
      teacher_logprobs: [B, T] float, log π(y₁ | x₁) under the distribution that y₁ was really
        sampled from: the denominator of ρ. Without it old_logprobs is, which only corrects for the
        updates since sampling. No gradient; not used by correction none.
      epsilon_low, epsilon_high: clip range of ppo and cispo.
      logprob_floor: tokens less likely than this from x₀ are dropped: loss 0, no gradient. Judged
        by old_logprobs, or by logprobs without it. The authors' value is −5.
      token_weights: [B, T] float, w, for instance from the critique's spans. No gradient.
      mask, segment_ids: [B, T], which tokens make up y₁ and which sequence of a packed row they
        belong to, see `sequence_ratio`; for sequence_importance, which needs the mask.

    Returns:
      [B, T]; NaN without a gradient where an input is not finite and the token is not dropped.

    Raises:
      ValueError: shapes differ, the correction is unknown, it needs a ratio and neither
        teacher_logprobs nor old_logprobs is given, or a mask and there is none.
    """
    given = {"old_logprobs": old_logprobs, "teacher_logprobs": teacher_logprobs}
    given = {name: array for name, array in given.items() if array is not None}
    logprobs, advantages, *_ = same_shape(logprobs=logprobs, advantages=advantages, **given)
    sampled_logprobs = old_logprobs if teacher_logprobs is None else teacher_logprobs

    if correction not in get_args(Correction):
        raise ValueError(f"correction must be one of {get_args(Correction)}, not {correction!r}")
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
    return loss if token_weights is None else weighted(loss, token_weights)


def logit_distillation(
    student_logits: ArrayLike,
    teacher_logits: ArrayLike,
    *,
    alpha: float = 0.5,
    top_k: int | None = None,
    top_k_of: Literal["teacher", "student"] = "teacher",
) -> jax.Array:
    """Divergence of the student's next-token distributions s from the teacher's t.

      alpha = 0      KL(t ‖ s), forward: covers what the teacher would say
      alpha = 1      KL(s ‖ t), reverse: seeks its modes
      0 < alpha < 1  α KL(t ‖ m) + (1 − α) KL(s ‖ m),   m = α t + (1 − α) s   (½: Jensen–Shannon)

    SDPO, arXiv 2601.20802: the teacher is the policy itself with feedback in its prompt, the tokens
    are the student's. GKD, arXiv 2306.13649, Eq. 1–2, has the same ends; the mixture vanishes at
    both, hence the separate cases.

    Args:
      student_logits: [..., V] float.
      teacher_logits: [..., V] float; no gradient.
      alpha: in [0, 1], a Python number.
      top_k: compare the k most likely tokens and, as one more outcome, everything else. A lower
        bound of the divergence over the whole vocabulary, which None compares.
      top_k_of: whose most likely tokens. SDPO's authors take the student's.

    Returns:
      [...], nats, never negative up to rounding; NaN without a gradient where logits hold NaN or
      +inf, or −inf only.

    Raises:
      ValueError: shapes differ, or alpha, top_k or top_k_of are out of range.
    """
    student, teacher = same_shape(student_logits=student_logits, teacher_logits=teacher_logits)
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must be in [0, 1], got {alpha}")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k must be at least 1, got {top_k}")
    if top_k_of not in ("teacher", "student"):
        raise ValueError(f"top_k_of must be 'teacher' or 'student', not {top_k_of!r}")

    ok = jnp.isfinite(jnp.max(student, axis=-1)) & jnp.isfinite(jnp.max(teacher, axis=-1))
    student = jax.nn.log_softmax(jnp.where(ok[..., None], student, 0))
    teacher = jax.nn.log_softmax(lax.stop_gradient(jnp.where(ok[..., None], teacher, 0)))
    if top_k is not None and top_k < student.shape[-1]:
        ranking = lax.stop_gradient(teacher if top_k_of == "teacher" else student)
        student, teacher = (_top_and_tail(x, ranking, top_k) for x in (student, teacher))

    if alpha == 0:
        loss = divergence(teacher, student)
    elif alpha == 1:
        loss = divergence(student, teacher)
    else:
        mixture = _mixture(student, teacher, alpha)
        loss = alpha * divergence(teacher, mixture) + (1 - alpha) * divergence(student, mixture)
    return jnp.where(ok, loss, jnp.nan)


def _mixture(student: jax.Array, teacher: jax.Array, alpha: float) -> jax.Array:
    """log (α t + (1 − α) s); −inf, without a gradient, for tokens that neither can say."""
    possible = (student != -jnp.inf) | (teacher != -jnp.inf)
    student, teacher = (jnp.where(possible, x, 0) for x in (student, teacher))
    mixture = jnp.logaddexp(teacher + math.log(alpha), student + math.log1p(-alpha))
    return jnp.where(possible, mixture, -jnp.inf)


def _top_and_tail(log_probs: jax.Array, ranking: jax.Array, k: int) -> jax.Array:
    """[..., V] → [..., k + 1]: the k highest by `ranking`, then the mass of all others together."""
    values, top = lax.top_k(ranking, k)
    lowest = values[..., -1:]
    # Of equal values the first ones are in; comparing finds the others without a scatter.
    last_in = jnp.max(jnp.where(values == lowest, top, -1), axis=-1, keepdims=True)
    outside = (ranking < lowest) | ((ranking == lowest) & (jnp.arange(ranking.shape[-1]) > last_in))
    outside &= log_probs != -jnp.inf
    any_outside = jnp.any(outside, axis=-1, keepdims=True)
    # Not log(1 − Σ top): that is rounding error once the top holds nearly everything.
    others = jnp.where(any_outside, jnp.where(outside, log_probs, -jnp.inf), 0)
    tail = jnp.where(any_outside, jax.nn.logsumexp(others, axis=-1, keepdims=True), -jnp.inf)
    return jnp.concatenate([jnp.take_along_axis(log_probs, top, axis=-1), tail], axis=-1)
