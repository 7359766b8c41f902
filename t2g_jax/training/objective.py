"""The one objective: every method is a choice of rows and of the settings here.

    loss = policy gradient + value + self-distillation + negative log-likelihood + span labels

Each term is a sum of weights × losses over its tokens, divided by the weights of the whole step, and
is there when the batch has its fields. Policy-gradient and self-distillation tokens share one
denominator, so that a distillation coefficient inside the advantages means what it says.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp

from t2g_jax import kl, logprobs, losses
from t2g_jax.models import heads
from t2g_jax.models.decoder import DecoderConfig
from t2g_jax.training.batch import Batch

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Objective:
    """Settings of the loss. Hashable: closed over by a jitted step."""

    surrogate: Literal["ppo", "cispo", "reinforce"] = "ppo"
    epsilon_low: float = 0.2
    epsilon_high: float = 0.2
    temperature: float = 1.0
    """The sampler's, for policy tokens; other tokens are scored at temperature 1."""
    value_coefficient: float = 0.1
    value_clip: float = 0.2
    kl_coefficient: float = 0.0
    """Of k3 to `ref_logprobs` inside the loss (GRPO); Text2Grad has its KL inside the rewards."""
    correction: Literal["none", "importance", "ppo", "cispo"] = "none"
    logprob_floor: float | None = None
    nll_coefficient: float = 1.0
    span_coefficient: float = 1.0
    class_weights: tuple[float, float, float] | None = None
    """Of the span classes −1, 0, +1."""


def totals(batch: Batch) -> dict[str, Array]:
    """The denominators: sums of weights over the whole step, before it is cut into micro-batches."""

    def total(*weights):
        present = [jnp.sum(w) for w in weights if w is not None]
        return jnp.maximum(sum(present, jnp.float32(0)), 1e-8)

    return {
        "policy": total(batch.policy_weight, batch.distill_weight),
        "value": total(batch.policy_weight),
        "distill": total(batch.distill_weight),
        "nll": total(batch.nll_weight),
        "span": total(batch.span_weight),
    }


def objective(
    params: heads.Params,
    batch: Batch,
    denominators: dict[str, Array],
    *,
    model: DecoderConfig,
    settings: Objective,
) -> tuple[Array, dict[str, dict[str, Array]]]:
    """Loss of a (micro-)batch and its metrics.

    Args:
      params: decoder and heads.
      batch: arrays [B, T].
      denominators: from `totals` of the whole step.
      model, settings: static.

    Returns:
      loss: scalar float32; the losses of the micro-batches of a step add up to the loss of the step.
      metrics: {"sum": …, "max": …}: how each is combined over micro-batches.
    """
    hidden = heads.hidden_states(
        params, model, batch.tokens, batch.positions, batch.segment_ids
    )
    loss = jnp.float32(0)
    sums: dict[str, Array] = {}
    maxima: dict[str, Array] = {}

    def term(name: str, values: Array, weight: Array, denominator: str) -> Array:
        # where, not only ×: an inf at a token of weight 0 must not become a NaN.
        sums[name] = jnp.sum(jnp.where(weight != 0, values * weight, 0)) / denominators[denominator]
        return sums[name]

    scored = None
    if any(w is not None for w in (batch.policy_weight, batch.distill_weight, batch.nll_weight)):
        sampled = batch.policy_weight is not None
        scored = score_targets(
            params, hidden, batch, temperature=settings.temperature if sampled else 1.0
        )

    if batch.policy_weight is not None:
        weight = batch.policy_weight
        surrogate = {
            "ppo": lambda: losses.clipped_surrogate(
                scored.logprobs,
                batch.old_logprobs,
                batch.advantages,
                epsilon_low=settings.epsilon_low,
                epsilon_high=settings.epsilon_high,
            ),
            "cispo": lambda: losses.cispo(
                scored.logprobs,
                batch.old_logprobs,
                batch.advantages,
                epsilon_low=settings.epsilon_low,
                epsilon_high=settings.epsilon_high,
            ),
            "reinforce": lambda: losses.reinforce(scored.logprobs, batch.advantages),
        }[settings.surrogate]()
        loss += term("policy_loss", surrogate, weight, "policy")
        term("entropy", scored.entropy, weight, "value")
        log_ratio = scored.logprobs - batch.old_logprobs
        ratio = jnp.exp(jnp.where(weight != 0, log_ratio, 0))
        clipped = (ratio < 1 - settings.epsilon_low) | (ratio > 1 + settings.epsilon_high)
        term("ratio", ratio, weight, "value")
        term("clip_fraction", clipped, weight, "value")
        term("kl_sampler_trainer", kl.k3(batch.old_logprobs, scored.logprobs), weight, "value")
        maxima["ratio_max"] = jnp.max(ratio)
        maxima["negative_ratio_min"] = jnp.max(-ratio)
        if settings.kl_coefficient:
            penalty = kl.k3(scored.logprobs, batch.ref_logprobs)
            loss += settings.kl_coefficient * term("kl", penalty, weight, "policy")

    if batch.returns is not None:
        predicted = heads.values(params, hidden)
        value_loss = losses.clipped_value(
            predicted, batch.old_values, batch.returns, epsilon=settings.value_clip
        )
        loss += settings.value_coefficient * term(
            "value_loss", value_loss, batch.policy_weight, "value"
        )

    if batch.distill_weight is not None:
        distilled = losses.self_distillation(
            scored.logprobs,
            batch.advantages,
            correction=settings.correction,
            old_logprobs=batch.old_logprobs,
            teacher_logprobs=batch.teacher_logprobs,
            epsilon_low=settings.epsilon_low,
            epsilon_high=settings.epsilon_high,
            logprob_floor=settings.logprob_floor,
        )
        loss += term("distill_loss", distilled, batch.distill_weight, "policy")
        term("distill_logprob", scored.logprobs, batch.distill_weight, "distill")

    if batch.nll_weight is not None:
        nll = losses.feedback_nll(scored.logprobs)
        loss += settings.nll_coefficient * term("nll", nll, batch.nll_weight, "nll")

    if batch.span_weight is not None:
        logits = heads.span_logits(params, hidden)
        labels = batch.span_labels.astype(jnp.int32)
        cross_entropy = losses.span_reward_cross_entropy(
            logits, labels, class_weights=settings.class_weights
        )
        loss += settings.span_coefficient * term(
            "span_loss", cross_entropy, batch.span_weight, "span"
        )
        right = jnp.argmax(logits, -1) - 1 == labels
        term("span_accuracy", right, batch.span_weight, "span")

    sums["loss"] = loss
    return loss, {"sum": sums, "max": maxima}


def score_targets(
    params: heads.Params, hidden: Array, batch: Batch, *, temperature: float
) -> logprobs.LogProbs:
    """Log-probability [B, T] of each target under the distribution that it was sampled from.

    Policy tokens are scored at the sampler's temperature and truncation, others at temperature 1;
    in a batch that does not tell them apart, all are scored at `temperature`.
    """
    scale: Array | float = temperature
    if temperature != 1 and batch.policy_weight is not None:
        scale = jnp.where(batch.policy_weight != 0, temperature, 1.0)
    kernel = heads.lm_kernel(params).astype(hidden.dtype)
    return logprobs.from_hidden(
        hidden, kernel, batch.targets, temperature=scale, cutoff=batch.cutoffs
    )
