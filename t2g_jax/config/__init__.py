"""One run, described by frozen dataclasses: read from YAML, changed from the command line.

    config = load_config("configs/quickstart.yaml", ["--grpo.group_size", "4"])

A run is one YAML file. What the file leaves out keeps the default written in `sections` and
`methods`. pydantic checks file and overrides against their classes, so these are also the list of
options: `t2g run CONFIG --help` prints it.
"""

import dataclasses
import os
import re
import typing
from collections.abc import Collection, Mapping, Sequence

from t2g_jax import user_code
from t2g_jax.config import base, methods, outside
from t2g_jax.config.base import ConfigError, Section, Settings, config_hash, require, to_yaml
from t2g_jax.config.methods import *  # noqa: F403, what its __all__ names
from t2g_jax.config.methods import METHODS, MethodSections, RolloutConfig
from t2g_jax.config.numbers import NonNegativeInt, PositiveInt, Seed, Tokens
from t2g_jax.config.outside import WithMethods, section_of
from t2g_jax.config.overrides import override, print_options
from t2g_jax.config.sections import (
    DATA,
    PUZZLES,
    SHAPE,
    AnnotateConfig,
    CheckpointConfig,
    EvaluateConfig,
    JudgeConfig,
    Labels,
    LoRAConfig,
    MeshConfig,
    ModelConfig,
    OptimizerConfig,
    RewardModelConfig,
    SamplingConfig,
    SFTConfig,
    TaskConfig,
    TemplateOptions,
    TokenizerConfig,
    TrackingConfig,
    TrainingConfig,
)

__all__ = [
    "ASIDE",
    "DATA",
    "JUDGE_LIMITS",
    "PUZZLES",
    "SHAPE",
    "AnnotateConfig",
    "CheckpointConfig",
    "Config",
    "ConfigError",
    "EvaluateConfig",
    "JudgeConfig",
    "Labels",
    "LoRAConfig",
    "MeshConfig",
    "ModelConfig",
    "NonNegativeInt",
    "OptimizerConfig",
    "PositiveInt",
    "RewardModelConfig",
    "SFTConfig",
    "SamplingConfig",
    "Section",
    "Seed",
    "Settings",
    "TaskConfig",
    "TemplateOptions",
    "TokenizerConfig",
    "Tokens",
    "TrackingConfig",
    "TrainingConfig",
    "changes",
    "config_class",
    "config_hash",
    "diff",
    "installed_methods",
    "is_aside",
    "is_one_of",
    "knowing_those_of",
    "learned_changes",
    "load_config",
    "print_options",
    "require_measured",
    "section_of",
    "to_yaml",
]
__all__ += methods.__all__


def load_config(
    path: str | os.PathLike[str], overrides: Sequence[str] = (), *, methods: Collection[str] = ()
) -> "Config":
    """Reads one YAML file, applies `--a.b value` overrides, and checks the result.

    Methods from outside that the file or the overrides speak of have a section in it.

    Args:
      path: the file. A file without `name` is named after itself.
      overrides: words of a command line, e.g. `["--sft.steps", "20", "--grpo.optimizer.b2=0.99"]`.
      methods: other methods of installed packages that are to have one.

    Raises:
      ConfigError: the file is missing or not YAML, or a key is unknown, of the wrong type, out of
        range or at odds with another; the message names file, key, and the nearest known name.
      T2GError: a method from outside cannot be loaded.
    """
    folder = os.path.dirname(os.path.abspath(path))
    user_code.look_in(folder)
    stem, ending = os.path.splitext(os.path.basename(path))
    name = re.sub(r"[^A-Za-z0-9]+", "-", stem).strip("-") or "run"
    values = base.read_yaml(path)
    kind = config_class(
        values,
        overrides,
        methods,
        folder=folder if stem + ending == "config.yaml" else None,
        source=str(path),
    )
    return override(base.changed(kind(name=name), values, source=path), overrides)


