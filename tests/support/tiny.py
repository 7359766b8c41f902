"""A whole run in seconds, for the tests of phases and methods: one layer, eight examples."""

import contextlib
import dataclasses
import json
import pathlib
import shutil
import sys

import numpy as np

from t2g_jax import cli
from t2g_jax.config import Config, load_config, to_yaml
from t2g_jax.config.base import AnySection, Section
from t2g_jax.rollouts.turns import Turn
from t2g_jax.run.context import Context
from t2g_jax.runtime import checked
from t2g_jax.sampling.generate import Completion
from t2g_jax.tasks.base import Score
from t2g_jax.training.metrics import Stopwatch

CHECKS = ("t2g_jax.config", "t2g_jax.run.capacity", "t2g_jax.run.needs")
"""Modules, and what is in them, that look at a config before a run, and nothing that it makes
depends on them."""

CONFIG = pathlib.Path(__file__).parents[1] / "configs" / "tiny.yaml"


@dataclasses.dataclass(frozen=True)
class Run:
    """A work directory with all phases complete.

    read: [class, field] of every part of the config that the package looked at.
    """

    workdir: pathlib.Path
    config: Config
    read: set[tuple[str, str]]

    def branch(self, workdir, *phases, **values) -> tuple[pathlib.Path, Config]:
        """Another work directory that has only these phases, and its config with some values
        changed, by path with "__" for the dots: `text2grad__kl="k1"`."""
        config = with_values(self.config, **values)
        workdir.mkdir(parents=True)
        (workdir / "config.yaml").write_text(to_yaml(config))
        for name in ("tokenizer", *phases):
            shutil.copytree(self.workdir / name, workdir / name)
        return workdir, config


def with_values(config: AnySection, **values) -> AnySection:
    """The config with some values changed, by path with "__" for the dots."""
    inside: dict[str, dict] = {}
    for path, value in values.items():
        name, _, rest = path.partition("__")
        inside.setdefault(name, {})[rest] = value
    changes = {
        name: inner[""] if "" in inner else with_values(getattr(config, name), **inner)
        for name, inner in inside.items()
    }
    return dataclasses.replace(config, **changes)  # at once: a section checks itself as a whole


def changed(context: Context, **values) -> Context:
    """The context with some values of its config changed, and a watch of its own."""
    config = with_values(context.config, **values)
    return dataclasses.replace(context, config=config, watch=Stopwatch())


@contextlib.contextmanager
def spying(read: set[tuple[str, str]]):
    """Notes which fields of the config the package reads; checks of the config itself aside."""

    def look(section, name):
        frame = sys._getframe(1)
        while (
            frame.f_globals["__name__"] in ("dataclasses", "copy", __name__)
            or frame.f_code.co_name == "of_method"
            or isinstance(getattr(type(section), frame.f_code.co_name, None), property)
        ):  # whoever asks a section what follows from its fields reads them
            frame = frame.f_back
        reader = frame.f_globals["__name__"]
        checks = any(f"{reader}.".startswith(f"{module}.") for module in CHECKS)
        if reader.startswith("t2g_jax.") and not checks:
            read.add((type(section).__name__, name))
        return object.__getattribute__(section, name)

    Section.__getattribute__ = look
    try:
        yield read
    finally:
        del Section.__getattribute__


def fields_of(section: Section) -> set[tuple[str, str]]:
    """(class, field) of a section and those in it."""
    fields = {(type(section).__name__, field.name) for field in dataclasses.fields(section)}
    for field in dataclasses.fields(section):
        value = getattr(section, field.name)
        fields |= fields_of(value) if isinstance(value, Section) else set()
    return fields


def lines(path) -> list[dict]:
    """JSON lines without what differs from run to run: times and speeds."""
    return [_timeless(json.loads(line)) for line in path.read_text().splitlines()]


def contents(path):
    """A JSON file without times, and where and by which command it was made."""
    return _timeless(json.loads(path.read_text()))


def without_checksum(path) -> dict:
    """What a JSON file says; written again so, it is somebody's own."""
    said = json.loads(path.read_text())
    said.pop(checked.KEY, None)
    return said


def _timeless(value):
    if isinstance(value, dict):
        return {
            k: _timeless(v)
            for k, v in value.items()
            if k == "second_turn" or not ("second" in k or k == "environment")
        }
    return [_timeless(item) for item in value] if isinstance(value, list) else value


def turn(
    context: Context,
    text: str = "",
    *,
    example=None,
    prompt=None,
    tokens=None,
    reward=0.0,
    ended=True,
    logprobs=None,
) -> Turn:
    """A turn that nobody sampled: of a text, or of tokens."""
    example = example or context.task.split("train")[0]
    if tokens is None:
        tokens = [*context.tokenizer.encode(text), *([context.tokenizer.end_id] * ended)]
    tokens = np.array(tokens, np.int32)
    if logprobs is None:
        logprobs = np.full(len(tokens), -1.0)
    cutoffs = np.full(len(tokens), -np.inf, np.float32)
    completion = Completion(tokens, np.array(logprobs, np.float32), cutoffs, ended)
    score = Score(correct=reward == 1, formatted=True, reward=reward)
    prompt = context.prompts.render(example.prompt) if prompt is None else prompt
    return Turn(example, list(prompt), completion, text, score)


def run(workdir: pathlib.Path) -> Run:
    """All phases, by the command line; what is complete in the work directory is not done again."""
    read: set[tuple[str, str]] = set()
    with spying(read):
        assert cli.main(["run", str(CONFIG), "--workdir", str(workdir)]) == 0
    note = workdir / "read.json"
    if not note.exists():
        note.write_text(json.dumps(sorted(read)))
    return Run(workdir, load_config(CONFIG), {(a, b) for a, b in json.loads(note.read_text())})
