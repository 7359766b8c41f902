"""What it costs to move away from the policy that training starts from."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from t2g_jax.config import PolicyConfig
from t2g_jax.kl import absolute, k1, k2, k3
from t2g_jax.methods.scores import RowScorer, Scores
from t2g_jax.models.heads import Params
from t2g_jax.parallel.shapes import round_up
from t2g_jax.training.forward import Need
from t2g_jax.training.sequences import Field, TokenSequence
from t2g_jax.training.state import TrainState
from t2g_jax.training.terms import KL_WEIGHT, POLICY_WEIGHT, REF_LOGPROBS, SAMPLER_LOGPROBS

ESTIMATORS = {"k1": k1, "k2": k2, "k3": k3, "abs": absolute}


@dataclasses.dataclass(frozen=True)
class KLPenalty:
    """What the tokens of a round's rows pay for leaving the reference.

    per_token: for each row β · KL of each token [n], to be taken off its reward; all 0 unless it is
    charged there. fields: for each row what the KL term of the loss reads, if there is one.
    metrics, carry: for the log, and for the next step.
    """

    per_token: list[np.ndarray]
    fields: list[Mapping[Field, np.ndarray]]
    metrics: dict[str, float] = dataclasses.field(default_factory=dict)
    carry: dict[str, float] | None = None

    @classmethod
    def nothing(cls, rows: Sequence[TokenSequence]) -> KLPenalty:
        """Where nobody asks how far away the reference is."""
        return cls([np.zeros(len(row), np.float32) for row in rows], [{} for _ in rows])


class Reference:
    """The warm start, and a price β for leaving it: in rewards or in the loss, fixed or adaptive.

    With LoRA it is the policy without its adapters, and takes no memory.

    Args:
      params: see `Weights.frozen`.
    """

    def __init__(self, score_rows: RowScorer, config: PolicyConfig, params: Params):
        self.score_rows, self.config, self.params = score_rows, config, params

    @property
    def needs_of_policy(self) -> Need:
        """What the divergence needs of the policy's own forward pass.

        Where the sampler's log-probabilities will do, nothing: not if they are of a truncated
        distribution, nor if they are rounded otherwise and yet a reward. In a pass that there is
        anyway, its own cost nothing.
        """
        config = self.config
        if self.is_full:
            return Need.REFERENCE_KL
        own = self.score_rows.sampling.truncates or config.charges_rewards
        return Need.UNTRUNCATED if own or config.updates_per_step > 1 else Need.NOTHING

    @property
    def is_full(self) -> bool:
        """Whether the divergence is the sum over the vocabulary, computed in the policy's pass."""
        return self.config.divergence[0] == "full"

    def penalty(
        self, state: TrainState, rows: Sequence[TokenSequence], policy: Scores | None = None
    ) -> KLPenalty:
        """The KL penalty of rows whose `POLICY_WEIGHT` says which tokens were sampled.

        Policy and reference are compared at the sampler's temperature, neither truncated.

        Args:
          policy: what the state's policy makes of the rows, `needs_of_policy` at least; None: it
            needs nothing.
        """
        config, beta = self.config, self.coefficient(state)
        kind, _ = config.divergence
        weights = [row.values[POLICY_WEIGHT] for row in rows]
        if self.is_full:
            assert policy is not None
            divergences = [scores["reference_kl"] for scores in policy]
            fields: list[Mapping[Field, np.ndarray]] = [{} for _ in rows]
        else:
            found = self.score_rows(
                self.params,
                rows,
                Need.UNTRUNCATED,
                rows_at_once=config.rows_at_once,
            )
            reference = [scores["untruncated"] for scores in found]
            divergences = estimated_kl(kind, rows, reference, policy)
            fields = [
                {REF_LOGPROBS: logprobs, KL_WEIGHT: beta * weight} if config.has_kl_term else {}
                for logprobs, weight in zip(reference, weights, strict=True)
            ]
        weighted = [d * w for d, w in zip(divergences, weights, strict=True)]
        total, tokens = (float(sum(map(np.sum, arrays))) for arrays in (weighted, weights))
        completions = sum(map(completion_count, weights))
        per_sequence = total / max(completions, 1)
        charged = beta if config.charges_rewards else 0.0
        carry = {"kl_coefficient": adapted(beta, per_sequence, completions, config)}
        return KLPenalty(
            per_token=[charged * kl for kl in weighted],
            fields=fields,
            metrics={
                "kl": total / max(tokens, 1.0),
                "kl_per_sequence": per_sequence,
                "kl_coefficient": beta,
            },
            carry=carry if config.kl_coefficient > 0 else None,
        )

    def coefficient(self, state: TrainState) -> float:
        """β: where the controller has brought it or, without one, what the config says now."""
        if self.config.adaptive_kl_target_per_sequence is None:
            return self.config.kl_coefficient
        return float(state.carry["kl_coefficient"])


def estimated_kl(
    kind: str,
    rows: Sequence[TokenSequence],
    reference: Sequence[np.ndarray],
    policy: Scores | None = None,
) -> list[np.ndarray]:
    """An estimate of the KL for each token of each row: arrays [n].

    Args:
      reference: log-probabilities [n] of the rows' tokens.
      policy: what it makes of the rows; None: the sampler's log-probabilities, not truncated.
    """
    if policy is None:
        mine = [row.values[SAMPLER_LOGPROBS] for row in rows]
    else:
        mine = [scores["untruncated"] for scores in policy]
    lengths = [len(row) for row in rows]
    # All rows in one array, whose length is rounded up: each length is compiled, and kept.
    pair = np.zeros((2, round_up(sum(lengths))), np.float32)
    pair[:, : sum(lengths)] = np.concatenate(mine), np.concatenate(reference)
    found = np.asarray(ESTIMATORS[kind](*pair))
    return np.split(found[: sum(lengths)], np.cumsum(lengths)[:-1])


def completion_count(weight: np.ndarray) -> int:
    """How many completions a row has: runs of tokens whose weight is not 0."""
    return int(np.count_nonzero(np.diff((weight != 0).astype(int), prepend=0) > 0))


def adapted(coefficient: float, kl: float, completions: int, config: PolicyConfig) -> float:
    """The coefficient after a round: β ← β (1 + clip(KL / target − 1, ±0.2) · n / horizon).

    "Fine-Tuning Language Models from Human Preferences", Ziegler et al., arXiv 1909.08593, Sec.
    2.2, with the names and the horizon of TRL.

    Args:
      kl: of the round, in nats per completion.
      completions: n, of the round.
    """
    target, horizon = config.adaptive_kl_target_per_sequence, config.adaptive_kl_horizon
    if target is None:
        return coefficient
    error = float(np.clip(kl / target - 1, -0.2, 0.2))
    return coefficient * (1 + error * completions / horizon)
