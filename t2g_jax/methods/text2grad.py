"""Text2Grad: PPO on a reward for every token, from spans that critiques speak of.

"Text2Grad: Reinforcement Learning from Natural Language Feedback", Wang et al., arXiv 2505.22338.
Token reward rₜ = δₜ − β·KLₜ, δₜ from the reward model (or the judge); GAE with a value head;
clipped policy and value losses.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np

from t2g_jax import kl
from t2g_jax.advantages import gae, whiten
from t2g_jax.judges.base import JudgeError
from t2g_jax.methods.base import (
    attempt_metrics,
    completion_row,
    first_attempts,
    policy_learning,
    tokens_generated,
)
from t2g_jax.models import heads
from t2g_jax.phases.context import Context
from t2g_jax.phases.judgement import judge, token_labels
from t2g_jax.phases.rollout import Turn
from t2g_jax.phases.samples import sample_of
from t2g_jax.phases.span_rewards import Answer, RewardModel
from t2g_jax.phases.training import Collected, padded
from t2g_jax.report.contents import Sample
from t2g_jax.training.batch import Batch
from t2g_jax.training.state import TrainState
from t2g_jax.training.step import full_kl, score

SAMPLES = 6
"""Completions shown in the report, at the first, the middle and the last step."""

ESTIMATORS = {"k1": kl.k1, "k2": kl.k2, "k3": kl.k3, "abs": kl.absolute}


class Text2Grad:
    """Span rewards in, per-token advantages out."""

    def __init__(self, context: Context):
        self.context = context
        self.config = config = context.config.text2grad
        self.reference = context.params()
        self.params = context.placed(
            heads.add_heads(
                self.reference, context.model, context.key("value_head"), heads=("value_head",)
            )
        )
        self.reward_model = (
            RewardModel.load(context) if config.span_source == "reward_model" else None
        )
        self.temperature = context.config.sampling.temperature
        self.learning = policy_learning(
            context,
            config,
            fields=("returns", "old_values"),
            carry={"kl_coefficient": config.kl_coefficient},
            value_coefficient=config.value_coefficient,
            value_clip=config.value_clip,
        )

    def collect(self, state: TrainState, step: int) -> Collected:
        config = self.config
        turns = first_attempts(self.context, state.params, config, "text2grad", step)
        span_rewards, about_spans = self.span_rewards(turns)
        rows = [completion_row(self.context, turn, policy_weight=1.0) for turn in turns]
        with self.context.watch.stage("score"):
            batch = padded(self.context, rows, tuple(rows[0].fields))
            scored = jax.device_get(self.score(state.params, batch))
            divergence = np.asarray(self.divergence(state.params, batch))
        mask = np.asarray(batch.policy_weight)
        delta = np.zeros_like(mask)
        for i, (turn, rewards) in enumerate(zip(turns, span_rewards, strict=True)):
            delta[i, _slots(turn)] = rewards

        beta = float(state.carry["kl_coefficient"])
        token_rewards = (delta - beta * divergence) * mask
        advantages, returns = gae(
            token_rewards, scored["values"], mask, gamma=config.gamma, gae_lambda=config.gae_lambda
        )
        if config.whiten:
            advantages = whiten(advantages, mask)
        learned = {"advantages": advantages, "returns": returns, "old_values": scored["values"]}
        for name, slots in jax.device_get(learned).items():
            for turn, item, values in zip(turns, rows, slots, strict=False):  # ends in padding
                item.fields[name] = np.zeros(len(item), np.float32)
                item.fields[name][len(turn.prompt) :] = values[_slots(turn)]

        total = max(float(mask.sum()), 1.0)
        mean_kl = float((divergence * mask).sum()) / total
        metrics = attempt_metrics(turns) | {
            "span_reward": float(delta.sum()) / total,
            "kl": mean_kl,
            "kl_coefficient": beta,
            "tokens_generated": tokens_generated(turns),
        }
        metrics |= about_spans
        carry = {"kl_coefficient": adapted(beta, mean_kl, config.adaptive_kl_target)}
        samples: Sequence[Sample] = ()
        if step in (0, config.steps // 2, config.steps - 1):
            shown = range(0, len(turns), config.group_size)[:SAMPLES]
            with self.context.watch.stage("evaluate"):
                samples = self.samples(
                    [turns[i] for i in shown],
                    [span_rewards[i] for i in shown],
                    [rows[i].fields["advantages"][len(turns[i].prompt) :] for i in shown],
                    title=f"text2grad, step {step + 1}",
                )
        return Collected(rows, metrics, carry, samples)

    def span_rewards(self, turns: Sequence[Turn]) -> tuple[list[np.ndarray], dict[str, float]]:
        """δ of each completion token, and metrics; where nobody could mark it, all is neutral."""
        unaligned = 0
        marked: list[np.ndarray | None] = []
        if self.reward_model is not None:
            with self.context.watch.stage("score"):
                marked = self.reward_model.rewards([_answer(turn) for turn in turns])
        else:
            for turn in turns:
                judgement = judge(self.context, turn)
                if isinstance(judgement, JudgeError):
                    marked.append(None)
                else:
                    marked.append(token_labels(judgement.spans, len(turn.completion.tokens)))
                    unaligned += len(judgement.unaligned)
        rewards = [
            np.zeros(len(turn.completion.tokens), np.float32) if given is None else given
            for turn, given in zip(turns, marked, strict=True)
        ]
        failures = sum(given is None for given in marked)
        return rewards, {"judge_failures": failures, "unaligned_quotes": unaligned}

    def samples(
        self,
        turns: Sequence[Turn],
        span_rewards: Sequence[np.ndarray],
        advantages: Sequence[np.ndarray],
        *,
        title: str,
    ) -> tuple[Sample, ...]:
        """Completions for the report, token by token."""
        written: list[str | None] = [None] * len(turns)
        if self.reward_model is not None:
            written = [
                None if tokens is None else self.context.tokenizer.decode(tokens)
                for tokens in self.reward_model.critiques([_answer(turn) for turn in turns])
            ]
        return tuple(
            sample_of(
                self.context, turn, title=title, predicted=p, advantages=a, predicted_critique=c
            )
            for turn, p, a, c in zip(turns, span_rewards, advantages, written, strict=True)
        )

    def divergence(self, params: heads.Params, batch: Batch) -> jax.Array:
        """KLₜ to the warm start for every slot [B, T]."""
        if self.config.kl == "full":
            return full_kl(
                params,
                self.reference,
                batch,
                model=self.context.model,
                temperature=self.temperature,
                mesh=self.context.mesh,
            )
        # The reference is not truncated: KL of the sampled distribution to it stays finite.
        reference = self.score(self.reference, batch.replace(cutoffs=None))
        return ESTIMATORS[self.config.kl](batch.old_logprobs, reference["logprobs"])

    def score(self, params: heads.Params, batch: Batch) -> dict[str, jax.Array]:
        """Log-probabilities, and values if there is a value head, at the sampler's temperature."""
        model, mesh = self.context.model, self.context.mesh
        return score(params, batch, model=model, temperature=self.temperature, mesh=mesh)


def adapted(coefficient: float, observed: float, target: float | None) -> float:
    """Ziegler's controller: β ← β (1 + 0.1 · clip(KL / target − 1, ±0.2)). arXiv 1909.08593."""
    if target is None:
        return coefficient
    return coefficient * (1 + 0.1 * float(np.clip(observed / target - 1, -0.2, 0.2)))


def _answer(turn: Turn) -> Answer:
    return turn.prompt, turn.completion.tokens


def _slots(turn: Turn) -> slice:
    """Where a padded row predicts the completion's tokens."""
    first = len(turn.prompt) - 1
    return slice(first, first + len(turn.completion.tokens))
