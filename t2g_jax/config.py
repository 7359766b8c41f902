"""One run, described by frozen dataclasses: read from YAML, changed from the command line.

    config = load_config("configs/quickstart.yaml", ["--grpo.group_size", "4"])

A run is one YAML file. What the file leaves out keeps the default written here. pydantic checks
file and overrides against these classes, so this page is also the list of options:
`t2g run CONFIG --help` prints it.
"""

import dataclasses
import os
import re
import typing
from collections.abc import Collection, Mapping, Sequence
from typing import Literal

import annotated_types
from pydantic import AfterValidator

from t2g_jax import outside_methods, plugins, sections, user_code
from t2g_jax.errors import nearest
from t2g_jax.outside_methods import WithMethods, section_of
from t2g_jax.overrides import override, print_options
from t2g_jax.sections import (
    ConfigError,
    Section,
    Settings,
    config_hash,
    require,
    require_multiple,
    to_yaml,
)

__all__ = [
    "ASIDE",
    "JUDGE_LIMITS",
    "METHODS",
    "Config",
    "ConfigError",
    "changes",
    "config_hash",
    "diff",
    "installed_methods",
    "is_aside",
    "is_one_of",
    "knowing_those_of",
    "learned_changes",
    "load_config",
    "print_options",
    "section_of",
    "to_yaml",
]

MOST = 2**31 - 1
"""Arrays count with 32 bits."""
PositiveInt = typing.Annotated[int, annotated_types.Interval(gt=0, le=MOST)]
NonNegativeInt = typing.Annotated[int, annotated_types.Interval(ge=0, le=MOST)]
MOST_TURNS = 64
"""Attempts of a conversation."""
Seed = typing.Annotated[int, annotated_types.Interval(ge=0, lt=2**64)]
"""Each is another run: nothing takes a part of it."""
Tokens = typing.Annotated[int, annotated_types.Interval(gt=0, lt=2**53)]
"""A count that floats hold exactly."""


def _from(low: float, high: float) -> AfterValidator:
    """Numbers that steps can compute with: in float32, 1e-46 would be 0, and 1e39 Inf."""

    def check(value: float) -> float:
        if value != 0 and not low <= abs(value) <= high:
            size = "small" if abs(value) < low else "large"
            raise ValueError(
                f"{value:g} is too {size} for float32: its size must be 0, or from {low:g} to "
                f"{high:g}"
            )
        return value

    return AfterValidator(check)


