"""What a study consists of: one YAML file becomes cells, one for each task, seed and arm.

    study = load_study("configs/study/puzzles.yaml")
    for cell in study.cells: ...

An arm is a method with its settings. All arms of a task and seed start from the same tokenizer,
warm start and reward model, so an arm may change the section of its method and nothing else.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from t2g_jax import plugins, user_code
from t2g_jax.config import Config, Seed, Tokens, base, config_class, section_of
from t2g_jax.config.base import ConfigError, Section, config_hash

SHARED = "shared"
"""Folder of what the arms of a task and seed have in common."""
_OURS = ("name", "seed", "methods")
_FOLDER = r"[A-Za-z0-9][A-Za-z0-9._-]*"


@dataclasses.dataclass(frozen=True)
class StudyFile(Section):
    """The YAML file: which cells there are, and where the results go."""

    name: str
    """Name of the study; cells go to runs/NAME unless --workdir says otherwise."""
    seeds: tuple[Seed, ...] = (0, 1, 2)
    """Each is a training of its own; the puzzles stay the same."""
    token_budget: Tokens = 100_000
    """Tokens that each cell generates in training; a task may have a `token_budget` of its own."""
    results: str = "docs/results.md"
    """The page that is written; its figures go to a folder beside it, of the same name."""
    note: str = ""
    """What readers of the page should know, such as how the settings were chosen."""
    base: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Sections of a run's config that all cells have in common."""
    tasks: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    """Sections by the name of a task, on top of `base`."""
    arms: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    """By the name of an arm: `method`, the section of that method, and perhaps `baseline`."""


@dataclasses.dataclass(frozen=True)
class Arm(Section):
    """What is compared: a method, and the arm whose final accuracy it should reach, if any."""

    method: str
    baseline: str | None = None

    @property
    def section(self) -> str:
        """The part of a config that the arm may change."""
        return section_of(self.method)


@dataclasses.dataclass(frozen=True)
class Cell:
    """One training: an arm on a task with a seed.

    config: of its run. shared: of the run that trains what its arm shares with the others.
    """

    task: str
    seed: int
    arm: str
    config: Config
    shared: Config

    @property
    def folder(self) -> str:
        return f"{self.task}/seed{self.seed}/{self.arm}"

    @property
    def shared_folder(self) -> str:
        return f"{self.task}/seed{self.seed}/{SHARED}"

    @property
    def method(self) -> str:
        return self.config.methods[0]


@dataclasses.dataclass(frozen=True)
class Study:
    """A study file, read and checked."""

    path: str
    file: StudyFile
    arms: Mapping[str, Arm]
    cells: tuple[Cell, ...]

    @property
    def hash(self) -> str:
        """16 hexadecimal digits that change when any value of the file does."""
        return config_hash(self.file)


def load_study(path: str | os.PathLike[str]) -> Study:
    """Reads a study and builds the config of every cell.

    Raises:
      ConfigError: something in the file cannot be used; the message names file, task, arm and key.
    """
    stem = os.path.splitext(os.path.basename(path))[0]
    name = re.sub(r"[^A-Za-z0-9]+", "-", stem).strip("-") or "study"
    file = base.read(StudyFile(name=name), path)
    problems = list(_problems(file))
    if problems:
        raise ConfigError("\n".join(f"{path}: {problem}" for problem in problems))
    user_code.look_in(os.path.dirname(os.path.abspath(path)))
    named = [values.get("method") for values in file.arms.values()]
    methods = [method for method in named if isinstance(method, str)]
    kind = config_class(file.base, methods=methods, source=f"{path}: base")
    default = kind(name=file.name)
    known = default.known_methods
    arms = {name: _arm(path, name, values, known) for name, values in file.arms.items()}
    for name, arm in arms.items():
        if arm.baseline is not None and (arm.baseline not in arms or arm.baseline == name):
            others = ", ".join(other for other in arms if other != name)
            raise ConfigError(
                f"{path}: `arms.{name}.baseline` is {arm.baseline!r}; must be another arm: {others}"
            )
    return Study(os.fspath(path), file, arms, tuple(_cells(path, file, arms, default)))


