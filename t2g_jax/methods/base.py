"""What a method is, and what the methods share: comparisons in a group, plans, supervision."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from t2g_jax.advantages import group_centered, leave_one_out
from t2g_jax.config import RolloutConfig
from t2g_jax.feedback.reward_model import RewardModel
from t2g_jax.methods.reference import Reference
from t2g_jax.models.heads import Params
from t2g_jax.rollouts.engine import Rollouts
from t2g_jax.rollouts.episodes import Episode
from t2g_jax.rollouts.turns import Turn
from t2g_jax.run.context import Context
from t2g_jax.run.trainer import Experience, UpdatePlan
from t2g_jax.training.forward import Need
from t2g_jax.training.objective import Objective
from t2g_jax.training.sequences import TokenSequence
from t2g_jax.training.state import TrainState
from t2g_jax.training.terms import NLL, NLL_WEIGHT


@dataclasses.dataclass(frozen=True)
class Trajectory:
    """An episode, and what a method made of it: what the report shows.

    advantages: of each turn, one number or one for each token of its completion; None: it has none.
    distillation: with what the last turn is distilled into the first; None: it is not.
    span_rewards: of each token of a single turn's completion, from a reward model or a judge.
    """

    episode: Episode
    advantages: Sequence[float | np.ndarray] | None = None
    distillation: float | None = None
    span_rewards: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class MethodExperience(Experience):
    """What a method learns from, and the trajectories that it comes from, groups side by side."""

    trajectories: Sequence[Trajectory] = ()


class Method(abc.ABC):
    """A way of learning from attempts. What it makes in `__init__` is a `plan`; in each round it
    collects what to learn from."""

    name: ClassVar[str]
    """As the config calls it: "rltf-sd"."""
    section: ClassVar[type[RolloutConfig]]
    """The class of its section of the config; only a method from outside has it."""

    plan: UpdatePlan
    """How it learns from rows: its loss, its optimizer, how many rounds."""
    reference: Reference | None = None
    """What it compares itself with; None: with nothing, so none is kept."""
    reward_model: RewardModel | None = None
    """Who marks spans; None: nobody, or the judge."""

    def __init__(self, context: Context):
        self.rollouts = Rollouts.of(context)
        """The run's engine, prompts, keys, scorer, judges, tokenizer."""
        self.config: Any = context.config.of_method(self.name)
        """Its section of the config; subclasses say which."""
        self.params: Params = context.weights.load()
        """Where it starts: the warm start and the heads it needs, without adapters."""

    @property
    def scores(self) -> Mapping[str, Need]:
        """What it asks of its own policy in a round, before it learns from it: for `t2g plan`, by
        name."""
        return {}

    @abc.abstractmethod
    def collect(self, state: TrainState, step: int) -> MethodExperience:
        """The rows of a step; depends on the state and the step alone."""


class SupervisedMethod(Method):
    """A method that learns answers by their negative log-likelihood: which ones, is its idea."""

    def __init__(self, context: Context):
        super().__init__(context)
        self.plan = update_plan(self.config, Objective((NLL(),)))

    @abc.abstractmethod
    def collect(self, state: TrainState, step: int) -> MethodExperience:
        """The rows of a step, see `answer_row`."""


def answer_row(prompt: Sequence[int], answer: Turn) -> TokenSequence:
    """A row (x, y) that teaches a prompt an answer, whatever that was an answer to."""
    return TokenSequence.from_parts((prompt, {}), (answer.tokens, {NLL_WEIGHT: 1.0}))


def group_advantages(
    rewards: np.ndarray, took_place: np.ndarray, how: str, group_size: int
) -> np.ndarray:
    """Advantages of rewards [P · G, ...] over others of their group of G; see `GroupConfig`."""
    shape = (-1, group_size, *rewards.shape[1:])
    grouped = rewards.reshape(shape), took_place.reshape(shape)
    if how == "leave_one_out":
        advantages = leave_one_out(*grouped)
    else:
        advantages = group_centered(*grouped, scale_by_std=how == "scaled")
    return np.asarray(advantages).reshape(rewards.shape)


def update_plan(
    config: RolloutConfig, objective: Objective, carry: dict[str, float] | None = None
) -> UpdatePlan:
    """How any method learns from the rows of its rounds."""
    return UpdatePlan(
        optimizer=config.optimizer,
        objective=objective,
        steps=config.steps,
        token_budget=config.token_budget,
        epochs=config.epochs,
        minibatches=config.minibatches,
        micro_batches=config.micro_batches,
        carry=carry or {},
    )