Float = typing.Annotated[float, _from(1e-37, 1e38)]
Scale = typing.Annotated[float, annotated_types.Gt(0.0), _from(1e-18, 1e18)]
"""A factor of what may be as small or large, too."""
PositiveFloat = typing.Annotated[Float, annotated_types.Gt(0.0)]
NonNegativeFloat = typing.Annotated[Float, annotated_types.Ge(0.0)]
Fraction = typing.Annotated[Float, annotated_types.Interval(ge=0.0, le=1.0)]
Temperature = typing.Annotated[float, annotated_types.Interval(ge=1e-3, le=1e3)]
Decay = typing.Annotated[float, annotated_types.Interval(ge=0.0, le=1.0 - 1e-6)]
PUZZLES = ("binary_matrix", "knights_knaves", "shortest_path")
DATA = "data"
"""Names of tasks; any other is of a function of the user's, or of an installed package."""
JUDGES = ("task", "policy")
"""Names of judges, likewise."""
Method = Literal[
    "text2grad", "ppo", "rltf-sd", "rltf-fm", "grpo", "grpo-multiturn", "rejection-sampling"
]
METHODS: tuple[Method, ...] = typing.get_args(Method)
"""Ours; those that a run knows are `Config.known_methods`."""
TemplateOptions = dict[str, bool | int | float | str]
Labels = Literal["sign", "severity"]
Divergence = Literal["k1", "k2", "k3", "abs", "full"]
Place = Literal["reward", "loss"]
Counted = Literal["token_mean", "sequence_mean_token_mean", "sequence_mean_token_sum"]


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
    values = sections.read_yaml(path)
    kind = config_class(
        values,
        overrides,
        methods,
        folder=folder if stem + ending == "config.yaml" else None,
        source=str(path),
    )
    return override(sections.changed(kind(name=name), values, source=path), overrides)


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
    return outside_methods.class_of_run(
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
    return outside_methods.installed(Config, RolloutConfig)


def knowing_those_of(config: "Config", other: "Config") -> "Config":
    """A config with sections, as by default, of the methods from outside that another knows."""
    return outside_methods.alike(config, other)[0]


def diff(a: "Config", b: "Config") -> list[str]:
    """Dotted keys whose values differ, in the order of the fields."""
    return sections.diff(*outside_methods.alike(a, b))


def changes(old: "Config", new: "Config") -> list[str]:
    """What `diff` names, with the values: "sft.steps: 30 → 40"."""
    return sections.changes(*outside_methods.alike(old, new))


# --- What is learned, and by which network ---------------------------------------------------


@dataclasses.dataclass(frozen=True)
class TaskConfig(Section):
    """A puzzle, its difficulty, and how many there are; or a task of your own."""

    name: str = "binary_matrix"
    """A puzzle; `data`, rows of your own; `package.module:function`, a task; or one of a plugin."""
    preset: Literal["paper", "tiny"] = "tiny"
    """Of a puzzle: the RLTF paper's difficulty, or one that a small model learns in minutes."""
    settings: Settings = dataclasses.field(default_factory=dict)
    """What it takes; of a puzzle, in place of the preset's: `--task.settings.max_n 4` and so on."""
    prompt_style: Literal["full", "short"] = "short"
    """Of a puzzle: the paper's full instructions, or a few words for a model that reads few."""
    seed: Seed = 0
    """Seed of the puzzles. Examples with the same seed and settings are always the same."""
    train_size: PositiveInt = 19800
    """Puzzles to train on."""
    test_size: PositiveInt = 200
    """Puzzles to evaluate on; they follow the training examples and are never trained on."""

    @property
    def is_puzzle(self) -> bool:
        """Whether it is one of the puzzles, of which there are as many as one likes."""
        return self.name in PUZZLES

    def __post_init__(self) -> None:
        if self.is_puzzle:
            for name, value in self.settings.items():
                require(
                    isinstance(value, int | float) and not isinstance(value, bool),
                    f"settings.{name} is {value!r}; must be a number: it is of a puzzle",
                )
            return
        brought = () if self.name == DATA else plugins.names(plugins.TASKS)
        also = f"{', '.join(brought)} of installed packages, " if brought else ""
        require(
            self.name in (DATA, *brought) or user_code.is_name(self.name),
            f"name is {self.name!r}; must be one of {', '.join(PUZZLES)}, {DATA!r} for rows of "
            f"your own, {also}or 'package.module:function' for your own task"
            f"{nearest(self.name, (*PUZZLES, DATA, *brought))}",
        )
        of_puzzles = ("preset", "prompt_style", "seed", "train_size", "test_size")
        fields = {field.name: field.default for field in dataclasses.fields(self)}
        given = [name for name in of_puzzles if getattr(self, name) != fields[name]]
        require(
            not given,
            f"{', '.join(given)} of the puzzles; leave it out: what the task {self.name} takes is "
            "in task.settings",
        )


@dataclasses.dataclass(frozen=True)
class TokenizerConfig(Section):
    """The byte-level BPE tokenizer that a small model learns from the task's own texts.

    A pretrained model brings its own; of this section only `template_options` is for it.
    """

    vocabulary_size: PositiveInt = 512
    """Tokens in the vocabulary, special tokens included."""
    texts: PositiveInt = 2000
    """Prompts and demonstrations that the tokenizer is trained on."""
    template_options: TemplateOptions = dataclasses.field(default_factory=dict)
    """Variables of the chat template, e.g. `{enable_thinking: false}` for Qwen3."""

    def __post_init__(self) -> None:
        require(
            self.vocabulary_size >= 300,
            f"vocabulary_size ({self.vocabulary_size}) must be at least 300: 256 bytes and the "
            "special tokens come first",
        )


@dataclasses.dataclass(frozen=True)
class ModelConfig(Section):
    """A pretrained model, or a small decoder to train from nothing."""

    pretrained: str | None = None
    """Folder or hub id of a Hugging Face model with its tokenizer. None: begin with nothing."""
    layers: PositiveInt = 4
    """Transformer blocks."""
    width: PositiveInt = 128
    """Size of the residual stream."""
    heads: PositiveInt = 4
    """Query heads."""
    kv_heads: PositiveInt = 2
    """Key and value heads; divides `heads`."""
    head_width: PositiveInt | None = None
    """Size of one head. None: width / heads."""
    mlp_width: PositiveInt = 384
    """Hidden size of the feed-forward layer."""
    rope_theta: typing.Annotated[Float, annotated_types.Gt(1.0)] = 10000.0
    """Base of the rotary position frequencies, above 1: the first pair turns fastest."""
    context_length: PositiveInt = 512
    """Longest prompt plus completion, in tokens."""
    tie_embeddings: bool = True
    """Use the embedding matrix as the output layer too."""
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of activations and matrix products. Losses are float32 either way."""
    param_dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of parameters; for bfloat16 see optimizer.rounding too."""
    remat: Literal["none", "products", "full"] = "products"
    """What the backward pass finds: all activations, matrix products, or layer inputs (least)."""
    attention: Literal["auto", "xla", "cudnn", "splash"] = "auto"
    """Kernel: cuDNN's on GPUs, splash on TPUs, or XLA's own, which holds all scores in memory."""

    def __post_init__(self) -> None:
        if self.pretrained is not None:
            given = [name for name in SHAPE if getattr(self, name) != SHAPE[name]]
            require(
                not given,
                f"pretrained ({self.pretrained}) brings its own {', '.join(given)}; leave them out",
            )
        require(
            self.heads % self.kv_heads == 0,
            f"heads ({self.heads}) must be a multiple of kv_heads ({self.kv_heads})",
        )
        require(
            self.head_width is not None or self.width % self.heads == 0,
            f"width ({self.width}) must be a multiple of heads ({self.heads}); or set head_width",
        )
        head_width = self.head_width or self.width // self.heads
        require(
            head_width % 2 == 0,
            f"the head width ({head_width}) must be even: rotary positions turn pairs of channels",
        )


_NOT_SHAPE = {"pretrained", "context_length", "compute_dtype", "param_dtype", "remat", "attention"}
SHAPE = {
    field.name: field.default
    for field in dataclasses.fields(ModelConfig)
    if field.name not in _NOT_SHAPE
}
"""What a pretrained model brings, and the defaults of one that is trained from nothing."""


@dataclasses.dataclass(frozen=True)
class LoRAConfig(Section):
    """Low-rank adapters (arXiv 2106.09685) for the reward model and all methods; sft has none.

    Only adapters and heads are trained and saved. Learning rates are best about ten times those of
    full fine-tuning.
    """

    rank: NonNegativeInt = 0
    """Rank of the adapters of every linear layer. 0: full fine-tuning."""
    alpha: Scale = 32.0
    """Adapters count alpha / rank."""
    pretrained: str | None = None
    """Folder of adapters to begin with, in peft's format; the reference is without. None: fresh."""

    def __post_init__(self) -> None:
        require(
            self.pretrained is None or self.rank > 0,
            f"pretrained is {self.pretrained}, but rank is 0; set rank to that of the adapters",
        )


@dataclasses.dataclass(frozen=True)
class MeshConfig(Section):
    """How devices are arranged: the product of the four. One may be -1: what the others leave."""

    data: int = -1
    """Ways to split the batch. Of several TPU slices each takes a part of this axis alone."""
    fsdp: int = 1
    """Ways to split parameters and optimizer state, and the batch with them."""
    context: int = 1
    """Ways to split rows of tokens, and parameters with them: for rows too long for one device."""
    tensor: int = 1
    """Ways to split heads and feed-forward channels."""

    def __post_init__(self) -> None:
        axes = (self.data, self.fsdp, self.context, self.tensor)
        named = f"data, fsdp, context and tensor are {axes}"
        require(
            all(size == -1 or size >= 1 for size in axes),
            f"{named}: each must be a positive number of devices, or -1",
        )
        require(axes.count(-1) <= 1, f"{named}: only one may be -1")


@dataclasses.dataclass(frozen=True)
class OptimizerConfig(Section):
    """Optimizer, learning-rate schedule and gradient clipping."""

    name: Literal["adamw", "adafactor"] = "adamw"
    """Adafactor keeps factored second moments: much less memory, b1 and b2 are not used."""
    learning_rate: NonNegativeFloat = 3e-4
    """Peak learning rate."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """What follows the warm-up: stay, or fall towards zero, which comes after the last step."""
    warmup_steps: NonNegativeInt = 0
    """Optimizer steps of linear warm-up from zero."""
    b1: Decay = 0.9
    """Decay of Adam's first moment; below 1, or it would never move."""
    b2: Decay = 0.95
    """Decay of Adam's second moment; below 1, likewise."""
    eps: typing.Annotated[float, annotated_types.Interval(ge=1e-16, le=1.0)] = 1e-8
    """Adam's epsilon."""
    weight_decay: NonNegativeFloat = 0.0
    """Decoupled weight decay, on matrices only."""
    clip_norm: typing.Annotated[Float, annotated_types.Ge(1e-12)] = 1.0
    """Largest global gradient norm."""
    moment_dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of AdamW's first moment; the second is float32. Adafactor has no first moment."""
    rounding: Literal["float32_copy", "stochastic"] = "float32_copy"
    """With model.param_dtype bfloat16: keep a float32 copy of parameters, or round at random."""


# --- How completions are drawn and judged ----------------------------------------------------


@dataclasses.dataclass(frozen=True)
class SamplingConfig(Section):
    """How completions are drawn from the policy. Old log-probabilities follow these settings."""

    temperature: Temperature = 1.0
    """Logits are divided by this."""
    top_k: NonNegativeInt = 0
    """Keep the k most probable tokens. 0: all."""
    top_p: typing.Annotated[float, annotated_types.Interval(gt=0.0, le=1.0)] = 1.0
    """Keep the fewest tokens whose probability reaches this. 1: all."""
    max_new_tokens: PositiveInt = 64
    """Longest completion, in tokens."""


@dataclasses.dataclass(frozen=True)
class JudgeConfig(Section):
    """The critic that reads completions and says, in words, what is wrong with them."""

    level: Literal["correctness", "what", "where"] = "where"
    """How much it says: right or wrong; what is wrong; or what and where, with quotes."""
    name: str = "task"
    """The task's program; `policy`, a model; `module:factory`, or a plugin's: docs/judges.md."""
    settings: Settings = dataclasses.field(default_factory=dict)
    """What the judge is made with, by name; here `--judge.settings.model FOLDER`, and so on."""
    timeout_seconds: typing.Annotated[Float, annotated_types.Interval(gt=0.0, le=1e6)] = 60.0
    """Longest that one call may take, for a critique or a batch of them; then it has failed."""
    max_failures_in_a_row: PositiveInt = 50
    """The run ends with this failed call: a judge that is down must not go unnoticed."""
    workers: typing.Annotated[int, annotated_types.Interval(gt=0, le=1024)] = 1
    """Calls at the same time; more than one needs a judge that is thread-safe."""
    batch_size: typing.Annotated[int, annotated_types.Interval(gt=0, le=65536)] = 16
    """Completions in one call of a judge that has `critique_batch`; others get one at a time."""

    def __post_init__(self) -> None:
        brought = () if self.name in JUDGES else plugins.names(plugins.JUDGES)
        also = f"{', '.join(brought)} of installed packages, " if brought else ""
        require(
            self.name in (*JUDGES, *brought) or user_code.is_name(self.name),
            f"name is {self.name!r}; must be 'task', 'policy', {also}or 'package.module:factory' "
            f"for your own{nearest(self.name, (*JUDGES, *brought))}",
        )
        require(
            self.name != "task" or not self.settings,
            f"settings ({', '.join(self.settings)}) are for a judge of your own, or for name: "
            "policy; the task's own program has none",
        )

    @property
    def pretrained(self) -> str | None:
        """Folder or hub id of the model that critiques, if it is one on this machine."""
        model = self.settings.get("model") if self.name == "policy" else None
        return model if isinstance(model, str) else None  # else it is refused, see `judges.policy`


# --- The phases, in the order they run -------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class SFTConfig(Section):
    """Supervised start: a careless solver's demonstrations teach the format and some skill."""

    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=1e-3, schedule="cosine")
    examples: PositiveInt = 4000
    """Training examples that are demonstrated, the first ones; later phases use all there are."""
    steps: NonNegativeInt = 400
    """Optimizer steps. 0: the pretrained model is the warm start as it is."""
    batch_size: PositiveInt = 64
    """Rows a step."""
    micro_batches: PositiveInt = 1
    """Parts that a batch is split into to save memory; the result is the same."""
    repair_fraction: Fraction = 0.5
    """Share of rows that show a second attempt after feedback on the first."""
    critique_fraction: Fraction = 0.0
    """Share of rows that show a critique as the answer to a request for one (rltf-fm)."""
    critiques: Literal["task", "judge"] = "task"
    """Whose critiques those rows show: the task's own program's, or the judge's, asked for each."""

    def __post_init__(self) -> None:
        require_multiple("batch_size", self.batch_size, "micro_batches", self.micro_batches)


