"""The sections of methods: each is the settings of its loss, its rounds and its optimizer.

`MethodSections`, at the end, has one field for each method; all that lists methods follows from it.
"""

import dataclasses
import functools
import typing
from typing import Annotated, Literal

import annotated_types
import pydantic

from t2g_jax.config import outside
from t2g_jax.config.base import Section, require, require_multiple
from t2g_jax.config.numbers import (
    MOST_TURNS,
    Float,
    Fraction,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Tokens,
)
from t2g_jax.config.sections import OptimizerConfig, SamplingConfig
from t2g_jax.deprecation import accept_old_value

__all__ = [
    "METHODS",
    "EpisodeConfig",
    "GRPOConfig",
    "GRPOMultiTurnConfig",
    "GroupConfig",
    "MethodSections",
    "PPOConfig",
    "PolicyConfig",
    "RLTFFMConfig",
    "RLTFSDConfig",
    "RejectionSamplingConfig",
    "RolloutConfig",
    "Text2GradConfig",
]

Divergence = Literal["k1", "k2", "k3", "abs", "full"]
Place = Literal["reward", "loss"]
Compared = Annotated[
    Literal["centered", "scaled", "leave_one_out"],
    pydantic.BeforeValidator(functools.partial(accept_old_value, "advantage")),
]
Counted = Literal["token_mean", "sequence_mean_token_mean", "sequence_mean_token_sum"]


@dataclasses.dataclass(frozen=True)
class RolloutConfig(Section):
    """What all methods share: rounds of sampling and learning."""

    optimizer: OptimizerConfig = OptimizerConfig()
    steps: PositiveInt = 100
    """Rounds of sampling and learning; with a `token_budget` not looked at."""
    token_budget: Tokens | None = None
    """End, and let schedules run, by tokens generated, whatever `steps`. None: by `steps`."""
    prompts_per_step: PositiveInt = 16
    """Prompts a round."""
    group_size: PositiveInt = 8
    """Completions for each prompt."""
    minibatches: PositiveInt = 1
    """Optimizer steps that one pass over a round's rows is split into."""
    epochs: PositiveInt = 1
    """Passes over a round's rows (PPO epochs)."""
    micro_batches: PositiveInt = 1
    """Parts that a minibatch is split into to save memory; the result is the same."""
    rows_at_once: PositiveInt | None = None
    """Completions sampled, scored and marked at once, likewise; None: all of a round."""
    eval_every: NonNegativeInt = 20
    """Rounds between looks at the test examples, the first before any learning. 0: none."""

    def __post_init__(self) -> None:
        require_multiple(
            "prompts_per_step × group_size",
            self.prompts_per_step * self.group_size,
            "minibatches × micro_batches",
            self.minibatches * self.micro_batches,
        )

    def require_fit(self, section: str, sampling: SamplingConfig) -> None:
        """Raises ConfigError if its settings do not go with how completions are sampled.

        Args:
          section: what the config calls it, for the message.
        """

    @property
    def updates_per_step(self) -> int:
        """Optimizer updates that learn from the same rows."""
        return self.epochs * self.minibatches

    @property
    def attempts(self) -> int:
        """The most that a conversation has."""
        return 1

    @property
    def completions_per_step(self) -> int:
        """The most that a round has."""
        return self.prompts_per_step * self.group_size * self.attempts

    @property
    def rows_per_step(self) -> int:
        """The most that a round learns from, but for rows that are seldom: for `t2g plan`."""
        return self.prompts_per_step * self.group_size

    @property
    def critiques_per_step(self) -> int:
        """Questions to the judge in a round, if every attempt is wrong. 0: it asks none."""
        return self.prompts_per_step * self.group_size * (self.attempts - 1)

    @property
    def needs_reward_model(self) -> bool:
        """Whether it starts from a reward model, so that `t2g run` trains one."""
        return False

    @property
    def learns_critiques(self) -> bool:
        """Whether critiques are among what it learns to write."""
        return False

    @property
    def keeps_right(self) -> bool:
        """Whether it chooses completions for being right, so that the task must say which are."""
        return False

    @property
    def marks_spans(self) -> bool:
        """Whether spans of its completions are marked: the report then shows what the judge marks
        beside it."""
        return self.needs_reward_model

    @property
    def heads(self) -> tuple[str, ...]:
        """The heads that it trains besides the policy."""
        return ()

    @property
    def measures(self) -> frozenset[str]:
        """Metrics of a step that say how well it went: what a checkpoint may be the best by.

        Some of them not at each step, as those of second attempts. Times, and what is the same at
        each step, are not among them.
        """
        measured = {
            *("test_accuracy", "test_reward", "accuracy", "reward", "formatted"),
            *("loss", "grad_norm", "rows"),
            *("completion_tokens", "completion_tokens_max", "cut_off", "broken_completions"),
            "tokens_trained",
        }
        return frozenset(measured | ({"equal_groups"} if self.group_size > 1 else set()))


