"""What methods with a policy gradient share: terms, the reference, a look at rows before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from t2g_jax.methods.base import Method, update_plan
from t2g_jax.methods.reference import KLPenalty, Reference
from t2g_jax.methods.scores import RowScorer, Scores
from t2g_jax.reductions import Reduction
from t2g_jax.run.context import Context
from t2g_jax.training.forward import Need
from t2g_jax.training.objective import Objective
from t2g_jax.training.sequences import Field, TokenSequence
from t2g_jax.training.state import TrainState
from t2g_jax.training.terms import OLD_LOGPROBS, POLICY_WEIGHT, KLToReference, PolicyGradient, Term


class PolicyMethod(Method):
    """A method that learns by policy gradient from what it sampled, by its section of the config.

    What is computed of a round's rows before the update is what somebody reads: nothing in a round
    of one update whose divergence costs nothing.
    """

    def __init__(self, context: Context):
        super().__init__(context)
        self.score_rows = RowScorer.of(context)
        config = self.config
        if config.reads_reference:
            initial = context.weights.frozen(self.params)
            self.reference = Reference(self.score_rows, config, initial)
        charged = {"kl_coefficient": config.kl_coefficient} if config.kl_coefficient > 0 else {}
        objective = Objective(
            self.terms(),
            reduction=Reduction(config.reduction),
            longest=context.sampling.max_new_tokens,
            temperature=context.sampling.temperature,
            truncated=context.sampling.truncates,
        )
        self.plan = update_plan(config, objective, charged)

    def terms(self) -> tuple[Term, ...]:
        """The terms of its loss."""
        to_reference = (KLToReference(self.config),) if self.config.has_kl_term else ()
        return (PolicyGradient(self.config), *to_reference)

    @property
    def needs(self) -> Need:
        """What it asks of its own policy about sampled rows, before it learns from them.

        Ratios begin at exactly 1 only if both sides come from the trainer: log-probabilities of a
        sampler in bfloat16 are up to 2e-2 off for a token, 3e-3 on average over a sequence of 32.
        A single update compares with itself, see `PolicyGradient`; several need `OLD_LOGPROBS`.
        """
        needs = self.plan.objective.needs & Need.VALUES
        if self.config.updates_per_step > 1:
            needs |= Need.LOGPROBS
        return needs if self.reference is None else needs | self.reference.needs_of_policy

    @property
    def scores(self) -> Mapping[str, Need]:
        """What of its own policy it has scored in a round: for `t2g plan`, by name."""
        return {"score (policy)": self.needs} if self.needs else {}

    def score(
        self, state: TrainState, rows: Sequence[TokenSequence]
    ) -> tuple[list[TokenSequence], Scores | None]:
        """Sampled rows with `OLD_LOGPROBS` if they need them, and what the policy makes of them."""
        if not self.needs:
            return list(rows), None
        full = self.reference is not None and self.reference.is_full
        found = self.score_rows(
            state.params,
            rows,
            self.needs,
            rows_at_once=self.config.rows_at_once,
            reference=self.reference.params if self.reference and full else None,
        )
        if self.config.updates_per_step > 1:
            old: list[Mapping[Field, Any]] = [
                {OLD_LOGPROBS: about["logprobs"] * (row.values[POLICY_WEIGHT] != 0)}
                for row, about in zip(rows, found, strict=True)
            ]
            rows = with_fields(rows, old)
        return list(rows), found

    def penalty(
        self, state: TrainState, rows: Sequence[TokenSequence], policy: Scores | None
    ) -> KLPenalty:
        """What sampled rows pay for leaving the reference."""
        if self.reference is None:
            return KLPenalty.nothing(rows)
        return self.reference.penalty(state, rows, policy)


def with_fields(
    rows: Sequence[TokenSequence], fields: Sequence[Mapping[Field, Any]]
) -> list[TokenSequence]:
    """Each row with fields of its own."""
    return [row.with_fields(its) for row, its in zip(rows, fields, strict=True)]
