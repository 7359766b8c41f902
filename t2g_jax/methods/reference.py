"""What it costs to move away from the policy that training starts from."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np

from t2g_jax.config import PolicyConfig
from t2g_jax.kl import absolute, k1, k2, k3
from t2g_jax.methods.base import Scored, about_tokens, divergence, has_kl_term, scored
from t2g_jax.models.heads import Params
from t2g_jax.parallel.shapes import round_up
from t2g_jax.run.context import Context
from t2g_jax.run.trainer import about_rows
from t2g_jax.training.batch import Batch, Row
from t2g_jax.training.state import TrainState
from t2g_jax.training.step import full_kl

ESTIMATORS = {"k1": k1, "k2": k2, "k3": k3, "abs": absolute}


@dataclasses.dataclass
class Charge:
    """What the tokens of a step's rows cost.

    costs: for each row β · KL of each token [n], to be taken off its reward; all 0 if the loss has
    a term for it. metrics, carry: for the log, and for the next step.
    """

    costs: list[np.ndarray]
    metrics: dict[str, float]
    carry: dict[str, float]


class Reference:
    """The warm start, and a price β for leaving it: in rewards or in the loss, fixed or adaptive.

    With LoRA it is the policy without its adapters, and takes no memory.
    """

    def __init__(self, context: Context, config: PolicyConfig, params: Params):
        self.context, self.config, self.params = context, config, context.weights.frozen(params)

    def charge(
        self, state: TrainState, rows: Sequence[Row], policy: Scored | None = None
    ) -> Charge:
        """The costs of rows whose `policy_weight` says which tokens were sampled.

        Policy and reference are compared at the sampler's temperature, neither truncated. If the
        loss has the term, the rows get the fields that it needs.

        Args:
          policy: what the state's policy makes of the rows (`scored_before`), if that is known.
        """
        config, beta = self.config, self.coefficient(state)
        kl, kl_in = divergence(config)
        in_reward = kl_in == "reward"
        reference: list[np.ndarray] = []
        if kl == "full":
            divergences = self.full(state.params, rows)
        else:
            found = scored(self.context, self.params, rows, config.rows_at_once)
            reference = [about["logprobs"] for about in found]
            if policy is None and (self.context.sampling.truncates or (in_reward and beta > 0)):
                policy = scored(self.context, state.params, rows, config.rows_at_once)
            divergences = estimated(kl, rows, reference, policy)
        weights = [item.fields["policy_weight"] for item in rows]
        spent = [d * w for d, w in zip(divergences, weights, strict=True)]
        total, tokens = (float(sum(map(np.sum, arrays))) for arrays in (spent, weights))
        completions = sum(map(stretches, weights))
        per_sequence = total / max(completions, 1)
        if has_kl_term(config):
            for item, logprobs, weight in zip(rows, reference, weights, strict=True):
                item.fields |= {"ref_logprobs": logprobs, "kl_weight": beta * weight}
        price = beta if in_reward else 0.0
        return Charge(
            costs=[price * s for s in spent],
            metrics={
                "kl": total / max(tokens, 1.0),
                "kl_per_sequence": per_sequence,
                "kl_coefficient": beta,
            },
            carry={"kl_coefficient": adapted(beta, per_sequence, completions, config)},
        )

    def coefficient(self, state: TrainState) -> float:
        """β: where the controller has brought it or, without one, what the config says now."""
        if self.config.adaptive_kl_target_per_sequence is None:
            return self.config.kl_coefficient
        return float(state.carry["kl_coefficient"])

    def full(self, params: Params, rows: Sequence[Row]) -> list[np.ndarray]:
        """KL over the whole vocabulary where each token of each row was chosen: arrays [n]."""
        context = self.context

        def compute(batch: Batch) -> jax.Array:
            return full_kl(
                params,
                self.params,
                batch,
                model=context.model,
                temperature=context.config.sampling.temperature,
                mesh=context.mesh,
            )

        with context.watch.stage("score"):
            found = about_rows(context, rows, compute, self.config.rows_at_once)
        return [about_tokens(values) for values in found]


def estimated(
    kind: str,
    rows: Sequence[Row],
    reference: Sequence[np.ndarray],
    policy: Scored | None = None,
) -> list[np.ndarray]:
    """An estimate of the KL for each token of each row: arrays [n].

    Args:
      reference: log-probabilities [n] of the rows' tokens.
      policy: what it makes of the rows; None: the sampler's log-probabilities, not truncated.
    """
    if policy is None:
        mine = [item.fields["old_logprobs"] for item in rows]
    else:
        mine = [about.get("untruncated", about["logprobs"]) for about in policy]
    lengths = [len(item) for item in rows]
    # All rows in one array, whose length is rounded up: each length is compiled, and kept.
    pair = np.zeros((2, round_up(sum(lengths))), np.float32)
    pair[:, : sum(lengths)] = np.concatenate(mine), np.concatenate(reference)
    found = np.asarray(ESTIMATORS[kind](*pair))
    return np.split(found[: sum(lengths)], np.cumsum(lengths)[:-1])


def stretches(weight: np.ndarray) -> int:
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
