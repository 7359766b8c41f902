"""What it costs to move away from the policy that training starts from."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np

from t2g_jax import kl
from t2g_jax.config import PolicyConfig
from t2g_jax.methods.base import about_tokens, scored
from t2g_jax.models.heads import Params
from t2g_jax.phases.context import Context
from t2g_jax.phases.training import about_rows
from t2g_jax.training.batch import Batch, Row, round_up
from t2g_jax.training.state import TrainState
from t2g_jax.training.step import full_kl

ESTIMATORS = {"k1": kl.k1, "k2": kl.k2, "k3": kl.k3, "abs": kl.absolute}


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
        self.context, self.config, self.params = context, config, context.frozen(params)

    def charge(self, state: TrainState, rows: Sequence[Row]) -> Charge:
        """The costs of rows whose `policy_weight` says which tokens were sampled.

        If the loss has the term, the rows get the fields that it needs.
        """
        config, beta = self.config, float(state.carry["kl_coefficient"])
        reference: list[np.ndarray] = []
        if config.kl == "full":
            divergences = self.full(state.params, rows)
        else:
            # The reference is not truncated: the KL of the sampled distribution to it stays finite.
            found = scored(self.context, self.params, rows, config.rows_at_once)
            reference = [about["logprobs"] for about in found]
            divergences = estimated(config.kl, rows, reference)
        weights = [item.fields["policy_weight"] for item in rows]
        spent = [d * w for d, w in zip(divergences, weights, strict=True)]
        mean = float(np.concatenate(spent).sum() / max(np.concatenate(weights).sum(), 1.0))
        if config.kl_in == "loss":
            for item, logprobs, weight in zip(rows, reference, weights, strict=True):
                item.fields |= {"ref_logprobs": logprobs, "kl_weight": beta * weight}
        price = beta if config.kl_in == "reward" else 0.0
        return Charge(
            costs=[price * s for s in spent],
            metrics={"kl": mean, "kl_coefficient": beta},
            carry={"kl_coefficient": adapted(beta, mean, config.adaptive_kl_target)},
        )

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


def estimated(kind: str, rows: Sequence[Row], reference: Sequence[np.ndarray]) -> list[np.ndarray]:
    """An estimate of the KL for each token of each row: arrays [n]."""
    lengths = [len(item) for item in rows]
    # All rows in one array, whose length is rounded up: each length is compiled, and kept.
    pair = np.zeros((2, round_up(sum(lengths))), np.float32)
    pair[:, : sum(lengths)] = (
        np.concatenate([item.fields["old_logprobs"] for item in rows]),
        np.concatenate(reference),
    )
    found = np.asarray(ESTIMATORS[kind](*pair))
    return np.split(found[: sum(lengths)], np.cumsum(lengths)[:-1])


def adapted(coefficient: float, observed: float, target: float | None) -> float:
    """Ziegler's controller: β ← β (1 + 0.1 · clip(KL / target − 1, ±0.2)). arXiv 1909.08593."""
    if target is None:
        return coefficient
    return coefficient * (1 + 0.1 * float(np.clip(observed / target - 1, -0.2, 0.2)))