def config_class(
    values: Mapping[str, typing.Any],
    overrides: Sequence[str] = (),
    methods: Collection[str] = (),
    *,
    folder: str | None = None,
    source: str,
) -> type["Config"]:
    """`Config`, with sections of the methods from outside that are spoken of: see `load_config`.

    Args:
      values: of a file.
      folder: of the run whose config the file is, if it is one's.
    """
    return outside.class_of_run(
        Config,
        values,
        overrides,
        of_method=RolloutConfig,
        more=methods,
        folder=folder,
        source=source,
    )


def installed_methods() -> tuple[list[str], list[str]]:
    """Methods that installed packages bring, and what is wrong with those that cannot be used."""
    return outside.installed(Config, RolloutConfig)


def knowing_those_of(config: "Config", other: "Config") -> "Config":
    """A config with sections, as by default, of the methods from outside that another knows."""
    return outside.alike(config, other)[0]


def diff(a: "Config", b: "Config") -> list[str]:
    """Dotted keys whose values differ, in the order of the fields."""
    return base.diff(*outside.alike(a, b))


def changes(old: "Config", new: "Config") -> list[str]:
    """What `diff` names, with the values: "sft.steps: 30 → 40"."""
    return base.changes(*outside.alike(old, new))


@dataclasses.dataclass(frozen=True)
class BeforeMethods(WithMethods):
    """What a config says of a run, and of what its methods begin with."""

    name: str
    """Name of the run; results go to runs/NAME unless --workdir says otherwise."""
    seed: Seed = 0
    """Seed of everything random except the puzzles."""
    methods: tuple[typing.Literal[METHODS], ...] = ("text2grad", "rltf-sd")  # type: ignore[valid-type]
    """What `t2g run` trains, one after the other, from the same SFT policy."""
    plugins: tuple[str, ...] = ()
    """Methods of your own, `package.module:Class`; those of installed packages need no mention."""
    task: TaskConfig = TaskConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()
    model: ModelConfig = ModelConfig()
    lora: LoRAConfig = LoRAConfig()
    mesh: MeshConfig = MeshConfig()
    sampling: SamplingConfig = SamplingConfig()
    judge: JudgeConfig = JudgeConfig()
    sft: SFTConfig = SFTConfig()
    annotate: AnnotateConfig = AnnotateConfig()
    reward_model: RewardModelConfig = RewardModelConfig()


