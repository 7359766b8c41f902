"""The terms of losses. Each says in one place what it reads, what weighs it, what it needs of the
forward pass, and its value for every token; `Objective` derives all else from that.

A method's section of the config is its terms' settings: they are read as they are (see the
protocols below), never copied.

A new loss is a subclass of `Term`, here or in a file of its own, and a setting where its method is
configured. It declares a `Field` for each value that it reads of a token and that no other term has
declared, and is handed to an `Objective` by the method. Batches, denominators, `t2g plan` and the
step need no change. A new method is a file in `methods/` that makes sequences with those fields,
its section in `config/methods.py`, and its name in `methods/__init__.py`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import ClassVar, Literal, Protocol

import jax
import jax.numpy as jnp

from t2g_jax import kl, losses
from t2g_jax.training.batch import Batch
from t2g_jax.training.forward import Need, Outputs
from t2g_jax.training.sequences import About, Field, Weight

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class TermOutput:
    """What a term says of a batch, arrays [B, T].

    loss: unreduced, to be minimized. means: for the log, averaged over the tokens that the term
    weighs. extremes: for the log, their largest and smallest values there, as NAME_max and
    NAME_min.
    """

    loss: Array
    means: Mapping[str, Array] = dataclasses.field(default_factory=dict)
    extremes: Mapping[str, Array] = dataclasses.field(default_factory=dict)


class Term:
    """A part of a loss, coefficient · Σ weight · loss / denominator. Hashable: static under jit.

    name: of the reduced loss in the log.
    weight: of each token; where it is 0 nothing counts, NaN included.
    shared: whether its tokens are counted together with those of the objective's other shared
      terms, and reduced as the objective says; else it is a mean over its own tokens.
    """

    name: ClassVar[str]
    weight: ClassVar[Weight]
    shared: ClassVar[bool] = True

    @property
    def reads(self) -> tuple[Field, ...]:
        """The fields that it reads beside its weight."""
        return ()

    @property
    def needs(self) -> Need:
        """What it needs of the forward pass."""
        return Need.NOTHING

    @property
    def coefficient(self) -> float:
        """What it counts in the loss."""
        return 1.0

    def __call__(self, batch: Batch, outputs: Outputs) -> TermOutput:
        """Its value for every token."""
        raise NotImplementedError


# --- Policy gradients -----------------------------------------------------------------------------

POLICY_WEIGHT = Weight("policy_weight", sampled=True)
ADVANTAGES = Field("advantages")
SAMPLER_LOGPROBS = Field("sampler_logprobs")
"""Log-probabilities as they were sampled, of the distribution really sampled from."""
OLD_LOGPROBS = Field("old_logprobs")
"""The trainer's own, before the round's first update: what ratios of a round of several updates
compare with. A round of one update compares with its own forward pass, and has none."""
REF_LOGPROBS = Field("ref_logprobs")
"""Under the reference policy, at the sampler's temperature, not truncated."""
KL_WEIGHT = Field("kl_weight")
"""β: what a nat of divergence costs, times the token's weight."""
RETURNS = Field("returns")
OLD_VALUES = Field("old_values")


class ClipSettings(Protocol):
    """The clip range of ratios, and how often a round's rows are learned from."""

    @property
    def epsilon_low(self) -> float: ...
    @property
    def epsilon_high(self) -> float: ...
    @property
    def updates_per_step(self) -> int: ...


class PolicySettings(ClipSettings, Protocol):
    """See `config.PolicyConfig`."""

    @property
    def surrogate(self) -> Literal["ppo", "gspo", "cispo", "reinforce"]: ...


class KLSettings(Protocol):
    """See `config.PolicyConfig.divergence`: which divergence, and where it is charged."""

    @property
    def divergence(self) -> tuple[str, str]: ...


class ValueSettings(Protocol):
    """See `config.PPOConfig`."""

    @property
    def value_coefficient(self) -> float: ...
    @property
    def value_clip(self) -> float: ...


