"""`t2g generate`: a trained policy answers; critiques and span rewards are shown token by token."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import jax
import numpy as np
import rich.console

from t2g_jax.config import Config
from t2g_jax.errors import T2GError
from t2g_jax.feedback.reward_model import RewardModel, Tokens
from t2g_jax.models.heads import Params
from t2g_jax.phases.samples import sample_of, token_cells
from t2g_jax.report.contents import Sample
from t2g_jax.report.terminal import marked_line, safe_text
from t2g_jax.rollouts.engine import Rollouts
from t2g_jax.rollouts.turns import attempt
from t2g_jax.run import provenance
from t2g_jax.run.context import READING, Context, say
from t2g_jax.run.workspace import REWARD_MODEL, Workspace
from t2g_jax.runtime import hosts

EXAMPLES = 3
"""Test examples that are answered without a prompt."""

AT_ONCE = 64
"""Completions sampled at once, at most."""

MARKERS: dict[Literal["true", "predicted"], str] = {
    "true": "the judge",
    "predicted": "the reward model",
}


@dataclasses.dataclass(frozen=True)
class Answer:
    """A completion as it is shown, its text and its tokens.

    example: whether it answers a test example, so that its reward is known.
    """

    sample: Sample
    text: str
    tokens: Sequence[int]
    example: bool


def run(
    config: Config,
    workdir: str | os.PathLike[str],
    method: str,
    prompt: str | None,
    console: rich.console.Console | None = None,
    *,
    prompts_file: str | os.PathLike[str] | None = None,
    samples: int = 1,
    as_json: bool = False,
) -> None:
    """Prints answers of a phase's policy.

    Args:
      method: whose policy: a method, or "sft".
      prompt: what to answer.
      console: where to print; None: stdout.
      prompts_file: a file of prompts to answer, see `read_prompts`; with neither: test examples.
      samples: completions for each prompt.
      as_json: print one JSON object a line, see `as_object`, in place of text for people.

    Raises:
      T2GError: that policy has not been trained; a prompt is empty or too long; the file cannot be
        read.
    """
    if prompt is not None and prompts_file is not None:
        raise T2GError("--prompt and --prompts-file are both given; leave out one")
    named = None if prompts_file is None else read_prompts(prompts_file)
    if prompt is not None:
        named = [("--prompt", prompt)]
    workspace = Workspace(workdir, config, free=READING)
    workspace.summary(method)
    context = Context.open(config, workdir, read_only=True)
    prompts = None if named is None else [_checked(context, *item) for item in named]
    params = context.weights.load(method, step=context.weights.best_step(method))
    trained = workspace.is_complete(REWARD_MODEL)
    for name in (method, *([REWARD_MODEL] if trained else [])):
        for problem in hosts.broadcast_from_primary(
            functools.partial(provenance.misfits, workspace, name)
        ):
            say(f"{name} was made from {problem}")
    model = RewardModel.load(context) if trained else None
    console = console or rich.console.Console(highlight=False)
    for answer in answers(context, params, model, prompts, samples):
        if not hosts.is_primary():
            continue
        if as_json:
            print(json.dumps(as_object(answer), allow_nan=False), file=console.file, flush=True)
        else:
            show(console, answer.sample)


def read_prompts(path: str | os.PathLike[str]) -> list[tuple[str, str]]:
    """The prompts of a file, each with its place, "FILE, line N".

    One a line; or JSON lines, objects whose "prompt" is text, if the file's name ends with .jsonl
    or its first line is such an object. Blank lines are passed over.

    Raises:
      T2GError: the file cannot be read, holds no prompt, or a line is none.
    """
    path = Path(path)
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise T2GError(f"--prompts-file {path}: cannot be read: {error.strerror}") from error
    found = []
    for number, line in enumerate(lines, start=1):
        where = f"{path}, line {number}"
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8").removesuffix("\r")
        except UnicodeDecodeError as error:
            raise T2GError(f"{where}: not UTF-8 text; write the file as UTF-8") from error
        if text.strip():
            found.append((where, text))
    if not found:
        raise T2GError(f"--prompts-file {path} holds no prompt; write one a line")
    if path.suffix == ".jsonl" or isinstance(_parsed(found[0][1]), dict):
        return [(where, _prompt_of(where, text)) for where, text in found]
    return found


def answers(
    context: Context,
    params: Params,
    model: RewardModel | None,
    prompts: Sequence[tuple[str, list[int]]] | None,
    samples: int = 1,
) -> Iterator[Answer]:
    """The answers to prompts or to test examples, as far as they can be judged.

    The judge has to know the task, so it reads answers to test examples only; a prompt of one's own
    has no reward either (NaN). Without a reward model nothing is predicted.

    Args:
      prompts: with their tokens. None: the first test examples.
      samples: for each.
    """
    rollouts = Rollouts.of(context)
    if prompts is None:
        for examples, drawn in _batches(context, _first_examples(context), samples):
            tokens = [context.prompts.render(example.prompt) for example in examples]
            turns = attempt(rollouts, params, examples, tokens, drawn, batch_size=len(examples))
            marks = _marks(model, [(t.prompt, t.completion.tokens) for t in turns])
            for turn, (predicted, critique) in zip(turns, marks, strict=True):
                sample = sample_of(context, turn, predicted=predicted, predicted_critique=critique)
                yield Answer(sample, turn.text, turn.tokens, example=True)
        return
    for some, drawn in _batches(context, prompts, samples):
        completed = rollouts.engine.complete(
            params,
            [t for _, t in some],
            drawn,
            sampling=rollouts.sampling,
            batch_size=len(some),
        )
        read = [(tokens, c.tokens) for (_, tokens), c in zip(some, completed, strict=True)]
        marks = _marks(model, read)
        for (text, _), (_, new), (predicted, critique) in zip(some, read, marks, strict=True):
            ids = new.tolist()
            cells = token_cells(context, ids, predicted=predicted)
            sample = Sample("", text, "", critique, math.nan, cells)
            yield Answer(sample, context.tokenizer.decode(ids), ids, example=False)


_Item = TypeVar("_Item")


def _batches(
    context: Context, items: Sequence[_Item], samples: int
) -> Iterator[tuple[list[_Item], jax.Array]]:
    """Each item so many times, at most `AT_ONCE` together, with the key to draw those with."""
    key = context.keys.key("generate")
    asked = (item for item in items for _ in range(samples))
    for i in itertools.count():
        if not (some := list(itertools.islice(asked, AT_ONCE))):
            return
        yield some, key if i == 0 else jax.random.fold_in(key, i)


def as_object(answer: Answer) -> dict[str, Any]:
    """An answer as JSON holds it.

    "prompt", "completion" (without special tokens that have no text), "tokens" (their texts) and
    "token_ids"; from a reward model "rewards", one a token, and "predicted_critique"; for a test
    example "correct", "score", the judge's "critique" and its "labels", one a token, as far as
    there are such.
    """
    sample = answer.sample
    found: dict[str, Any] = {
        "prompt": sample.prompt,
        "completion": answer.text,
        "tokens": [cell.text for cell in sample.tokens],
        "token_ids": list(answer.tokens),
    }
    columns = {"rewards": "predicted", "labels": "true"}
    for name, field in columns.items():
        values = [getattr(cell, field) for cell in sample.tokens]
        if values and None not in values:
            found[name] = [float(f"{value:.6g}") for value in values]
    if sample.predicted_critique is not None:
        found["predicted_critique"] = sample.predicted_critique
    if answer.example:
        found |= {
            "correct": sample.correct,
            "score": sample.reward,
            "critique": sample.critique,
        }
    return found


def show(console: rich.console.Console, sample: Sample) -> None:
    """Prints a sample: the answer once for each who marked it, then what was said of it."""

    def title(text: str) -> None:
        console.print(safe_text(text, "bold"))

    console.rule()
    title("Prompt")
    console.print(safe_text(sample.prompt))
    marked = [
        which
        for which in MARKERS
        if any(getattr(cell, which) is not None for cell in sample.tokens)
    ]
    for which in marked:
        title(f"Answer, marked by {MARKERS[which]}")
        console.print(marked_line(console, sample.tokens, which))
    if not marked:
        title("Answer")
        console.print(marked_line(console, sample.tokens))
    for who, critique in (
        ("judge", sample.critique or None),
        ("reward model", sample.predicted_critique),
    ):
        if critique is not None:
            title(f"Critique of the {who}")
            console.print(safe_text(critique))
    if not math.isnan(sample.reward):
        title("Reward")
        console.print(safe_text(f"{sample.reward:.1f}"))


def _first_examples(context: Context) -> list[Any]:
    """The first test examples whose prompts leave room for an answer; no more are looked at."""
    tests = context.task.split("test")
    found, passed = [], 0
    for i in range(len(tests)):
        example = tests[i]
        if context.prompts.has_room(context.prompts.render(example.prompt)):
            found.append(example)
        else:
            passed += 1
        if len(found) == EXAMPLES:
            break
    if not found:
        context.prompts.test_examples()  # says that none of them has room
    if passed:
        say(f"{passed} test prompts leave no room for an answer and are passed over")
    return found


def _checked(context: Context, where: str, prompt: str) -> tuple[str, list[int]]:
    """A prompt that somebody wrote, and its tokens."""
    if not prompt.strip():
        hint = ", or leave it out for test examples" if where == "--prompt" else ""
        raise T2GError(f"{where} is empty; write what to answer{hint}")
    tokens = context.prompts.render(prompt)
    if not context.prompts.has_room(tokens):
        raise context.prompts.no_room(where, len(tokens))
    return prompt, tokens


def _parsed(line: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _prompt_of(where: str, line: str) -> str:
    """The prompt of a JSON line."""
    value = _parsed(line)
    if not isinstance(value, dict):
        raise T2GError(f'{where}: not a JSON object; write {{"prompt": "…"}}')
    prompt = value.get("prompt")
    if not isinstance(prompt, str):
        raise T2GError(f'{where}: has no "prompt" that is text; write {{"prompt": "…"}}')
    try:
        prompt.encode("utf-8")
    except UnicodeEncodeError as error:
        raise T2GError(f"{where}: the prompt has half of a surrogate pair; mend it") from error
    return prompt


def _marks(
    model: RewardModel | None, asked: Sequence[tuple[Tokens, Tokens]]
) -> list[tuple[np.ndarray | None, str | None]]:
    """The reward model's span rewards and critique of each; None of what it cannot give."""
    if model is None:
        return [(None, None)] * len(asked)
    critiques = [
        None if tokens is None else model.tokenizer.decode(tokens)
        for tokens in model.critiques(asked)
    ]
    return list(zip(model.rewards(asked), critiques, strict=True))