IN_REWARD: tuple[Divergence, ...] = ("k1", "full")
"""Charged as a reward these pull back to the reference; the place of the others is the loss."""


def charged(
    kl: Divergence | None, kl_in: Place | None, by_default: Place
) -> tuple[Divergence, Place]:
    """`kl` and `kl_in`, each filled in from the other where it is None, or both by default."""
    if kl_in is None:
        kl_in = by_default if kl is None else "reward" if kl in IN_REWARD else "loss"
    return kl or ("k1" if kl_in == "reward" else "k3"), kl_in


@dataclasses.dataclass(frozen=True)
class PolicyConfig(RolloutConfig):
    """What policy-gradient methods share: the surrogate loss, and a price for moving away."""

    surrogate: Literal["ppo", "gspo", "cispo", "reinforce"] = "ppo"
    """Clip each token's ratio (ppo), the sequence's (gspo), the weight (cispo); or no ratio."""
    epsilon_low: Fraction = 0.2
    """The probability ratio is clipped below at 1 − epsilon_low (gspo's authors: 3e-4)."""
    epsilon_high: NonNegativeFloat = 0.2
    """The ratio is clipped above at 1 + epsilon_high (DAPO: 0.28; gspo's authors: 4e-4)."""
    reduction: Counted = "token_mean"
    """What counts the same: each token (DAPO), each sequence (GRPO), or its sum (Dr. GRPO)."""
    kl: Divergence | None = None
    """Divergence from the SFT policy: rewards take k1, full, the loss k2, k3, abs. None: k1, k3."""
    kl_in: Place | None = None
    """Where it is charged. None: where `kl` belongs; else in the loss (ppo, text2grad: reward)."""
    kl_coefficient: NonNegativeFloat = 0.0
    """What one nat of divergence costs; where the adaptive controller starts. 0: no reference."""
    log_kl: bool = False
    """Measure the divergence also where it costs nothing: one more model is kept and run."""
    adaptive_kl_target_per_sequence: PositiveFloat | None = None
    """Nats a completion that an adaptive controller steers to (TRL: 6). None: no controller."""
    adaptive_kl_horizon: PositiveInt = 10_000
    """Completions in which a divergence that is 20 % off moves the coefficient by 20 %."""

    def __post_init__(self) -> None:
        super().__post_init__()
        kl, kl_in = self.divergence
        require(
            kl in IN_REWARD or kl_in == "loss",
            f"kl ({kl}) cannot be a reward: k2, k3 and abs do not pull back to the "
            "reference then; use k1 or full, or kl_in: loss",
        )
        require(
            kl not in IN_REWARD or kl_in == "reward",
            f"kl ({kl}) cannot be a term of the loss: k1 has no gradient on average, "
            "full would run the reference in every update; use k2, k3 or abs, or kl_in: reward",
        )
        require(
            self.kl_in != "loss" or self.kl_coefficient > 0,
            "kl_in: loss needs a kl_coefficient above 0: the term has no weight otherwise",
        )
        adaptive = self.adaptive_kl_target_per_sequence is not None
        require(
            not adaptive or self.kl_coefficient > 0,
            "adaptive_kl_target_per_sequence needs a kl_coefficient above 0 to start from",
        )
        require(
            adaptive or self.adaptive_kl_horizon == type(self).adaptive_kl_horizon,
            f"adaptive_kl_horizon ({self.adaptive_kl_horizon}) has no effect without "
            "adaptive_kl_target_per_sequence",
        )
        require(
            not adaptive or self.completions_per_step < 5 * self.adaptive_kl_horizon,
            f"adaptive_kl_horizon ({self.adaptive_kl_horizon}) must be more than a fifth of the "
            f"completions of a round ({self.completions_per_step}), or the coefficient could "
            "become negative",
        )
        default = type(self)
        require(
            self.clips
            or (self.epsilon_low, self.epsilon_high) == (default.epsilon_low, default.epsilon_high),
            "epsilon_low and epsilon_high have no effect with surrogate: reinforce, which clips "
            "nothing; leave them out, or choose another surrogate",
        )

    @property
    def default_kl_in(self) -> Place:
        """Where the divergence is charged if neither `kl` nor `kl_in` says so."""
        return "loss"

    @property
    def divergence(self) -> tuple[Divergence, Place]:
        """Which divergence from the reference is charged, and where."""
        return charged(self.kl, self.kl_in, self.default_kl_in)

    @property
    def charges_rewards(self) -> bool:
        """Whether the divergence is taken off the rewards."""
        return self.kl_coefficient > 0 and self.divergence[1] == "reward"

    @property
    def has_kl_term(self) -> bool:
        """Whether the loss has a term for the divergence."""
        return self.kl_coefficient > 0 and self.divergence[1] == "loss"

    @property
    def reads_reference(self) -> bool:
        """Whether a reference is kept and run, as somebody asks how far the policy is from it."""
        return self.kl_coefficient > 0 or self.log_kl

    @property
    def measures(self) -> frozenset[str]:
        return super().measures | {
            *("policy_loss", "kl_sampler_trainer", "entropy", "clip_fraction"),
            *("ratio", "ratio_min", "ratio_max", "log_ratio", "log_ratio_min", "log_ratio_max"),
            *(("kl", "kl_per_sequence") if self.reads_reference else ()),
            *(("kl_loss",) if self.has_kl_term else ()),
        }

    @property
    def clips(self) -> bool:
        """Whether any part of the loss clips a ratio."""
        return self.surrogate != "reinforce"


