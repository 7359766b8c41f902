"""The one objective: every method is a choice of rows and of the settings here.

    loss = policy gradient + value + self-distillation + negative log-likelihood + span labels

Each term is a sum of weights × losses over its tokens, divided by the weights of the whole step,
and is there when the batch has its fields. Beside a policy gradient, the tokens of its own, of
self-distillation and of the likelihood (feedback modeling) share one denominator, so that a
coefficient of theirs means what it says however many tokens each has; for them the reduction can be
chosen.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from t2g_jax import kl, logprobs, losses
from t2g_jax.models import heads
from t2g_jax.models.decoder import DecoderConfig
from t2g_jax.parallel.sharding import (
    batch_sharding,
    head_spread,
    lookup_sharding,
    vocab_shards,
    within,
)
from t2g_jax.reductions import Reduction, count, reduce
from t2g_jax.training.batch import Batch

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Objective:
    """Settings of the loss. Hashable: closed over by a jitted step."""

    surrogate: Literal["ppo", "gspo", "cispo", "reinforce"] = "ppo"
    epsilon_low: float = 0.2
    epsilon_high: float = 0.2
    reduction: Reduction = Reduction.TOKEN_MEAN
    """Of the policy-gradient, self-distillation and KL terms, and of the likelihood beside them."""
    longest: int = 1
    """What SEQUENCE_MEAN_TOKEN_SUM divides a sequence by: a constant, as in Dr. GRPO."""
    temperature: float = 1.0
    """The sampler's, for policy and distilled tokens; other tokens are scored at temperature 1."""
    value_coefficient: float = 0.1
    value_clip: float = 0.2
    kl: str = "k3"
    """Which of `KL_TERMS` to `ref_logprobs`, where there is a `kl_weight`; of distributions at the
    sampler's temperature that are not truncated."""
    correction: losses.Correction = "none"
    logprob_floor: float | None = None
    nll_coefficient: float = 1.0
    span_coefficient: float = 1.0
    class_weights: tuple[float, float, float] | None = None
    """Of the span classes −1, 0, +1."""


KL_TERMS = {"k2": kl.k2, "k3": kl.k3, "abs": kl.absolute}


def totals(batch: Batch, settings: Objective) -> dict[str, Array]:
    """The denominators: sums of weights over the whole step, before it is cut into parts."""

    def total(*weights, how=Reduction.TOKEN_MEAN):
        present = [weight for weight in weights if weight is not None]
        counts = [count(weight, how, segment_ids=batch.segment_ids) for weight in present]
        return sum(counts, jnp.float32(0))

    shared = (batch.policy_weight, batch.distill_weight, batch.nll_weight)
    policy = total(*shared, how=settings.reduction)
    if settings.reduction is Reduction.SEQUENCE_MEAN_TOKEN_SUM:
        policy *= settings.longest
    return {
        "policy": policy,
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
    mesh: Mesh | None = None,
    one_update: bool = False,
) -> tuple[Array, dict[str, dict[str, Array]]]:
    """Loss of a (micro-)batch and its metrics.

    Args:
      params: decoder and heads.
      batch: arrays [B, T].
      denominators: from `totals` of the whole step.
      model, settings: static.
      mesh: static, where parameters and rows are sharded; None leaves activations to the compiler.
      one_update: static, whether the batch is all that a round learns from. Then its ratios compare
        with this forward pass, and are 1; `old_logprobs` of policy tokens may be the sampler's.

    Returns:
      loss: scalar float32; the losses of a step's micro-batches add up to the loss of the step.
      metrics: {"sum": …, "max": …, "min": …}: how each is combined over micro-batches.
    """
    hidden = read(params, batch, model=model, mesh=mesh)
    loss = jnp.float32(0)
    metrics: dict[str, dict[str, Array]] = {"sum": {}, "max": {}, "min": {}}

    def term(name: str, values: Array, weight: Array, denominator: str) -> Array:
        total = reduce(
            values,
            weight,
            settings.reduction if denominator == "policy" else Reduction.TOKEN_MEAN,
            denominator=denominators[denominator],
            segment_ids=batch.segment_ids,
        )
        metrics["sum"][name] = total
        return total

    scored = None
    if any(w is not None for w in (batch.policy_weight, batch.distill_weight, batch.nll_weight)):
        sampled = batch.policy_weight is not None
        scored = score_targets(
            params,
            hidden,
            batch,
            model=model,
            temperature=settings.temperature if sampled else 1.0,
            mesh=mesh,
        )

    if batch.policy_weight is not None:
        weight = batch.policy_weight
        low, high = settings.epsilon_low, settings.epsilon_high
        sampler = batch.old_logprobs
        if batch.sampler_logprobs is not None:
            known = jnp.isfinite(batch.sampler_logprobs)
            sampler = jnp.where(known, batch.sampler_logprobs, sampler)
        old = jax.lax.stop_gradient(scored.logprobs) if one_update else batch.old_logprobs
        surrogate, ratio = surrogate_loss(scored.logprobs, old, batch, settings)
        loss += term("policy_loss", surrogate, weight, "policy")
        if batch.kl_weight is not None:
            mine = scored.logprobs
            if batch.cutoffs is not None:
                mine = score_targets(
                    params,
                    hidden,
                    batch,
                    model=model,
                    temperature=settings.temperature,
                    truncated=False,
                    mesh=mesh,
                ).logprobs
            penalty = batch.kl_weight * KL_TERMS[settings.kl](mine, batch.ref_logprobs)
            loss += term("kl_loss", penalty, weight, "policy")
        log_ratio = scored.logprobs - old
        term("ratio", ratio, weight, "value")
        term("log_ratio", log_ratio, weight, "value")
        clipped = losses.clip_acts(
            settings.surrogate, ratio, batch.advantages, epsilon_low=low, epsilon_high=high
        )
        term("clip_fraction", clipped, weight, "value")
        term("kl_sampler_trainer", kl.k3(sampler, scored.logprobs), weight, "value")
        term("entropy", scored.entropy, weight, "value")
        for name, values in (("ratio", ratio), ("log_ratio", log_ratio)):
            counted = weight != 0
            metrics["max"][f"{name}_max"] = jnp.max(values, where=counted, initial=-jnp.inf)
            metrics["min"][f"{name}_min"] = jnp.min(values, where=counted, initial=jnp.inf)

    if batch.returns is not None:
        predicted = heads.values(params, hidden)
        value_loss = losses.clipped_value(
            predicted, batch.old_values, batch.returns, epsilon=settings.value_clip
        )
        loss += settings.value_coefficient * term(
            "value_loss", value_loss, batch.policy_weight, "value"
        )
        clipped = losses.value_clip_acts(
            predicted, batch.old_values, batch.returns, epsilon=settings.value_clip
        )
        term("value_clip_fraction", clipped, batch.policy_weight, "value")

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
            mask=batch.distill_weight,
            segment_ids=batch.segment_ids,
        )
        loss += term("distill_loss", distilled, batch.distill_weight, "policy")
        term("distill_logprob", scored.logprobs, batch.distill_weight, "distill")
        if settings.correction in ("ppo", "cispo"):
            clipped = losses.clip_acts(
                settings.correction,
                losses.importance_ratio(scored.logprobs, batch.teacher_logprobs),
                batch.advantages,
                epsilon_low=settings.epsilon_low,
                epsilon_high=settings.epsilon_high,
            )
            term("distill_clip_fraction", clipped, batch.distill_weight, "distill")
        if settings.logprob_floor is not None:
            dropped = batch.old_logprobs < settings.logprob_floor
            term("distill_dropped", dropped, batch.distill_weight, "distill")

    if batch.nll_weight is not None:
        nll = losses.nll(scored.logprobs)
        share = term("nll", nll, batch.nll_weight, "nll")
        if batch.policy_weight is not None:
            share = term("nll_loss", nll, batch.nll_weight, "policy")
        loss += settings.nll_coefficient * share

    if batch.span_weight is not None:
        logits = heads.span_logits(params, hidden)
        weights = settings.class_weights
        cross_entropy = losses.span_reward_cross_entropy(
            logits, batch.span_labels, class_weights=weights
        )
        loss += settings.span_coefficient * term(
            "span_loss", cross_entropy, batch.span_weight, "span"
        )
        likeliest = jnp.argmax(losses.span_probabilities(logits, class_weights=weights), -1) - 1
        right = likeliest == jnp.sign(batch.span_labels)
        term("span_accuracy", right, batch.span_weight, "span")

    metrics["sum"]["loss"] = loss
    return loss, metrics


