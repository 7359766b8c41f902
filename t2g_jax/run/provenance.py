"""What each result was made from, so that it is never taken for the result of something else.

A phase keeps, in its complete.json and beside every checkpoint, what it was made from: the values
of the config that it reads, fingerprints of the artifacts of earlier phases, of the tokenizer and
of pretrained models, and the version of this package. Who builds on an artifact checks that all of
these are still the ones that are there; who shows it shows what it was made with.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import json
import platform
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from t2g_jax.config import JUDGE_LIMITS, Config, base, is_aside, section_of
from t2g_jax.data import trial
from t2g_jax.data.records import AnnotationRecord
from t2g_jax.deprecation import new_value
from t2g_jax.errors import T2GError
from t2g_jax.installation import commit
from t2g_jax.run import pretrained
from t2g_jax.run.workspace import ANNOTATE, REWARD_MODEL, SFT, Workspace, command
from t2g_jax.runtime import hosts
from t2g_jax.training.checkpoint import Checkpoints
from t2g_jax.version import __version__

_MODEL = ("seed", "task", "tokenizer", "model", "mesh")
_READS: dict[str, tuple[str, ...]] = {
    SFT: (*_MODEL, "sampling.max_new_tokens", "judge", "sft"),
    ANNOTATE: (*_MODEL, "sampling", "judge", "annotate"),
    REWARD_MODEL: (*_MODEL, "sampling.max_new_tokens", "lora", "reward_model"),
}
_OF_REWARD_MODEL = tuple(
    f"reward_model.{name}"
    for name in ("pretrained", "template_options", "critique_conditioned", "max_critique_tokens")
)

MEASURES = ("seed", "task", "tokenizer", "model", "sampling", "judge", "evaluate")
"""What decides the score of given parameters."""
_NOT_MEASURES = {
    *JUDGE_LIMITS,
    "evaluate.batch_size",  # what is drawn for a prompt does not depend on it
}

_TOKENIZER = "another tokenizer than the one that is there"

Made = dict[str, Any]
"""JSON: "version", "inputs" by dotted key, "parents" (phase → fingerprint), "tokenizer", "bases"
(key of the config → fingerprint of the pretrained model there); and "earlier", if the phase went on
with changed inputs: what they had been before, and for how many steps (or records). Its shape is
`records.Made`."""


def reads(phase: str, config: Config) -> tuple[str, ...]:
    """Sections and fields that decide what a phase makes, besides what earlier phases made. One's
    own phase, that is no method, is taken to read all of them, and no earlier phase."""
    if phase in _READS:
        return _READS[phase]
    if phase not in config.known_methods:
        return tuple(field.name for field in dataclasses.fields(config))
    whose = ("plugins",) if phase in config.outside else ()
    marks = _OF_REWARD_MODEL if REWARD_MODEL in parents(phase, config) else ()
    return (*_MODEL, "sampling", "judge", "lora", section_of(phase), *whose, *marks)


def inputs(phase: str, config: Config) -> dict[str, Any]:
    """The values, by dotted key, that decide what a phase makes."""
    read = reads(phase, config)
    return {key: value for key, value in _of(read, config) if not is_aside(key)}


def measured_with(config: Config) -> dict[str, Any]:
    """The values, by dotted key, that decide what score parameters get."""
    return {key: value for key, value in _of(MEASURES, config) if key not in _NOT_MEASURES}


def parents(phase: str, config: Config) -> tuple[str, ...]:
    """The phases whose artifacts a phase starts from."""
    if phase == REWARD_MODEL:
        return (SFT, ANNOTATE)
    if phase in config.known_methods and config.of_method(phase).needs_reward_model:
        return (SFT, REWARD_MODEL)
    return (SFT,) if phase in (ANNOTATE, *config.known_methods) else ()


def made(workspace: Workspace, phase: str) -> Made:
    """What a phase that begins now is made from.

    Raises:
      T2GError: a phase that it starts from is not complete.
    """
    config = workspace.config
    bases = {"model.pretrained": config.model.pretrained, "lora.pretrained": config.lora.pretrained}
    if REWARD_MODEL in (phase, *parents(phase, config)):
        bases["reward_model.pretrained"] = config.reward_model.pretrained
    asks = "judge" in reads(phase, config)
    if asks and not (phase == SFT and config.sft.critiques == "task"):
        bases["judge.settings.model"] = config.judge.pretrained
    return {
        "version": __version__,
        "inputs": inputs(phase, config),
        "parents": {name: artifact(workspace, name) for name in parents(phase, config)},
        "tokenizer": of_files(workspace.tokenizer),
        "bases": {key: pretrained.fingerprint(path) for key, path in bases.items() if path},
    }


def environment() -> dict[str, str]:
    """Where and with what this process works: for a phase's complete.json, and no checkpoint's
    metadata, as runs that differ in nothing else leave the same bytes."""
    kinds = collections.Counter(device.device_kind for device in jax.devices())
    program = Path(sys.argv[0])
    name = "python -m t2g_jax" if program.name == "__main__.py" else program.name
    return {
        "t2g_jax": __version__,
        "commit": commit() or "unknown",
        "jax": jax.__version__,
        "python": platform.python_version(),
        "devices": ", ".join(f"{number} × {kind}" for kind, number in kinds.items()),
        "command": f"{name} {shlex.join(sys.argv[1:])}".strip(),
    }


def gone_on(now: Made, before: Made | None, done: int, where: Path) -> Made:
    """What a phase is made from that went on after `done` steps (or records) in the folder `where`.

    Raises:
      T2GError: what it began with is not what is there now.
    """
    if not isinstance(before, dict):
        raise T2GError(f"{where} does not say what it was made from; {_anew(where)}")
    before = _in_new_words(before)
    for problem in _others(before, now):
        raise _begun_otherwise(where, problem)
    changed = {k: v for k, v in before["inputs"].items() if now["inputs"].get(k) != v}
    changed |= {k: None for k in now["inputs"] if k not in before["inputs"]}
    earlier = [*before.get("earlier", [])]
    if changed:
        earlier.append({"until": done, "inputs": changed})
    return now | ({"earlier": earlier} if earlier else {})


def misfits(workspace: Workspace, phase: str) -> list[str]:
    """In words, what a complete phase was made from that is not what is in its folder now."""
    record = of_phase(workspace, phase)
    now = {
        "parents": {
            name: artifact(workspace, name)
            for name in record["parents"]
            if workspace.is_complete(name)
        },
        # One that is not there is made again, see `require_tokenizer`.
        "tokenizer": of_files(workspace.tokenizer)
        if workspace.tokenizer.exists()
        else record["tokenizer"],
        "bases": record["bases"],  # read again by those who need them, see `require_base`
    }
    return _others(record, now)


def require_fit(workspace: Workspace, phases: Iterable[str]) -> None:
    """Checks that complete phases still belong together, before something is built on them.

    Raises:
      T2GError: one was made from what is not there any more; it is named, with the way out.
    """
    for phase in phases:
        for problem in misfits(workspace, phase):
            if problem == _TOKENIZER:  # `require_tokenizer` says what to do
                continue
            folder = workspace.phase(phase)
            raise T2GError(
                f"{folder} was made from {problem}; put back what it was made from, or delete "
                f"{folder} and run `{command(phase)} CONFIG`"
            )


def require_tokenizer(workspace: Workspace, folder: Path) -> None:
    """Checks that a tokenizer is the one that all complete phases were made with.

    Raises:
      T2GError: it is another one; nothing that is there could be used with it.
    """
    found = of_files(folder)
    for phase in workspace.complete_phases():
        if of_phase(workspace, phase)["tokenizer"] != found:
            raise T2GError(
                f"{workspace.phase(phase)} was made with another tokenizer than the one in "
                f"{workspace.tokenizer}; put that back as it was, or begin anew in another "
                "--workdir: policies cannot be used without the tokenizer that they were trained "
                "with"
            )


def require_loadable(workspace: Workspace) -> None:
    """Checks the tokenizer of a work folder, if it has one, before anything of it is loaded.

    It must be the one that the phases there were made with, or begun with; if there are none,
    loading it must end within the bounds of `data.trial`.

    Raises:
      T2GError: it is another one, or does not end; or a checkpoint is damaged.
    """
    folder = workspace.tokenizer
    if not hosts.broadcast_from_primary(folder.exists):
        return
    if hosts.broadcast_from_primary(workspace.complete_phases):
        hosts.broadcast_from_primary(lambda: require_tokenizer(workspace, folder))
        return
    begun = _begun_with(workspace, SFT)
    if begun is None:
        options = workspace.config.tokenizer.template_options
        hosts.broadcast_from_primary(lambda: trial.require_bounded(folder, options))
    elif begun != hosts.broadcast_from_primary(lambda: of_files(folder)):
        raise _begun_otherwise(workspace.phase(SFT), _TOKENIZER)


def _begun_with(workspace: Workspace, phase: str) -> str | None:
    """The tokenizer of a phase that was begun; None if it has no checkpoint that says so."""
    if not hosts.broadcast_from_primary(lambda: workspace.has_work(phase)):
        return None
    directory = workspace.checkpoints(phase)
    with Checkpoints(directory, read_only=True, async_=False, made_by=command(phase)) as found:
        made = found.meta().get("made") if found.steps else None
    return made.get("tokenizer") if isinstance(made, dict) else None


def require_base(workspace: Workspace, phase: str, key: str, source: str) -> None:
    """Checks that a pretrained model is the one that a complete phase was made from.

    Args:
      key: of the config, that names it.

    Raises:
      T2GError: its weights are others now.
    """
    if of_phase(workspace, phase)["bases"].get(key) != pretrained.fingerprint(source):
        raise T2GError(
            f"{source} ({key}) is not the model that {workspace.phase(phase)} was made from: its "
            "weights or its config.json are others; put them back, or begin anew in another "
            "--workdir"
        )


def of_phase(workspace: Workspace, phase: str) -> Made:
    """What a complete phase recorded.

    Raises:
      T2GError: the phase is not complete, or its record is damaged.
    """
    record = workspace.summary(phase).get("made")
    if record is None:
        raise _damaged(workspace, phase, "it does not say what the phase was made from")
    return _in_new_words(record)


def artifact(workspace: Workspace, phase: str) -> str:
    """The fingerprint of what a complete phase left.

    Raises:
      T2GError: the phase is not complete, or its record is damaged.
    """
    found = workspace.summary(phase).get("fingerprint")
    if not isinstance(found, str):
        raise _damaged(workspace, phase, "it has no fingerprint")
    return found


def last_step(workspace: Workspace, phase: str) -> int:
    """The step whose checkpoint a complete phase left.

    Raises:
      T2GError: its record is damaged, or that checkpoint is not there any more.
    """
    step = workspace.summary(phase).get("step")
    if type(step) is not int:
        raise _damaged(workspace, phase, "it does not say at which step the phase ended")
    folder = workspace.checkpoints(phase)
    there = sorted(int(path.name) for path in folder.glob("*") if path.name.isdecimal())
    if there and step not in there:
        raise T2GError(
            f"{folder} has no step {step} any more, with which {phase} was complete, but {there}: "
            f"put it back; or delete {workspace.phase(phase) / 'complete.json'} and run "
            f"`{command(phase)} CONFIG`, which goes on from step {there[-1]}"
        )
    return step


def differs(record: Made, config: Config, phase: str) -> list[str]:
    """What a phase was made with that a config says otherwise: "seed: 0, not 7"."""
    return [
        change.replace(" → ", ", not ")
        for change in base.differences(record["inputs"], inputs(phase, config))
    ]


def of_files(folder: Path) -> str:
    """16 hexadecimal digits that stand for the files in a folder."""
    digest = hashlib.sha256()
    files = [path for path in folder.rglob("*") if path.is_file()]
    for path in sorted(path for path in files if not path.name.startswith(".")):
        digest.update(f"{path.relative_to(folder)} {path.stat().st_size}\n".encode())
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()[:16]


def of_records(splits: Mapping[str, Sequence[AnnotationRecord]]) -> str:
    """16 hexadecimal digits that stand for annotations, in their order."""
    digest = hashlib.sha256()
    for name in sorted(splits):
        for record in splits[name]:
            line = json.dumps([name, record.to_json()], sort_keys=True)
            digest.update(line.encode("utf-8", "surrogatepass"))
    return digest.hexdigest()[:16]


def of_values(values: Mapping[str, Any]) -> str:
    """16 hexadecimal digits that stand for values by key."""
    canonical = json.dumps(dict(values), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def _of(keys: Sequence[str], config: Config) -> Iterable[tuple[str, Any]]:
    for key, value in base.values(config).items():
        if any(key == name or key.startswith(f"{name}.") for name in keys):
            yield key, value


def _in_new_words(record: Made) -> Made:
    """A record as it would be written now: what has another name since is no change."""
    return record | {"inputs": {key: new_value(key, v) for key, v in record["inputs"].items()}}


def _others(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """In words, what was there before and is not what is there now."""
    found = [
        f"another {name}/ than the one that is there"
        for name, value in before["parents"].items()
        if name in now["parents"] and now["parents"][name] != value
    ]
    found += [f"{name}/, which is gone" for name in before["parents"] if name not in now["parents"]]
    if before["tokenizer"] != now["tokenizer"]:
        found.append(_TOKENIZER)
    found += [
        f"another {key} than the one that is there"
        for key, value in before["bases"].items()
        if now["bases"].get(key, value) != value
    ]
    return found


def _damaged(workspace: Workspace, phase: str, what: str) -> T2GError:
    path = workspace.phase(phase) / "complete.json"
    return T2GError(
        f"{path} is damaged ({what}); delete it, and run `{command(phase)} CONFIG` to have it "
        "written again"
    )


def _begun_otherwise(where: Path, problem: str) -> T2GError:
    return T2GError(
        f"{where} was begun with {problem}; put back what it began with, or {_anew(where)}"
    )


def _anew(where: Path) -> str:
    return f"delete {where} to have it done again"
