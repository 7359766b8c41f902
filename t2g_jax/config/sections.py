"""The sections of a run's config but those of methods, which are in `methods`."""

import dataclasses
import typing
from typing import Literal

import annotated_types

from t2g_jax import plugins, user_code
from t2g_jax.config.base import Section, Settings, require, require_multiple
from t2g_jax.config.numbers import (
    Decay,
    Float,
    Fraction,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    Scale,
    Seed,
    Temperature,
)
from t2g_jax.errors import nearest

PUZZLES = ("binary_matrix", "knights_knaves", "shortest_path")
DATA = "data"
"""Names of tasks; any other is of a function of the user's, or of an installed package."""
JUDGES = ("task", "policy")
"""Names of judges, likewise."""
TemplateOptions = dict[str, bool | int | float | str]
Labels = Literal["sign", "severity"]


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
