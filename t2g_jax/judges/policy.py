"""A judge that is a model on this machine: a policy of one's own, or any chat model.

    judge: {name: policy, settings: {model: exports/critic}}

It reads prompt, answer and a request for a critique, in three turns, as a policy reads them that
learns to critique (`rltf-fm`, `sft.critique_fraction`), and writes the critique.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
import threading
import typing
import zlib
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import annotated_types
import jax
import jax.numpy as jnp
import numpy as np

from t2g_jax.config import MeshConfig, PositiveInt, TemplateOptions
from t2g_jax.config.base import Section, parse
from t2g_jax.data import trial
from t2g_jax.data.tokenizer import split_thought
from t2g_jax.errors import T2GError
from t2g_jax.judges.batches import Outcome
from t2g_jax.models import families, heads, huggingface, tensor_files
from t2g_jax.parallel.shapes import bucket, round_up
from t2g_jax.parallel.sharding import ROWS, make_mesh, parts, state_shardings
from t2g_jax.sampling.distribution import Sampling
from t2g_jax.sampling.generate import Completion, generate_rows
from t2g_jax.tasks.base import (
    CRITIQUE_REQUEST,
    Critique,
    Example,
    JudgeError,
    Prompt,
    Task,
    messages_of,
)

JSON_REQUEST = """\
Critique the answer. Reply with JSON alone:
{"critique": "what is right, what is wrong, and where", "quotes": [{"text": "a phrase of the \
answer, letter for letter", "reward": 1 if it is good, -1 if it is poor}]}"""


MOST_OBJECTS = 100
"""Places in a reply where a JSON object could begin; what comes after them is not looked at."""


@dataclasses.dataclass(frozen=True)
class PolicySettings(Section):
    """`judge.settings` of the judge "policy"."""

    model: str
    """Folder of a Hugging Face model, as `t2g export` writes it, or hub id."""
    form: Literal["text", "json"] = "text"
    """What it writes: the critique and nothing else, or JSON with quotes, see `read_json`."""
    request: str | None = None
    """What it is asked. None: to critique the answer, and with json how."""
    max_new_tokens: PositiveInt = 256
    """Longest critique, in tokens; one that is longer counts as failed."""
    temperature: typing.Annotated[float, annotated_types.Interval(ge=0.0, le=1e3)] = 0.0
    """Logits are divided by this. 0: the likeliest token each time."""
    template_options: TemplateOptions = dataclasses.field(default_factory=dict)
    """Variables of its chat template, e.g. `{enable_thinking: false}` for Qwen3."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of its parameters and activations."""


def make(task: Task, **settings: Any) -> PolicyJudge:
    """The judge "policy" of a config.

    Raises:
      T2GError: the settings are not those of `PolicySettings`, or the model cannot be used.
    """
    return PolicyJudge(
        parse(PolicySettings, settings, "judge.settings"), system=getattr(task, "system", "")
    )