@dataclasses.dataclass(frozen=True)
class AnnotateConfig(Section):
    """Completions of the SFT policy, critiqued by the judge: the reward model's data."""

    prompts: PositiveInt = 1000
    """Training prompts that are answered and judged."""
    samples_per_prompt: PositiveInt = 2
    """Completions for each prompt."""
    temperatures: tuple[Temperature, ...] = (1.0,)
    """Factors on sampling.temperature, in turn for a prompt's samples; above 1: rarer errors."""
    batch_size: PositiveInt = 100
    """Prompts sampled at once."""
    held_out: typing.Annotated[float, annotated_types.Interval(gt=0.0, lt=1.0)] = 0.1
    """Share of the prompts kept apart to measure the reward model."""


@dataclasses.dataclass(frozen=True)
class RewardModelConfig(Section):
    """The span-reward model: reads a completion, marks each token good, neutral or poor."""

    pretrained: str | None = None
    """Folder or hub id of a model to start from, with its own tokenizer. None: the warm start."""
    template_options: TemplateOptions = dataclasses.field(default_factory=dict)
    """Variables of that model's chat template, as `tokenizer.template_options` of the policy's."""
    optimizer: OptimizerConfig = OptimizerConfig(schedule="cosine")
    epochs: PositiveInt = 3
    """Passes over the annotated completions."""
    batch_size: PositiveInt = 32
    """Rows a step."""
    micro_batches: PositiveInt = 1
    """Parts that a batch is split into to save memory; the result is the same."""
    critique_weight: NonNegativeFloat = 1.0
    """Weight of the critique's negative log-likelihood in the loss."""
    span_weight: NonNegativeFloat = 1.0
    """Weight of the span labels' cross-entropy in the loss."""
    class_weights: tuple[Scale, Scale, Scale] = (1.0, 1.0, 1.0)
    """Weights of the classes poor, neutral, good in the loss; divided out of probabilities."""
    labels: Labels = "sign"
    """What is learned of a quote's reward: poor or good, or its severity in [-1, 1] too."""
    max_critique_tokens: PositiveInt = 64
    """Longest critique that the reward model writes, in tokens."""
    critique_conditioned: bool = False
    """Read the completion again after the critique, and label the second copy."""

    def __post_init__(self) -> None:
        require_multiple("batch_size", self.batch_size, "micro_batches", self.micro_batches)
        require(
            self.critique_weight > 0 or self.span_weight > 0,
            "critique_weight and span_weight are both 0: nothing would be learned",
        )
        require(
            self.pretrained is not None or not self.template_options,
            "template_options are those of a model of its own, but pretrained is not given; it "
            "reads as the policy, with tokenizer.template_options",
        )


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

    @property
    def updates_per_step(self) -> int:
        """Optimizer updates that learn from the same rows."""
        return self.epochs * self.minibatches

    @property
    def completions_per_step(self) -> int:
        """The most that a round has."""
        return self.prompts_per_step * self.group_size

    @property
    def rows_per_step(self) -> int:
        """The most that a round learns from, but for rows that are seldom: for `t2g plan`."""
        return self.prompts_per_step * self.group_size

    @property
    def critiques_per_step(self) -> int:
        """Questions to the judge in a round, if every attempt is wrong. 0: it asks none."""
        return 0

    @property
    def needs_reward_model(self) -> bool:
        """Whether it starts from a reward model, so that `t2g run` trains one."""
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

    baseline: Literal["value", "group", "batch"] = "value"
    """What a token's return is compared with: a value head's estimate (the paper: GAE), the mean of
    the other completions of its group at the same place, or the mean over the round."""
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

    advantage: Literal["centred", "scaled", "leave_one_out"] = "centred"
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
    def completions_per_step(self) -> int:
        return super().completions_per_step * self.turns

    @property
    def critiques_per_step(self) -> int:
        return self.prompts_per_step * self.group_size * (self.turns - 1)

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
    def completions_per_step(self) -> int:
        return super().completions_per_step * self.turns

    @property
    def critiques_per_step(self) -> int:
        return self.prompts_per_step * self.group_size * (self.turns - 1)

    @property
    def measures(self) -> frozenset[str]:
        return super().measures | measured_of_turns(self.turns) | {"nll", "nll_loss", "accepted"}


