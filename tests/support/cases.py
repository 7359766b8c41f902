"""Objectives with every term, by flat settings: what the tests of training learn by."""

import dataclasses

import jax
import numpy as np

from t2g_jax.parallel.shapes import round_up
from t2g_jax.reductions import Reduction
from t2g_jax.training.batch import Batch, pack
from t2g_jax.training.objective import Objective
from t2g_jax.training.sequences import TokenSequence
from t2g_jax.training.terms import (
    NLL,
    KLToReference,
    PolicyGradient,
    SelfDistillation,
    SpanLabels,
    Value,
)


@dataclasses.dataclass(frozen=True)
class Case:
    """The settings of all terms, as sections of a config have them, and those of the objective."""

    surrogate: str = "ppo"
    epsilon_low: float = 0.2
    epsilon_high: float = 0.2
    updates_per_step: int = 2
    divergence: tuple[str, str] = ("k3", "loss")
    value_coefficient: float = 0.1
    value_clip: float = 0.2
    correction: str = "none"
    logprob_floor: float | None = None
    nll_coefficient: float = 1.0
    span_weight: float = 1.0
    class_weights: tuple[float, float, float] = (1.0, 1.0, 1.0)
    reduction: Reduction = Reduction.TOKEN_MEAN
    longest: int = 1
    temperature: float = 1.0

    def objective(self, *kinds: type, truncated: bool = True) -> Objective:
        """With terms of these kinds, or all."""
        terms = (
            PolicyGradient(self),
            KLToReference(self),
            Value(self),
            SelfDistillation(self),
            NLL(self.nll_coefficient),
            SpanLabels(self),
        )
        return Objective(
            tuple(term for term in terms if not kinds or isinstance(term, kinds)),
            self.reduction,
            self.longest,
            self.temperature,
            truncated,
        )


FIELDS = Case(correction="ppo", logprob_floor=-5.0).objective().fields
"""Of all terms."""
BY_NAME = {field.name: field for field in FIELDS}


def row(*parts) -> TokenSequence:
    """A sequence from parts (tokens, {name of a field: values})."""
    return TokenSequence.from_parts(
        *((tokens, {BY_NAME[name]: x for name, x in given.items()}) for tokens, given in parts)
    )


def only(item: TokenSequence, *names: str) -> TokenSequence:
    """A sequence with these of its fields alone."""
    return item.only([BY_NAME[name] for name in names])


def pad(rows, *, length, fields=(), multiple=1, teacher_length=None) -> Batch:
    """As `pack`, with row i alone in batch row i."""
    shape = {"length": length, "fields": list(fields), "teacher_length": teacher_length}
    alone = [pack([item], **shape) for item in rows]
    empty = [pack([], **shape)] * (round_up(len(alone), multiple) - len(alone))
    return jax.tree.map(lambda *arrays: np.concatenate(arrays), *alone, *empty)