def _problems(file: StudyFile) -> Iterator[str]:
    """What is wrong with the file as a whole."""
    for key in ("seeds", "tasks", "arms"):
        if not getattr(file, key):
            yield f"`{key}` is empty: name at least one"
    if len(set(file.seeds)) < len(file.seeds):
        yield f"`seeds` {list(file.seeds)} names one twice"
    for key, values in (("tasks", file.tasks), ("arms", file.arms)):
        for name in values:
            if not re.fullmatch(_FOLDER, name) or name == SHARED:
                yield (
                    f"`{key}.{name}` becomes a folder: use letters, digits, '.', '_' and '-', "
                    f"and not {SHARED!r}"
                )
    if not re.fullmatch(_FOLDER, file.name):
        yield f"`name` ({file.name!r}) becomes a folder: use letters, digits, '.', '_' and '-'"
    layers = {"base": file.base} | {f"tasks.{name}": v for name, v in file.tasks.items()}
    layers |= {f"arms.{name}": values for name, values in file.arms.items()}
    for where, values in layers.items():
        for key in _OURS:
            if key in values:
                yield f"`{where}.{key}` is set by the study, cell by cell; leave it out"
        if "plugins" in values and where != "base":
            yield f"`{where}.plugins` is the same for all cells: put it into `base`"


def _arm(
    path: str | os.PathLike[str], name: str, values: Mapping[str, Any], known: Sequence[str]
) -> Arm:
    source = f"{path}: arms.{name}"
    if "method" not in values:
        raise ConfigError(f"{source}: `method` is missing")
    about = {key: values[key] for key in ("method", "baseline") if key in values}
    arm = base.changed(Arm(method="grpo"), about, source=source)
    if arm.method not in known:
        raise ConfigError(
            f"{source}: `method` is {json.dumps(arm.method)}; "
            f"{plugins.choice(plugins.METHODS, arm.method, known)}"
        )
    if "token_budget" in (values.get(arm.section) or {}):
        raise ConfigError(
            f"{source}: `{arm.section}.token_budget` is the study's, the same for all arms: say "
            "`token_budget` at the top"
        )
    for key in values:
        if key not in (*about, arm.section):
            raise ConfigError(
                f"{source}: `{key}` is not for an arm to say, which may have `method`, `baseline` "
                f"and `{arm.section}`: what all arms of a task share goes into `base` or `tasks`"
            )
    return arm


def _cells(
    path: str | os.PathLike[str], file: StudyFile, arms: Mapping[str, Arm], default: Config
) -> Iterator[Cell]:
    problems: dict[str, list[str]] = {}

    def build(where: str, config: Config, *layers: Mapping[str, Any]) -> Config | None:
        try:
            return base.changed(config, *layers, source="")
        except ConfigError as error:
            for line in str(error).removeprefix(": ").split("\n: "):
                problems.setdefault(line, []).append(where)
            return None

    cells = []
    for task, values in file.tasks.items():
        of_task = {key: value for key, value in values.items() if key != "token_budget"}
        of_its_own = dataclasses.replace(default, name=f"{file.name}-{task}")
        shared = build(f"tasks.{task} on top of base", of_its_own, file.base, of_task)
        if shared is None:
            continue
        if shared.evaluate.checkpoint != "last":
            problem = (
                f"`evaluate.checkpoint` is {shared.evaluate.checkpoint}; must be last: all arms "
                "end after the same number of tokens"
            )
            problems.setdefault(problem, []).append(f"tasks.{task} on top of base")
        for name, arm in arms.items():
            own = {"methods": [arm.method], arm.section: file.arms[name].get(arm.section, {})}
            config = build(f"tasks.{task}, arms.{name}", shared, own)
            if config is None:
                continue
            tokens = {"token_budget": values.get("token_budget", file.token_budget)}
            config = build(f"tasks.{task}", config, {arm.section: tokens})
            if config is None:
                continue
            for seed in file.seeds:
                whole, before = (dataclasses.replace(c, seed=seed) for c in (config, shared))
                cells.append(Cell(task, seed, name, whole, before))
    if problems:
        raise ConfigError(
            "\n".join(
                f"{path}: {places[0]}{_more(places)}: {line}" for line, places in problems.items()
            )
        )
    yield from cells


def _more(places: list[str]) -> str:
    return f" (and {len(places) - 1} more)" if len(places) > 1 else ""