@dataclasses.dataclass(frozen=True)
class EvaluateConfig(Section):
    """Single-turn accuracy (or reward) on the test examples, without feedback."""

    samples_per_prompt: PositiveInt = 4
    """Completions for each test prompt."""
    batch_size: PositiveInt = 200
    """Prompts sampled at once."""
    second_turn: bool = True
    """Try again after the judge's critique; it is asked about every wrong first attempt."""
    checkpoint: Literal["last", "best"] = "last"
    """Which of a method's checkpoints is evaluated, and answers; best: by checkpoint.keep_best."""


@dataclasses.dataclass(frozen=True)
class CheckpointConfig(Section):
    """When a phase saves its state; a phase that was stopped goes on from there."""

    every_steps: PositiveInt = 50
    """Steps between two checkpoints."""
    keep_last: PositiveInt = 2
    """Checkpoints kept of each phase."""
    keep_best: str | None = None
    """Metric, e.g. test_accuracy or test_reward, of which the best is kept too. None: the last."""
    best_is: Literal["max", "min"] = "max"
    """Whether the best value is the largest or the smallest."""


@dataclasses.dataclass(frozen=True)
class TrainingConfig(Section):
    """What all training phases do when something goes wrong."""

    max_skipped_updates: PositiveInt = 10
    """Updates with NaN or Inf are skipped; so many in a row, or in all if most are, end the run."""
    watchdog_minutes: typing.Annotated[Float, annotated_types.Interval(ge=0.0, le=1e6)] = 30.0
    """A process without progress for so long says where it is stuck, and ends. 0: never."""


