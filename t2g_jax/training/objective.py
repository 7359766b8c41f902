"""The one objective: every method is a choice of rows and of the settings here.

    loss = policy gradient + value + self-distillation + negative log-likelihood + span labels

Each term is a sum of weights × losses over its tokens, divided by the weights of the whole step,
and is there when the batch has its fields. Policy-gradient and self-distillation tokens share one
denominator, so that a distillation coefficient inside the advantages means what it says.
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
from t2g_jax.reductions import Reduction, count, reduce
from t2g_jax.training.batch import Batch
from t2g_jax.training.sharding import as_read, batch_sharding, vocab_shards

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
    """The denominators: sums of weights over the whole step, before it is cut into parts."""

    def total(*weights):
        present = [count(weight, Reduction.TOKEN_MEAN) for weight in weights if weight is not None]
        return sum(present, jnp.float32(0))

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
    mesh: Mesh | None = None,
) -> tuple[Array, dict[str, dict[str, Array]]]:
    """Loss of a (micro-)batch and its metrics.

    Args:
      params: decoder and heads.
      batch: arrays [B, T].
      denominators: from `totals` of the whole step.
      model, settings: static.
      mesh: static, where parameters and rows are sharded; None leaves activations to the compiler.

    Returns:
      loss: scalar float32; the losses of a step's micro-batches add up to the loss of the step.
      metrics: {"sum": …, "max": …, "min": …}: how each is combined over micro-batches.
    """
    params, hidden = read(params, batch, model=model, mesh=mesh)
    loss = jnp.float32(0)
    metrics: dict[str, dict[str, Array]] = {"sum": {}, "max": {}, "min": {}}

    def term(name: str, values: Array, weight: Array, denominator: str) -> Array:
        total = reduce(values, weight, Reduction.TOKEN_MEAN, denominator=denominators[denominator])
        metrics["sum"][name] = total
        return total

    scored = None
    if any(w is not None for w in (batch.policy_weight, batch.distill_weight, batch.nll_weight)):
        sampled = batch.policy_weight is not None
        scored = score_targets(
            params,
            hidden,
            batch,
            temperature=settings.temperature if sampled else 1.0,
            mesh=mesh,
        )

    if batch.policy_weight is not None:
        weight = batch.policy_weight
        low, high = settings.epsilon_low, settings.epsilon_high
        if settings.surrogate == "reinforce":
            surrogate = losses.reinforce(scored.logprobs, batch.advantages)
        else:
            clipped = {"ppo": losses.clipped_surrogate, "cispo": losses.cispo}[settings.surrogate]
            surrogate = clipped(
                scored.logprobs,
                batch.old_logprobs,
                batch.advantages,
                epsilon_low=low,
                epsilon_high=high,
            )
        loss += term("policy_loss", surrogate, weight, "policy")
        if settings.kl_coefficient:
            penalty = kl.k3(scored.logprobs, batch.ref_logprobs)
            loss += settings.kl_coefficient * term("kl", penalty, weight, "policy")
        ratio = losses.importance_ratio(scored.logprobs, batch.old_logprobs)
        term("ratio", ratio, weight, "value")
        term("clip_fraction", (ratio < 1 - low) | (ratio > 1 + high), weight, "value")
        term("kl_sampler_trainer", kl.k3(batch.old_logprobs, scored.logprobs), weight, "value")
        term("entropy", scored.entropy, weight, "value")
        counted = weight != 0
        metrics["max"]["ratio_max"] = jnp.max(ratio, where=counted, initial=-jnp.inf)
        metrics["min"]["ratio_min"] = jnp.min(ratio, where=counted, initial=jnp.inf)

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

    metrics["sum"]["loss"] = loss
    return loss, metrics


def read(
    params: heads.Params, batch: Batch, *, model: DecoderConfig, mesh: Mesh | None = None
) -> tuple[heads.Params, Array]:
    """Hidden states [B, T, D] of a batch, and the parameters as its heads are to read them."""
    params = as_read(params, mesh)
    hidden = heads.hidden_states(
        params,
        model,
        batch.tokens,
        batch.positions,
        batch.segment_ids,
        sharding=None if mesh is None else batch_sharding(mesh),
    )
    return params, hidden


def score_targets(
    params: heads.Params,
    hidden: Array,
    batch: Batch,
    *,
    temperature: float,
    mesh: Mesh | None = None,
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
        hidden,
        kernel,
        batch.targets,
        temperature=scale,
        cutoff=batch.cutoffs,
        vocab_shards=vocab_shards(kernel.shape[1], mesh),
    )