@dataclasses.dataclass(frozen=True)
class PPOConfig(PolicyConfig):
    """PPO with a value head; the task's reward comes at the last token."""

    group_size: PositiveInt = 4
    """Completions for each prompt."""
    minibatches: PositiveInt = 4
    """Optimizer steps that one pass over a round's rows is split into."""
    epochs: PositiveInt = 2
    """Passes over a round's rows (PPO epochs)."""
    kl_coefficient: NonNegativeFloat = 0.05
    """What one nat of divergence costs; where the adaptive controller starts. 0: no reference."""
    gamma: Fraction = 1.0
    """Discount from token to token."""
    gae_lambda: Fraction = 0.95
    """Trace decay of the advantage estimate."""
    value_coefficient: NonNegativeFloat = 0.1
    """Weight of the value loss."""
    value_clip: PositiveFloat = 0.2
    """A new value may leave the old one by this much."""
    whiten: bool = True
    """Scale advantages to mean 0 and variance 1 over a round."""

    @property
    def heads(self) -> tuple[str, ...]:
        return ("value_head",)

    @property
    def default_kl_in(self) -> Place:
        return "reward"

    @property
    def measures(self) -> frozenset[str]:
        return super().measures | ({"value_loss", "value_clip_fraction"} if self.heads else set())