def surrogate_loss(
    logprobs: Array, old: Array, batch: Batch, settings: Objective
) -> tuple[Array, Array]:
    """The policy-gradient loss and the ratio to `old` that it clips, [B, T] each."""
    advantages = batch.advantages
    clip = {"epsilon_low": settings.epsilon_low, "epsilon_high": settings.epsilon_high}
    ratio = losses.importance_ratio(logprobs, old)
    match settings.surrogate:
        case "ppo":
            return losses.clipped_surrogate(logprobs, old, advantages, **clip), ratio
        case "cispo":
            return losses.cispo(logprobs, old, advantages, **clip), ratio
        case "gspo":
            mask, segment_ids = batch.policy_weight, batch.segment_ids
            ratio = losses.sequence_ratio(logprobs, old, mask, segment_ids=segment_ids)
            loss = losses.gspo(logprobs, old, advantages, mask, segment_ids=segment_ids, **clip)
            return loss, ratio
    return losses.reinforce(logprobs, advantages), ratio


def read(
    params: heads.Params, batch: Batch, *, model: DecoderConfig, mesh: Mesh | None = None
) -> Array:
    """Hidden states [B, T, D] of a batch."""
    with within(mesh):
        return heads.hidden_states(
            params,
            model,
            batch.tokens,
            batch.positions,
            batch.segment_ids,
            sharding=None if mesh is None else batch_sharding(mesh),
            lookup_sharding=None if mesh is None else lookup_sharding(mesh, model.width),
        )


def score_targets(
    params: heads.Params,
    hidden: Array,
    batch: Batch,
    *,
    model: DecoderConfig,
    temperature: float,
    truncated: bool = True,
    mesh: Mesh | None = None,
) -> logprobs.LogProbs:
    """Log-probability [B, T] of each target under the distribution that it was sampled from.

    Policy and distilled tokens are scored at the sampler's temperature, policy tokens with its
    truncation (unless `truncated` is False), others at temperature 1; in a batch that does not tell
    them apart, all are scored at `temperature`.
    """
    scale: Array | float = temperature
    if temperature != 1 and batch.policy_weight is not None:
        sampled = batch.policy_weight != 0
        if batch.distill_weight is not None:
            sampled |= batch.distill_weight != 0
        scale = jnp.where(sampled, temperature, 1.0)
    kernel = heads.lm_kernel(params).astype(hidden.dtype)
    with within(mesh):
        return logprobs.token_logprobs_from_hidden(
            hidden,
            kernel,
            batch.targets,
            temperature=scale,
            cutoff=batch.cutoffs if truncated else None,
            softcap=model.final_softcap,
            vocab_shards=vocab_shards(kernel.shape[1], mesh),
            spread=None if mesh is None else head_spread(kernel, mesh),
        )