@dataclasses.dataclass(frozen=True)
class PolicyGradient(Term):
    """A surrogate of the policy gradient on sampled tokens.

    Ratios begin at exactly 1, as both of their sides come from the trainer: a round of one update
    compares with its own forward pass, a round of several with `OLD_LOGPROBS`.
    """

    settings: PolicySettings
    name = "policy_loss"
    weight = POLICY_WEIGHT
    needs = Need.LOGPROBS | Need.ENTROPY

    @property
    def reads(self) -> tuple[Field, ...]:
        several = self.settings.updates_per_step > 1
        return (ADVANTAGES, SAMPLER_LOGPROBS, *((OLD_LOGPROBS,) if several else ()))

    def __call__(self, batch: Batch, outputs: Outputs) -> TermOutput:
        logprobs, advantages = outputs.logprobs, batch[ADVANTAGES]
        old = jax.lax.stop_gradient(logprobs)
        if self.settings.updates_per_step > 1:
            old = batch[OLD_LOGPROBS]
        loss, ratio = self._surrogate(logprobs, old, batch)
        clips = losses.clip_acts(self.settings.surrogate, ratio, advantages, **_clip(self.settings))
        of_ratio = {"ratio": ratio, "log_ratio": logprobs - old}
        means = of_ratio | {
            "clip_fraction": clips,
            "kl_sampler_trainer": kl.k3(batch[SAMPLER_LOGPROBS], logprobs),
            "entropy": outputs.entropy,
        }
        return TermOutput(loss, means, of_ratio)

    def _surrogate(self, logprobs: Array, old: Array, batch: Batch) -> tuple[Array, Array]:
        """The loss and the ratio that it clips."""
        advantages, clip = batch[ADVANTAGES], _clip(self.settings)
        ratio = losses.importance_ratio(logprobs, old)
        match self.settings.surrogate:
            case "ppo":
                return losses.clipped_surrogate(logprobs, old, advantages, **clip), ratio
            case "cispo":
                return losses.cispo(logprobs, old, advantages, **clip), ratio
            case "gspo":
                mask, segment_ids = batch[POLICY_WEIGHT], batch.segment_ids
                ratio = losses.sequence_ratio(logprobs, old, mask, segment_ids=segment_ids)
                loss = losses.gspo(logprobs, old, advantages, mask, segment_ids=segment_ids, **clip)
                return loss, ratio
        return losses.reinforce(logprobs, advantages), ratio


@dataclasses.dataclass(frozen=True)
class KLToReference(Term):
    """An estimate of the divergence from the reference, differentiated; see `kl`.

    Of distributions at the sampler's temperature that are not truncated.
    """

    settings: KLSettings
    name = "kl_loss"
    weight = POLICY_WEIGHT
    reads = (REF_LOGPROBS, KL_WEIGHT)
    needs = Need.UNTRUNCATED

    def __call__(self, batch: Batch, outputs: Outputs) -> TermOutput:
        estimate = {"k2": kl.k2, "k3": kl.k3, "abs": kl.absolute}[self.settings.divergence[0]]
        return TermOutput(batch[KL_WEIGHT] * estimate(outputs.untruncated, batch[REF_LOGPROBS]))


@dataclasses.dataclass(frozen=True)
class Value(Term):
    """The clipped loss of the value head, on the tokens of the policy gradient."""

    settings: ValueSettings
    name = "value_loss"
    weight = POLICY_WEIGHT
    shared = False
    reads = (RETURNS, OLD_VALUES)
    needs = Need.VALUES

    @property
    def coefficient(self) -> float:
        return self.settings.value_coefficient

    def __call__(self, batch: Batch, outputs: Outputs) -> TermOutput:
        arrays = outputs.values, batch[OLD_VALUES], batch[RETURNS]
        clip = self.settings.value_clip
        return TermOutput(
            losses.clipped_value(*arrays, epsilon=clip),
            {"value_clip_fraction": losses.value_clip_acts(*arrays, epsilon=clip)},
        )


# --- Self-distillation ----------------------------------------------------------------------------

DISTILL_WEIGHT = Weight("distill_weight", sampled=True)
TEACHER_LOGPROBS = Field("teacher_logprobs")
"""log π(y₁ | x₁): where the tokens were sampled from, with feedback in the prompt."""


class DistillationSettings(ClipSettings, Protocol):
    """See `config.RLTFSDConfig`."""

    @property
    def correction(self) -> losses.Correction: ...
    @property
    def logprob_floor(self) -> float | None: ...