@dataclasses.dataclass(frozen=True)
class Text2GradConfig(PPOConfig):
    """Text2Grad (arXiv 2505.22338): PPO on span rewards that come from critiques."""

    baseline: Literal["value", "group", "batch"] = "batch"
    """Of a return: the round's mean, the rest of the group, or a value head (the paper)."""
    kl: Divergence | None = None
    """As in ppo. The paper's is `full`: each token costs 0 or more, which pays for ending early."""
    span_source: Literal["reward_model", "judge"] = "reward_model"
    """Who marks the spans during training: the trained reward model, or the judge itself."""
    reward: Literal["expected", "hard"] = "expected"
    """Of the reward model's classes: their mean, or the likeliest one's −1, 0 or +1 (the paper)."""
    reward_threshold: Fraction = 0.0
    """A hard reward is 0 where the likeliest class has a lower probability than this."""
    fade_after: NonNegativeInt | None = None
    """Span rewards fade after so many tokens from the first (the paper: 48). None: they do not."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.reward == "expected" or self.span_source == "reward_model",
            "reward: hard is about the reward model's classes, but span_source is judge; leave one "
            "of them out",
        )
        require(
            self.reward == "hard" or self.reward_threshold == 0,
            f"reward_threshold ({self.reward_threshold}) has no effect with reward: expected; "
            "leave it out, or set reward: hard",
        )
        for name in ("gae_lambda", "value_coefficient", "value_clip"):
            given, default = getattr(self, name), getattr(type(self), name)
            require(
                bool(self.heads) or given == default,
                f"{name} ({given}) has no effect with baseline: {self.baseline}, which has no "
                "value head; leave it out, or set baseline: value",
            )
        require(
            self.baseline != "group" or self.group_size >= 2,
            "baseline: group needs a group_size of at least 2: others to compare with",
        )
        require(
            self.baseline != "batch" or self.whiten,
            "baseline: batch needs whiten: true, which takes the round's mean off",
        )

    def require_fit(self, section: str, sampling: SamplingConfig) -> None:
        require(
            (self.fade_after or 0) < sampling.max_new_tokens,
            f"{section}.fade_after ({self.fade_after}) must be less than "
            f"sampling.max_new_tokens ({sampling.max_new_tokens}): no token comes after it",
        )

    @property
    def heads(self) -> tuple[str, ...]:
        return super().heads if self.baseline == "value" else ()

    @property
    def critiques_per_step(self) -> int:
        return self.completions_per_step if self.span_source == "judge" else 0

    @property
    def needs_reward_model(self) -> bool:
        return self.span_source == "reward_model"

    @property
    def marks_spans(self) -> bool:
        return True

    @property
    def measures(self) -> frozenset[str]:
        asked = {"judge_calls", "judge_failures"}  # the judge, also of completions in the report
        return super().measures | asked | {"span_reward", "unaligned_quotes", "no_room"}


@dataclasses.dataclass(frozen=True)
class GroupConfig(PolicyConfig):
    """What the methods share whose advantage is a comparison with the group."""

    advantage: Compared = "centered"
    """Reward minus the group's mean; divided by its deviation (GRPO); minus the others' (RLOO)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.group_size >= 2, "group_size must be at least 2: a group of one teaches nothing"
        )


@dataclasses.dataclass(frozen=True)
class GRPOConfig(GroupConfig):
    """GRPO, the baseline that sees only the reward; with its settings Dr. GRPO, RLOO, DAPO, …"""

    resample_rounds: NonNegativeInt = 0
    """Rounds of other prompts in place of groups whose rewards are all equal (DAPO). 0: keep."""
    overlong_tokens: NonNegativeInt = 0
    """Reward falls by up to 1 over the last so many tokens before the limit (DAPO). 0: never."""

    def require_fit(self, section: str, sampling: SamplingConfig) -> None:
        require(
            self.overlong_tokens <= sampling.max_new_tokens,
            f"{section}.overlong_tokens ({self.overlong_tokens}) must not exceed "
            f"sampling.max_new_tokens ({sampling.max_new_tokens}): it counts the last of them",
        )

    @property
    def measures(self) -> frozenset[str]:
        return super().measures | ({"groups_kept"} if self.resample_rounds else set())


def measured_of_turns(turns: int) -> set[str]:
    """What methods measure that may try again after feedback, of so many attempts at most."""
    again = {
        f"{name}_turn_{turn}" for name in ("accuracy", "reward") for turn in range(2, turns + 1)
    }
    return again | {"judge_failures", "no_room"} | ({"judge_calls"} if again else set())


@dataclasses.dataclass(frozen=True)
class EpisodeConfig(GroupConfig):
    """What the methods share that try again after feedback."""

    gamma: Fraction = 0.1
    """Discount from turn to turn."""
    turns: typing.Annotated[int, annotated_types.Interval(ge=2, le=MOST_TURNS)] = 2
    """Attempts a conversation may have; a correct one ends it."""

    @property
    def attempts(self) -> int:
        return self.turns

    @property
    def measures(self) -> frozenset[str]:
        return super().measures | measured_of_turns(self.turns)


