"""One forward pass that computes what is asked for, and nothing else: of updates and of scores."""

from __future__ import annotations

import dataclasses
import enum

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.typing import ArrayLike

from t2g_jax import logprobs
from t2g_jax.models import heads
from t2g_jax.models.decoder import DecoderConfig
from t2g_jax.parallel.sharding import (
    batch_sharding,
    head_spread,
    lookup_sharding,
    vocab_shards,
    within,
)
from t2g_jax.training.batch import Batch, Teacher
from t2g_jax.training.sequences import Field

Array = jax.Array

CUTOFFS = Field("cutoffs", padding=-float("inf"))
"""What a truncating sampler kept of each token's distribution: log-probabilities from here up."""


class Need(enum.Flag):
    """What is asked of a forward pass.

    LOGPROBS: log π of each target under the distribution that it was sampled from: at the
      temperature, and truncated where the batch has `CUTOFFS`.
    ENTROPY: of that distribution. UNTRUNCATED: log π of each target before truncation.
    VALUES: the value head's. SPAN_LOGITS: the span-reward head's, of each token.
    REFERENCE_KL: KL(π ‖ reference) over the whole vocabulary, neither truncated.
    TEACHER: the hidden states of the batch's second sequences, where they predict what the first
      ones do; no gradient flows to them.
    """

    NOTHING = 0
    LOGPROBS = enum.auto()
    ENTROPY = enum.auto()
    UNTRUNCATED = enum.auto()
    VALUES = enum.auto()
    SPAN_LOGITS = enum.auto()
    REFERENCE_KL = enum.auto()
    TEACHER = enum.auto()


ANY_LOGITS = Need.LOGPROBS | Need.ENTROPY | Need.UNTRUNCATED | Need.REFERENCE_KL | Need.TEACHER
"""What is computed through the LM head."""


@dataclasses.dataclass(frozen=True)
class LMHead:
    """From hidden states [B, T, D] to what the LM head says of them, never [B, T, V] at once."""

    kernel: Array
    model: DecoderConfig
    mesh: Mesh | None

    @classmethod
    def of(
        cls, params: heads.Params, hidden: Array, model: DecoderConfig, mesh: Mesh | None
    ) -> LMHead:
        return cls(heads.lm_kernel(params).astype(hidden.dtype), model, mesh)

    def token_logprobs(
        self,
        hidden: Array,
        tokens: Array,
        *,
        temperature: ArrayLike = 1.0,
        cutoff: Array | None = None,
        with_entropy: bool = False,
    ) -> logprobs.LogProbs:
        """See `logprobs.token_logprobs_from_hidden`."""
        with within(self.mesh):
            return logprobs.token_logprobs_from_hidden(
                hidden,
                self.kernel,
                tokens,
                temperature=temperature,
                cutoff=cutoff,
                with_entropy=with_entropy,
                **self._layout,
            )

    def full_kl(
        self, hidden: Array, reference: LMHead, ref_hidden: Array, *, temperature: ArrayLike = 1.0
    ) -> Array:
        """KL to a reference [B, T], see `logprobs.full_kl_from_hidden`."""
        with within(self.mesh):
            return logprobs.full_kl_from_hidden(
                hidden,
                self.kernel,
                ref_hidden,
                reference.kernel,
                temperature=temperature,
                **self._layout,
            )

    def distillation(
        self,
        hidden: Array,
        teacher_hidden: Array,
        *,
        alpha: float = 0.5,
        temperature: ArrayLike = 1.0,
    ) -> Array:
        """Divergence from a teacher with the same head [B, T], see
        `logprobs.distillation_from_hidden`."""
        with within(self.mesh):
            return logprobs.distillation_from_hidden(
                hidden,
                self.kernel,
                teacher_hidden,
                self.kernel,
                alpha=alpha,
                temperature=temperature,
                **self._layout,
            )

    @property
    def _layout(self) -> dict:
        return {
            "softcap": self.model.final_softcap,
            "vocab_shards": vocab_shards(self.kernel.shape[1], self.mesh),
            "spread": None if self.mesh is None else head_spread(self.kernel, self.mesh),
        }