@dataclasses.dataclass(frozen=True)
class SelfDistillation(Term):
    """Repaired answers learned as answers to the first prompt, see `losses.self_distillation`.

    The floor looks at the policy before the round: in a round of one update that is its own forward
    pass, in a round of several `OLD_LOGPROBS`.
    """

    settings: DistillationSettings
    name = "distill_loss"
    weight = DISTILL_WEIGHT
    needs = Need.LOGPROBS

    @property
    def reads(self) -> tuple[Field, ...]:
        return (
            ADVANTAGES,
            *((TEACHER_LOGPROBS,) if self.settings.correction != "none" else ()),
            *((OLD_LOGPROBS,) if self.reads_old else ()),
        )

    @property
    def reads_old(self) -> bool:
        """Whether the floor needs to know the policy as it was."""
        return self.settings.logprob_floor is not None and self.settings.updates_per_step > 1

    def __call__(self, batch: Batch, outputs: Outputs) -> TermOutput:
        settings, logprobs, advantages = self.settings, outputs.logprobs, batch[ADVANTAGES]
        old = batch[OLD_LOGPROBS] if self.reads_old else jax.lax.stop_gradient(logprobs)
        teacher = None if settings.correction == "none" else batch[TEACHER_LOGPROBS]
        loss = losses.self_distillation(
            logprobs,
            advantages,
            correction=settings.correction,
            old_logprobs=old,
            teacher_logprobs=teacher,
            logprob_floor=settings.logprob_floor,
            mask=batch[DISTILL_WEIGHT],
            segment_ids=batch.segment_ids,
            **_clip(settings),
        )
        means = {"distill_logprob": logprobs}
        if settings.correction in ("ppo", "cispo"):
            ratio = losses.importance_ratio(logprobs, teacher)
            means["distill_clip_fraction"] = losses.clip_acts(
                settings.correction, ratio, advantages, **_clip(settings)
            )
        if settings.logprob_floor is not None:
            means["distill_dropped"] = old < settings.logprob_floor
        return TermOutput(loss, means)


# --- Supervised -----------------------------------------------------------------------------------

NLL_WEIGHT = Weight("nll_weight")
SPAN_WEIGHT = Weight("span_weight", about=About.TOKEN)
SPAN_LABELS = Field("span_labels", about=About.TOKEN)
"""−1, 0, +1, or severities between."""


@dataclasses.dataclass(frozen=True)
class NLL(Term):
    """Negative log-likelihood: demonstrations, critiques, feedback modeling."""

    scale: float = 1.0
    name = "nll_loss"
    weight = NLL_WEIGHT
    needs = Need.LOGPROBS

    @property
    def coefficient(self) -> float:
        return self.scale

    def __call__(self, batch: Batch, outputs: Outputs) -> TermOutput:
        nll = losses.nll(outputs.logprobs)
        return TermOutput(nll, {"nll": nll})


class SpanSettings(Protocol):
    """See `config.RewardModelConfig`."""

    @property
    def span_weight(self) -> float: ...
    @property
    def class_weights(self) -> tuple[float, float, float]: ...


@dataclasses.dataclass(frozen=True)
class SpanLabels(Term):
    """Cross-entropy of the span-reward head."""

    settings: SpanSettings
    name = "span_loss"
    weight = SPAN_WEIGHT
    shared = False
    reads = (SPAN_LABELS,)
    needs = Need.SPAN_LOGITS

    @property
    def coefficient(self) -> float:
        return self.settings.span_weight

    def __call__(self, batch: Batch, outputs: Outputs) -> TermOutput:
        logits, labels = outputs.span_logits, batch[SPAN_LABELS]
        weights = self.settings.class_weights
        loss = losses.span_reward_cross_entropy(logits, labels, class_weights=weights)
        likeliest = jnp.argmax(losses.span_probabilities(logits, class_weights=weights), -1) - 1
        return TermOutput(loss, {"span_accuracy": likeliest == jnp.sign(labels)})


def _clip(settings: ClipSettings) -> dict[str, float]:
    return {"epsilon_low": settings.epsilon_low, "epsilon_high": settings.epsilon_high}
