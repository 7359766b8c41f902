"""RLTF: learn to say at once what feedback led to.

"Expanding the Capabilities of Reinforcement Learning via Text Feedback", Song et al.,
arXiv 2602.02482. A wrong attempt is criticised and tried again; a right one ends the episode.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from t2g_jax.advantages import first_turn, group_centred, turn_returns
from t2g_jax.judges.base import JudgeError
from t2g_jax.methods.base import (
    attempt_metrics,
    first_attempts,
    logprobs_of,
    policy_fields,
    sampled,
    step_key,
    tokens_generated,
)
from t2g_jax.models.heads import Params
from t2g_jax.phases.context import Context
from t2g_jax.phases.rollout import Turn, attempt, critique
from t2g_jax.phases.training import Collected, Learning
from t2g_jax.training.batch import Row, row
from t2g_jax.training.objective import Objective
from t2g_jax.training.state import TrainState


@dataclasses.dataclass
class Episode:
    """The turns of one trajectory; each prompt begins with the tokens of the turn before."""

    turns: list[Turn]

    def row(self, context: Context, advantages: np.ndarray) -> Row:
        """All turns as one sequence: (x₀, y₀, feedback, y₁, …), learning the completions."""
        parts: list = []
        done = 0
        for turn, advantage in zip(self.turns, advantages):
            fields = {"policy_weight": 1.0, "advantages": advantage}
            fields |= sampled(context, turn.completion)
            parts += [(turn.prompt[done:], {}), (turn.completion.tokens, fields)]
            done = len(turn.prompt) + len(turn.completion.tokens)
        return row(*parts)

    def distilled_row(self, advantage: float) -> Row:
        """(x₀, y_last): the last completion as an answer to the first prompt."""
        last = self.turns[-1].completion
        fields = {
            "distill_weight": 1.0,
            "advantages": advantage,
            "teacher_logprobs": last.logprobs,
        }
        return row((self.turns[0].prompt, {}), (last.tokens, fields))


class RLTFSelfDistillation:
    """RLTF-SD: multi-turn GRPO, and the repaired answer distilled into the first turn."""

    def __init__(self, context: Context):
        self.context = context
        self.config = config = context.config.rltf_sd
        self.params = context.params()
        self.learning = Learning(
            optimizer=config.optimizer,
            objective=Objective(
                epsilon_low=config.epsilon_low,
                epsilon_high=config.epsilon_high,
                temperature=context.config.sampling.temperature,
                correction=config.correction,
                logprob_floor=config.logprob_floor,
            ),
            fields=(*policy_fields(context), "distill_weight", "teacher_logprobs"),
            steps=config.steps,
            epochs=config.epochs,
            minibatches=config.minibatches,
            micro_batches=config.micro_batches,
        )

    def collect(self, state: TrainState, step: int) -> Collected:
        config = self.config
        episodes, metrics = self.play(state.params, step)
        shape = (config.prompts_per_step, config.group_size, config.turns)
        rewards, mask = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
        for index, episode in enumerate(episodes):
            where = divmod(index, config.group_size)
            for h, turn in enumerate(episode.turns):
                rewards[*where, h], mask[*where, h] = turn.score.reward, 1.0
        returns = turn_returns(rewards, mask, gamma=config.gamma)
        advantages = np.asarray(group_centred(returns, mask)).reshape(-1, config.turns)
        rows = [episode.row(self.context, advantages[i]) for i, episode in enumerate(episodes)]

        final = np.array([episode.turns[-1].score.reward for episode in episodes], np.float32)
        final = final.reshape(shape[:2])
        retried = mask[..., 1]
        if config.baseline == "first_turn":
            distill = first_turn(final, rewards[..., 0], retried)
        else:
            distill = group_centred(final, retried)
        distill = config.distill_coefficient * np.asarray(distill).ravel()
        distilled = [
            episode.distilled_row(distill[i])
            for i, episode in enumerate(episodes)
            if len(episode.turns) > 1
        ]
        if distilled:
            # log π(y₁|x₀) before the update, for the floor.
            for item, logprobs in zip(
                distilled, logprobs_of(self.context, state.params, distilled)
            ):
                item.fields["old_logprobs"] = logprobs
        return Collected([*rows, *distilled], metrics)

    def play(self, params: Params, step: int) -> tuple[list[Episode], dict[str, float]]:
        """P × G episodes: attempts until one is right, there is no critique, or turns run out."""
        context, config = self.context, self.config
        turns = first_attempts(context, params, config, "rltf-sd", step)
        metrics = attempt_metrics(turns)
        episodes = [Episode([turn]) for turn in turns]
        failures = 0
        for h in range(1, config.turns):
            again: list[tuple[Episode, list[int]]] = []
            for episode in episodes:
                last = episode.turns[-1]
                if len(episode.turns) != h or last.score.correct:
                    continue
                feedback = critique(context, last)
                if isinstance(feedback, JudgeError):
                    failures += 1
                    continue
                again.append((episode, last.after_feedback(context, feedback.text)))
            if not again:
                break
            retries = attempt(
                context,
                params,
                [episode.turns[0].example for episode, _ in again],
                [prompt for _, prompt in again],
                step_key(context, "rltf-sd", step, h),
                batch_size=len(episodes),
            )
            for (episode, _), turn in zip(again, retries):
                episode.turns.append(turn)
            solved = float(np.mean([turn.score.correct for turn in retries]))
            metrics[f"accuracy_turn_{h + 1}"] = solved
        metrics["judge_failures"] = failures
        metrics["tokens_generated"] = sum(tokens_generated(e.turns) for e in episodes)
        return episodes, metrics
