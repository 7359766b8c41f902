"""Rejection sampling: supervised learning on the policy's own right answers.

With one turn this is RAFT, "Reward rAnked FineTuning", Dong et al., arXiv 2304.06767; with more it
is the special case of RLTF-SD (arXiv 2602.02482) that learns from right answers only, also those
that came after feedback.
"""

from __future__ import annotations

from t2g_jax.methods.base import learning
from t2g_jax.rollouts.episodes import episode_samples, play
from t2g_jax.run.context import Context
from t2g_jax.run.trainer import Collected
from t2g_jax.training.batch import row
from t2g_jax.training.objective import Objective
from t2g_jax.training.state import TrainState


class RejectionSampling:
    """The right answers of a round, as answers to the first prompt."""

    def __init__(self, context: Context):
        self.context = context
        self.config = context.config.rejection_sampling
        self.params = context.weights.load()
        self.learning = learning(self.config, fields=("nll_weight",), objective=Objective())

    def collect(self, state: TrainState, step: int) -> Collected:
        context, config, name = self.context, self.config, "rejection-sampling"
        episodes, metrics = play(context, state.params, config, name, step, turns=config.turns)
        rows = [
            row((episode.turns[0].prompt, {}), (last.tokens, {"nll_weight": 1.0}))
            for episode in episodes
            if (last := episode.turns[-1]).score.correct
        ]
        samples = episode_samples(context, config, episodes, method=name, step=step)
        return Collected(rows, metrics | {"accepted": len(rows)}, samples=samples)