class PolicyJudge:
    """Critiques that a model writes, a batch at a time, on the devices of this process.

    What it says of a completion depends on nothing else in the batch; at a temperature above 0 it
    is drawn at random, and drawn the same each time.

    Args:
      settings: of the config.
      system: system prompt of the task; empty for none.
    """

    name = "policy"

    def __init__(self, settings: PolicySettings, *, system: str = "") -> None:
        self._given = settings
        self._system = system
        default = JSON_REQUEST if settings.form == "json" else CRITIQUE_REQUEST
        self._request = default if settings.request is None else settings.request
        self._folder = huggingface.fetch(settings.model, key="judge.settings.model")
        self._tokenizer = trial.load(self._folder, settings.template_options)
        dtype = jnp.dtype(settings.dtype)
        shape = families.read_config(self._folder, tokens=self._tokenizer.vocab_size)
        self._model = dataclasses.replace(shape, dtype=dtype, param_dtype=dtype)
        huggingface.check(self._folder, self._model, values=False)
        try:
            self._question("", "")
        except ValueError as error:
            raise T2GError(
                f"judge.settings.model: no critique can be asked for: {error}"
            ) from error
        self._sampling = Sampling(
            settings.max_new_tokens, self._tokenizer.stop_ids, temperature=settings.temperature
        )
        self._mesh = make_mesh(MeshConfig(), jax.local_devices())
        self._params: heads.Params | None = None
        self._one_at_a_time = threading.Lock()  # devices meet in one program, not in two

    @property
    def settings(self) -> str:
        """What critiques depend on besides the settings in the config: weights, and who asks."""
        return f"{tensor_files.fingerprint(self._folder)} {self._request} {self._system}"

    def prepare(self) -> None:
        """Loads the model."""
        with self._one_at_a_time:
            if self._params is None:
                shapes = jax.eval_shape(lambda: heads.init_params(self._model, jax.random.key(0)))
                shardings = state_shardings(shapes, self._mesh)
                self._params = huggingface.load(self._folder, self._model, shardings)

    def critique_batch(
        self, examples: Sequence[Example], completions: Sequence[str]
    ) -> list[Outcome]:
        """A critique of each completion, or why it has none."""
        self.prepare()
        pairs = zip(examples, completions, strict=True)
        prompts = [self._question(example.prompt, completion) for example, completion in pairs]
        fitting = [prompt for prompt in prompts if self._has_room(prompt)]
        written = iter(self._written(fitting))
        return [
            self._read(next(written)) if self._has_room(prompt) else self._no_room(prompt)
            for prompt in prompts
        ]

    def _question(self, prompt: Prompt, completion: str) -> list[int]:
        tokenizer = self._tokenizer
        return [
            *tokenizer.render(messages_of(prompt, self._system)),
            *tokenizer.answer(completion),
            *tokenizer.next_turn(self._request, ended=True),
        ]

    @property
    def _longest_prompt(self) -> int | None:
        """What leaves room for a critique; None where the model is made for any length."""
        positions = self._model.positions
        return None if positions is None else positions - self._sampling.max_new_tokens

    def _has_room(self, prompt: Sequence[int]) -> bool:
        return self._longest_prompt is None or len(prompt) <= self._longest_prompt

    def _no_room(self, prompt: Sequence[int]) -> JudgeError:
        return JudgeError(
            "no room for a critique",
            f"{len(prompt)} tokens and max_new_tokens ({self._sampling.max_new_tokens}) exceed the "
            f"{self._model.positions} positions of {self._given.model}",
        )

    def _written(self, prompts: Sequence[Sequence[int]]) -> list[Completion]:
        if not prompts:
            return []
        rows = round_up(len(prompts), parts(self._mesh, *ROWS, "context"))
        said = [zlib.crc32(np.array(prompt, np.int32).tobytes()) for prompt in prompts]
        seeds = np.array(said + [0] * (rows - len(said)), np.uint32)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(0), seeds)
        with self._one_at_a_time:
            assert self._params is not None
            return generate_rows(
                self._params,
                prompts,
                keys,
                width=bucket(prompts, most=self._longest_prompt),
                config=self._model,
                sampling=self._sampling,
                mesh=self._mesh,
            )

    def _read(self, completion: Completion) -> Outcome:
        text = self._tokenizer.decode(completion.tokens.tolist())
        if completion.broken:
            return JudgeError("logits are NaN or Inf", text)
        if not completion.ended:
            return JudgeError("critique is cut off", text)
        reasoning, text = split_thought(text)
        if self._given.form == "text":
            return Critique(text.strip(), reasoning=reasoning)
        try:
            return dataclasses.replace(read_json(text), reasoning=reasoning)
        except JudgeError as error:
            return error


def read_json(text: str) -> Critique:
    """The critique in a reply that holds a JSON object of this form, the last one if it has more:

    {"critique": "Row 2 is wrong.", "quotes": [{"text": "1 1", "reward": -1}]}

    "quotes" may be left out; a quote may have "ordinal", "before" and "after", too, see `Quote`.

    Raises:
      JudgeError: there is no such object, or it says something else.
    """
    objects = [value for value in _json_objects(text) if "critique" in value]
    if not objects:
        raise JudgeError("no JSON with a critique", text)
    values = dict(objects[-1])
    said = {"text": values.pop("critique"), "quotes": values.pop("quotes", [])}
    try:
        return Critique.from_dict(values | said)
    except T2GError as error:
        raise JudgeError("JSON of another form", f"{error}; {text}") from error


def _json_objects(text: str) -> Iterator[dict[str, Any]]:
    """The outermost JSON objects in a text."""
    end = 0
    for brace in itertools.islice(re.finditer(r'\{\s*"', text), MOST_OBJECTS):
        if brace.start() < end:
            continue
        try:
            value, end = json.JSONDecoder().raw_decode(text, brace.start())
        except (ValueError, RecursionError):  # other braces, or nested as no critique is
            continue
        yield value
