"""What a phase minimizes: the terms that its method chose, and all that follows from them.

    loss = Σ coefficient · Σ weight · value / denominator,   over the terms

Shared terms (policy gradient, its KL, self-distillation, likelihood) have one denominator: the
tokens that any of them weighs, so that a coefficient means what it says however many tokens each
has; how they are reduced can be chosen. The others are means over their own tokens. Denominators
are of the whole step.
"""

from __future__ import annotations

import dataclasses
import functools
import operator

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from t2g_jax.models import heads
from t2g_jax.models.decoder import DecoderConfig
from t2g_jax.reductions import Reduction, count, reduce
from t2g_jax.training.batch import Batch
from t2g_jax.training.forward import CUTOFFS, Need, forward
from t2g_jax.training.sequences import Field, TokenSequence, Weight
from t2g_jax.training.terms import Term

Array = jax.Array
Metrics = dict[str, dict[str, Array]]
"""{"sum": …, "max": …, "min": …}: how each is combined over micro-batches."""

SHARED = "shared"
"""The denominator of shared terms; that of other terms has the name of their weight."""


@dataclasses.dataclass(frozen=True)
class Objective:
    """Terms, and how they are reduced. Hashable: closed over by a jitted step."""

    terms: tuple[Term, ...]
    reduction: Reduction = Reduction.TOKEN_MEAN
    """How the shared terms are reduced."""
    longest: int = 1
    """What SEQUENCE_MEAN_TOKEN_SUM divides a sequence by: a constant, as in Dr. GRPO."""
    temperature: float = 1.0
    """The sampler's, at which sampled tokens are scored; others are scored at temperature 1."""
    truncated: bool = False
    """Whether the sampler truncates: then log-probabilities follow `CUTOFFS`."""

    def __post_init__(self) -> None:
        names = [term.name for term in self.terms]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"an objective needs terms of different names, got {names}")
        by_name: dict[str, Field] = {}
        for field in self.fields:
            if by_name.setdefault(field.name, field) != field:
                raise ValueError(f"{field.name} is declared twice, and differently")

    @property
    def fields(self) -> tuple[Field, ...]:
        """What a batch has to have of each token."""
        found = [field for term in self.terms for field in (term.weight, *term.reads)]
        return tuple(dict.fromkeys([*found, *([CUTOFFS] if self.truncated else [])]))

    @property
    def weights(self) -> tuple[Weight, ...]:
        """The weights of its terms."""
        return tuple(dict.fromkeys(term.weight for term in self.terms))

    @property
    def needs(self) -> Need:
        """What its terms need of the forward pass."""
        return functools.reduce(operator.or_, (term.needs for term in self.terms))

    def loss_token_count(self, row: TokenSequence) -> int:
        """Tokens of a sequence that count in any term.

        Raises:
          ValueError: it has a field that no term reads.
        """
        if unread := [field.name for field in row.values if field not in self.fields]:
            raise ValueError(f"no term of the objective reads {', '.join(unread)}")
        counted = [row.values[w] != 0 for w in self.weights if w in row.values]
        return int(np.any(counted, axis=0).sum()) if counted else 0

    def denominators(self, batch: Batch) -> dict[str, Array]:
        """Sums of weights over a whole step, before it is cut into parts."""

        def total(weight: Weight, how: Reduction = Reduction.TOKEN_MEAN) -> Array:
            return count(batch[weight], how, segment_ids=batch.segment_ids)

        pooled = dict.fromkeys(term.weight for term in self.terms if term.shared)
        shared = sum((total(weight, self.reduction) for weight in pooled), jnp.float32(0))
        if self.reduction is Reduction.SEQUENCE_MEAN_TOKEN_SUM:
            shared *= self.longest
        return {weight.name: total(weight) for weight in self.weights} | {SHARED: shared}

    def temperatures(self, batch: Batch) -> Array | float:
        """The temperature of each token: the sampler's, or 1."""
        sampled = [batch[weight] != 0 for weight in self.weights if weight.sampled]
        if self.temperature == 1 or not sampled:
            return 1.0
        return jnp.where(functools.reduce(operator.or_, sampled), self.temperature, 1.0)

    def __call__(
        self,
        params: heads.Params,
        batch: Batch,
        denominators: dict[str, Array],
        *,
        model: DecoderConfig,
        mesh: Mesh | None = None,
    ) -> tuple[Array, Metrics]:
        """Loss of a (micro-)batch and its metrics.

        Args:
          params: decoder and heads.
          batch: arrays [B, T].
          denominators: of the whole step.
          model: static.
          mesh: static, where parameters and rows are sharded; None leaves activations to the
            compiler.

        Returns:
          loss: scalar float32; the losses of a step's micro-batches add up to that of the step.
          metrics: scalars.
        """
        outputs = forward(
            params,
            batch,
            self.needs,
            model=model,
            temperature=self.temperatures(batch),
            mesh=mesh,
        )
        loss = jnp.float32(0)
        metrics: Metrics = {"sum": {}, "max": {}, "min": {}}
        for term in self.terms:
            found, weight = term(batch, outputs), batch[term.weight]

            def mean(
                values: Array,
                denominator: str,
                how: Reduction = Reduction.TOKEN_MEAN,
                weight: Array = weight,
            ) -> Array:
                return reduce(
                    values,
                    weight,
                    how,
                    denominator=denominators[denominator],
                    segment_ids=batch.segment_ids,
                )

            own = term.weight.name
            share = (
                mean(found.loss, SHARED, self.reduction) if term.shared else mean(found.loss, own)
            )
            loss += term.coefficient * share
            metrics["sum"][term.name] = share
            metrics["sum"] |= {name: mean(values, own) for name, values in found.means.items()}
            for name, values in found.extremes.items():
                counted = weight != 0
                metrics["max"][f"{name}_max"] = jnp.max(values, where=counted, initial=-jnp.inf)
                metrics["min"][f"{name}_min"] = jnp.min(values, where=counted, initial=jnp.inf)
        metrics["sum"]["loss"] = loss
        return loss, metrics
