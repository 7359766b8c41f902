"""Rejection sampling: supervised learning on the policy's own right answers.

With one turn this is RAFT, "Reward rAnked FineTuning", Dong et al., arXiv 2304.06767; with more it
is the special case of RLTF-SD (arXiv 2602.02482) that learns from right answers only, also those
that came after feedback.
"""

from __future__ import annotations

from t2g_jax.config import RejectionSamplingConfig
from t2g_jax.errors import T2GError
from t2g_jax.methods.base import MethodExperience, SupervisedMethod, Trajectory, answer_row
from t2g_jax.rollouts.episodes import play
from t2g_jax.rollouts.turns import Turn
from t2g_jax.run.context import Context
from t2g_jax.run.needs import grades_only
from t2g_jax.training.state import TrainState


class RejectionSampling(SupervisedMethod):
    """The right answers of a round, as answers to the first prompt."""

    name = "rejection-sampling"
    config: RejectionSamplingConfig

    def __init__(self, context: Context):
        super().__init__(context)
        self.task = context.task

    def collect(self, state: TrainState, step: int) -> MethodExperience:
        config = self.config
        episodes, metrics = play(
            self.rollouts, state.params, config, self.name, step, turns=config.turns
        )
        rows = [
            answer_row(episode.turns[0].prompt, last)
            for episode in episodes
            if self.accepts(last := episode.turns[-1])
        ]
        return MethodExperience(
            rows,
            metrics | {"accepted": len(rows)},
            trajectories=[Trajectory(episode) for episode in episodes],
        )

    def accepts(self, turn: Turn) -> bool:
        """Whether an answer is learned from.

        Raises:
          T2GError: right ones are to be, but the task only grades.
        """
        if (least := self.config.least_reward) is not None:
            return turn.score.reward >= least
        if turn.score.correct is None:
            raise T2GError(grades_only(self.task, self.name))
        return turn.score.correct