@dataclasses.dataclass(frozen=True)
class GRPOMultiTurnConfig(EpisodeConfig):
    """GRPO over conversations: the baseline that learns to use feedback, and to depend on it."""


@dataclasses.dataclass(frozen=True)
class RLTFSDConfig(EpisodeConfig):
    """RLTF-SD (arXiv 2602.02482): learn to say at once what feedback led to."""

    distill_coefficient: NonNegativeFloat = 0.1
    """Weight of the rows that teach the first prompt the repaired answer."""
    distill_schedule: Literal["constant", "linear"] = "constant"
    """Whether that weight is there from the start, or grows from 0 to it by the last round."""
    correction: Literal["none", "importance", "sequence_importance", "ppo", "cispo"] = "none"
    """How those rows allow for having been sampled after feedback."""
    logprob_floor: Float | None = -5.0
    """Tokens less probable than this (log, given the first prompt) are left out. None: none."""
    baseline: Literal["first_turn", "second_turn"] = "first_turn"
    """What a repaired answer is compared with: mean reward of the first turn, or of its own."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.distill_schedule == "constant" or self.distill_coefficient > 0,
            "distill_schedule: linear needs a distill_coefficient above 0 to grow to",
        )

    @property
    def clips(self) -> bool:
        return super().clips or self.correction in ("ppo", "cispo")

    @property
    def rows_per_step(self) -> int:
        return 2 * super().rows_per_step  # from a second attempt twice

    @property
    def measures(self) -> frozenset[str]:
        return super().measures | {
            *("distill_loss", "distill_logprob", "distilled"),
            *(("distill_dropped",) if self.logprob_floor is not None else ()),
            *(("distill_clip_fraction",) if self.correction in ("ppo", "cispo") else ()),
        }


@dataclasses.dataclass(frozen=True)
class RLTFFMConfig(EpisodeConfig):
    """RLTF-FM (arXiv 2602.02482): learn to predict the feedback."""

    feedback_coefficient: NonNegativeFloat = 0.1
    """Weight of a critique's token, its negative log-likelihood, beside one of the policy's."""
    critique_correct: bool = False
    """Ask the judge about right attempts too, and learn what it says; else of wrong ones only."""

    @property
    def learns_critiques(self) -> bool:
        return True

    @property
    def rows_per_step(self) -> int:
        return 2 * super().rows_per_step  # also from a critique of each first attempt

    @property
    def measures(self) -> frozenset[str]:
        return super().measures | {"nll", "nll_loss", "critiques_learned"}


@dataclasses.dataclass(frozen=True)
class RejectionSamplingConfig(RolloutConfig):
    """Supervised learning on the policy's own right answers, as answers to the first prompt."""

    turns: typing.Annotated[int, annotated_types.Interval(ge=1, le=MOST_TURNS)] = 2
    """Attempts a conversation may have: 1, or more with feedback between them."""
    least_reward: Float | None = None
    """Answers are learned from that earn so much. None: those that are right."""

    @property
    def attempts(self) -> int:
        return self.turns

    @property
    def keeps_right(self) -> bool:
        return self.least_reward is None

    @property
    def measures(self) -> frozenset[str]:
        return super().measures | measured_of_turns(self.turns) | {"nll", "nll_loss", "accepted"}


@dataclasses.dataclass(frozen=True)
class MethodSections(Section):
    """The section of each of our methods; its name is the method's, with `_` for `-`."""

    text2grad: Text2GradConfig = Text2GradConfig()
    ppo: PPOConfig = PPOConfig()
    rltf_sd: RLTFSDConfig = RLTFSDConfig()
    rltf_fm: RLTFFMConfig = RLTFFMConfig()
    grpo: GRPOConfig = GRPOConfig()
    grpo_multiturn: GRPOMultiTurnConfig = GRPOMultiTurnConfig()
    rejection_sampling: RejectionSamplingConfig = RejectionSamplingConfig()


METHODS = tuple(outside.known_methods(MethodSections, RolloutConfig))
"""Ours, by name; those that a run knows are `Config.known_methods`."""