@dataclasses.dataclass(frozen=True)
class Config(MethodSections, BeforeMethods):  # fields are in order from the last base to the first
    """One run."""

    evaluate: EvaluateConfig = EvaluateConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    training: TrainingConfig = TrainingConfig()
    tracking: TrackingConfig = TrackingConfig()

    @property
    def known_methods(self) -> tuple[str, ...]:
        """All that it has sections of: ours, and then those from outside."""
        return tuple(outside.known_methods(type(self), RolloutConfig))

    @property
    def needs_reward_model(self) -> bool:
        """Whether one of its methods starts from a reward model."""
        return any(self.of_method(method).needs_reward_model for method in self.methods)

    def of_method(self, method: str) -> RolloutConfig:
        """A method's section."""
        section: RolloutConfig = getattr(self, section_of(method))
        return section

    def including(self, method: str) -> "Config":
        """The same, with a method among `methods` that may not have been."""
        if method in self.methods:
            return self
        return dataclasses.replace(self, methods=(*self.methods, method))

    def __post_init__(self) -> None:
        require(
            re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", self.name) is not None,
            f"name ({self.name!r}) becomes a folder: use letters, digits, '.', '_' and '-'",
        )
        require(len(self.methods) > 0, "methods is empty: name at least one method")
        require(
            len(set(self.methods)) == len(self.methods), f"methods {self.methods} names one twice"
        )
        for name in self.plugins:
            require(
                user_code.is_name(name),
                f"plugins names {name!r}; must be 'package.module:Class', the class of a method",
            )
        require(
            len(set(self.plugins)) == len(self.plugins), f"plugins {self.plugins} names one twice"
        )
        require(
            self.sft.steps != 0 or self.model.pretrained is not None,
            "sft.steps is 0, but there is no model.pretrained to begin with",
        )
        require(
            self.lora.pretrained is None or self.model.pretrained is not None,
            f"lora.pretrained ({self.lora.pretrained}) are adapters of a model: set "
            "model.pretrained to it",
        )
        require(
            self.model.pretrained is None
            or dataclasses.replace(self.tokenizer, template_options={}) == TokenizerConfig(),
            f"model.pretrained ({self.model.pretrained}) brings its own tokenizer; leave "
            "tokenizer.vocabulary_size and tokenizer.texts out",
        )
        require(
            self.sampling.max_new_tokens < self.model.context_length,
            f"sampling.max_new_tokens ({self.sampling.max_new_tokens}) must be less than "
            f"model.context_length ({self.model.context_length}): the prompt needs room too",
        )
        read = self.reward_model
        require(
            not read.critique_conditioned or read.max_critique_tokens < self.model.context_length,
            f"reward_model.max_critique_tokens ({read.max_critique_tokens}) must be less than "
            f"model.context_length ({self.model.context_length}), as with critique_conditioned a "
            "completion is read after its critique: it needs room too",
        )
        known = self.known_methods
        for method in known:
            self.of_method(method).require_fit(section_of(method), self.sampling)
        require(
            self.sft.steps == 0
            or not self.task.is_puzzle
            or self.sft.examples <= self.task.train_size,
            f"sft.examples ({self.sft.examples}) must not exceed task.train_size "
            f"({self.task.train_size})",
        )
        require(
            self.evaluate.checkpoint == "last" or self.checkpoint.keep_best is not None,
            "evaluate.checkpoint is best, but no best checkpoint is kept: set checkpoint.keep_best",
        )
        keep_best = self.checkpoint.keep_best
        measured = frozenset().union(*(self.of_method(method).measures for method in known))
        require(
            keep_best is None or keep_best in measured,
            f"checkpoint.keep_best ({keep_best}) is measured by no method, as they are set; choose "
            f"one of {', '.join(sorted(measured))}",
        )
        require(
            not self.task.is_puzzle or self.annotate.prompts <= self.task.train_size,
            f"annotate.prompts ({self.annotate.prompts}) must not exceed task.train_size "
            f"({self.task.train_size})",
        )


def require_measured(config: Config, methods: Collection[str]) -> None:
    """Raises ConfigError unless each of these methods measures `checkpoint.keep_best`."""
    keep_best = config.checkpoint.keep_best
    measured = [config.of_method(method).measures for method in methods]
    for method, its in zip(methods, measured, strict=True):
        choice = ", ".join(sorted(frozenset.intersection(*measured)))
        require(
            keep_best is None or keep_best in its,
            f"checkpoint.keep_best ({keep_best}) is not measured by {method}; choose what all "
            f"methods to be trained measure: {choice}",
        )


# --- What does not change what is learned ----------------------------------------------------

JUDGE_LIMITS = tuple(
    f"judge.{limit}"
    for limit in ("timeout_seconds", "max_failures_in_a_row", "workers", "batch_size")
)
"""How a judge is asked, whatever it says."""
ASIDE = frozenset(
    {
        *("name", "methods", "task.test_size"),
        *JUDGE_LIMITS,
        *("evaluate", "checkpoint", "training", "tracking"),
    }
)
"""Fields and sections that change nothing of what any phase learns: how it is measured and watched,
and limits that end a run or not. They are no part of what a run is, so they may be changed at any
time. Whatever is not here is."""
ASIDE_OF_METHODS = ("rows_at_once", "eval_every", "log_kl")
"""Likewise, fields of a method's section."""


def is_aside(key: str) -> bool:
    """Whether a dotted key, or a section that it is in, is one of `ASIDE`."""
    section, _, field = key.partition(".")
    return is_one_of(key, ASIDE) or bool(section and field in ASIDE_OF_METHODS)


def is_one_of(key: str, names: Collection[str]) -> bool:
    """Whether a dotted key, or a section that it is in, is among names of fields and sections."""
    parts = key.split(".")
    return any(".".join(parts[:n]) in names for n in range(1, len(parts) + 1))


def learned_changes(old: Config, new: Config) -> list[str]:
    """As `changes`, without what is `ASIDE`."""
    return [change for change in changes(old, new) if not is_aside(change.partition(":")[0])]