@dataclasses.dataclass(frozen=True)
class Outputs:
    """What a forward pass found, arrays [B, T, …]; None: not asked for.

    hidden: [B, T, D], and `head` reads it. temperature: that of log-probabilities, [B, T] or one.
    logprobs, entropy, untruncated, values, reference_kl: of predicting each slot's target.
    span_logits: [B, T, 3] of the slot's own token.
    teacher_hidden: [B, T, D], a teacher's hidden state that predicts the slot's target; 0 where it
      is not asked.
    """

    hidden: Array
    head: LMHead
    temperature: ArrayLike = 1.0
    logprobs: Array | None = None
    entropy: Array | None = None
    untruncated: Array | None = None
    values: Array | None = None
    span_logits: Array | None = None
    reference_kl: Array | None = None
    teacher_hidden: Array | None = None


def forward(
    params: heads.Params,
    batch: Batch,
    needs: Need,
    *,
    model: DecoderConfig,
    temperature: ArrayLike = 1.0,
    mesh: Mesh | None = None,
    reference: heads.Params | None = None,
) -> Outputs:
    """Reads a batch [B, T] once, and says of it what is asked.

    Args:
      temperature: of all log-probabilities, one or [B, T].
      mesh: where parameters and rows are sharded; None leaves activations to the compiler.
      reference: parameters, for REFERENCE_KL.

    Raises:
      ValueError: REFERENCE_KL without a reference, or TEACHER of a batch without one.
    """
    hidden = hidden_states(params, batch, model=model, mesh=mesh)
    head = LMHead.of(params, hidden, model, mesh)
    found = Outputs(hidden, head, temperature)
    cutoff = batch.fields.get(CUTOFFS.name)
    if needs & (Need.LOGPROBS | Need.ENTROPY) or (Need.UNTRUNCATED in needs and cutoff is None):
        scored = head.token_logprobs(
            hidden,
            batch.targets,
            temperature=temperature,
            cutoff=cutoff,
            with_entropy=Need.ENTROPY in needs,
        )
        untruncated = scored.logprobs if cutoff is None else None
        found = dataclasses.replace(
            found, logprobs=scored.logprobs, entropy=scored.entropy, untruncated=untruncated
        )
    if Need.UNTRUNCATED in needs and cutoff is not None:
        whole = head.token_logprobs(hidden, batch.targets, temperature=temperature)
        found = dataclasses.replace(found, untruncated=whole.logprobs)
    if Need.VALUES in needs:
        found = dataclasses.replace(found, values=heads.values(params, hidden))
    if Need.SPAN_LOGITS in needs:
        found = dataclasses.replace(found, span_logits=heads.span_logits(params, hidden))
    if Need.REFERENCE_KL in needs:
        if reference is None:
            raise ValueError("the KL to a reference is asked for, but no reference is given")
        theirs = hidden_states(reference, batch, model=model, mesh=mesh)
        other = LMHead.of(reference, theirs, model, mesh)
        kl = head.full_kl(hidden, other, theirs, temperature=temperature)
        found = dataclasses.replace(found, reference_kl=kl)
    if Need.TEACHER in needs:
        if batch.teacher is None:
            raise ValueError("a teacher is asked for, but the batch has none")
        teacher = _teacher_hidden(params, batch.teacher, model=model, mesh=mesh)
        found = dataclasses.replace(found, teacher_hidden=teacher)
    return found


def hidden_states(
    params: heads.Params,
    batch: Batch | Teacher,
    *,
    model: DecoderConfig,
    mesh: Mesh | None = None,
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


def _teacher_hidden(
    params: heads.Params, teacher: Teacher, *, model: DecoderConfig, mesh: Mesh | None
) -> Array:
    hidden = hidden_states(jax.lax.stop_gradient(params), teacher, model=model, mesh=mesh)
    found = jnp.take_along_axis(hidden, jnp.maximum(teacher.slots, 0)[..., None], axis=1)
    return jnp.where(teacher.slots[..., None] >= 0, found, 0)