@dataclasses.dataclass(frozen=True)
class TrackingConfig(Section):
    """Who gets a copy of the log of training phases, beside metrics.jsonl."""

    tensorboard: bool = False
    """Write event files to WORKDIR/tensorboard; needs the extra `tensorboard`."""
    wandb: Literal["disabled", "offline", "online"] = "disabled"
    """Weights & Biases, at once or kept for `wandb sync`; needs the extra `wandb`."""
    project: str = "t2g_jax"
    """Project of Weights & Biases; each phase is a run in it, in a group named like this run."""


@dataclasses.dataclass(frozen=True)
class Config(WithMethods):
    """One run."""

    name: str
    """Name of the run; results go to runs/NAME unless --workdir says otherwise."""
    seed: Seed = 0
    """Seed of everything random except the puzzles."""
    methods: tuple[Method, ...] = ("text2grad", "rltf-sd")
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
    text2grad: Text2GradConfig = Text2GradConfig()
    ppo: PPOConfig = PPOConfig()
    rltf_sd: RLTFSDConfig = RLTFSDConfig()
    rltf_fm: RLTFFMConfig = RLTFFMConfig()
    grpo: GRPOConfig = GRPOConfig()
    grpo_multiturn: GRPOMultiTurnConfig = GRPOMultiTurnConfig()
    rejection_sampling: RejectionSamplingConfig = RejectionSamplingConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    training: TrainingConfig = TrainingConfig()
    tracking: TrackingConfig = TrackingConfig()

    @property
    def known_methods(self) -> tuple[str, ...]:
        """All that it has sections of: ours, and then those from outside."""
        return tuple(outside_methods.known_methods(type(self), RolloutConfig))

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
        return dataclasses.replace(self, methods=(*self.methods, typing.cast(Method, method)))

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
        require(
            (self.text2grad.fade_after or 0) < self.sampling.max_new_tokens,
            f"text2grad.fade_after ({self.text2grad.fade_after}) must be less than "
            f"sampling.max_new_tokens ({self.sampling.max_new_tokens}): no token comes after it",
        )
        require(
            self.grpo.overlong_tokens <= self.sampling.max_new_tokens,
            f"grpo.overlong_tokens ({self.grpo.overlong_tokens}) must not exceed "
            f"sampling.max_new_tokens ({self.sampling.max_new_tokens}): it counts the last of them",
        )
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
        known = self.known_methods
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
