"""The folder of a run: who wrote what where, and what is complete."""

from __future__ import annotations

import datetime
import json
import os
import re
import shutil
import socket
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from t2g_jax import user_code
from t2g_jax.config import (
    Config,
    changes,
    is_one_of,
    learned_changes,
    load_config,
    section_of,
    to_yaml,
)
from t2g_jax.errors import T2GError
from t2g_jax.run.claim import claimed, require_claims, writable
from t2g_jax.run.records import Begun, Evaluation, MethodSummary, Record, Summary
from t2g_jax.runtime import checked, durable, hosts
from t2g_jax.training import metrics

SFT, ANNOTATE, REWARD_MODEL = "sft", "annotate", "reward_model"
TRAINED = ("tokenizer.vocabulary_size", "tokenizer.texts")
"""What the tokenizer was trained with, which no later phase trains again."""
BEFORE_METHODS = (SFT, ANNOTATE, REWARD_MODEL)
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:/")
"""The start of what `Path` makes of "gs://bucket"."""


class Workspace:
    """Paths of a work directory, and a record of each complete phase.

        workdir/config.yaml             the config of the run
        workdir/folders.json            where modules and files are that it names
        workdir/config.<n>.yaml         what it was before the n-th change, see `accept_changes`
        workdir/run.lock                which process is writing here, see `claimed`
        workdir/tokenizer/              Hugging Face format
        workdir/<phase>/checkpoints/    state of a training phase
        workdir/<phase>/metrics.jsonl
        workdir/<phase>/samples/        completions for the report, if the method keeps any
        workdir/<phase>/complete.json   there when the phase is done: its summary
        workdir/rows.json               which rows the task `data` had, see `run.rows`
        workdir/quarantine/rows.jsonl   those of them that cannot be used, and why
        workdir/critiques.jsonl         what a judge said that is not the task's own program
        workdir/annotate/dataset/       TFDS dataset; journal.jsonl and quarantine.jsonl beside it
        workdir/<phase>/evaluation.json
        workdir/report.html

    Nothing is made by asking: the folder is the run's from `begin` on. Of the processes of a run
    the first writes, and says what is there; checkpoints are written by all. It must be one folder
    that all of them see.

    Args:
      root: the work directory.
      config: of this run; must be that of the run that lives here already, if there is one, but
        for what changes nothing that is learned.
      free: sections and fields that may differ, too: by those that learn nothing.

    Raises:
      T2GError: another config was used here before; the keys that differ are named, with their
        values. Or it is not a folder of a run.
    """

    def __init__(self, root: str | os.PathLike[str], config: Config, *, free: Sequence[str] = ()):
        self.root = Path(root)
        self.config = config
        hosts.broadcast_from_primary(lambda: self._check(free))

    def _check(self, free: Sequence[str]) -> None:
        if _URL.match(str(self.root)):
            raise T2GError(
                f"{self.root} is a URL; a work directory is a folder that this machine has: mount "
                "it, and give a --workdir below"
            )
        if not self._is_begun():
            return
        changed = [
            change
            for change in learned_changes(load_config(self.snapshot), self.config)
            if not is_one_of(change.partition(":")[0], free)
        ]
        if changed and self.has_work():
            shown = ", ".join(changed[:8]) + (" …" if len(changed) > 8 else "")
            raise T2GError(
                f"{self.root} holds a run with another config ({shown}); to go on with the new "
                "values add --accept-changes: phases that are complete stay as they are. Or "
                "give this run a --workdir of its own"
            )

    def _is_begun(self) -> bool:
        """Whether there is a config.yaml.

        Raises:
          T2GError: there is none, but what only runs have.
        """
        if self.snapshot.exists():
            return True
        names = ("tokenizer", *(self.phase(name).name for name in self.phases), self.report.name)
        if held := [name for name in names if (self.root / name).exists()]:
            raise T2GError(
                f"{self.root} holds {', '.join(held)}, but no config.yaml that says of which run: "
                "put that back, or give a --workdir of its own"
            )
        return False

    def begin(self) -> None:
        """Makes the folder that of this run, unless it is; called by those who write.

        If no work is in it yet, of whatever run, it is taken over.

        Raises:
          T2GError: the folder cannot be written to, or is not the same for all processes.
        """
        hosts.broadcast_from_primary(self._begin)
        if hosts.several():
            here = f"{self.root.resolve()} on {socket.gethostname()} is not the folder of the first"
            hosts.agree(
                None
                if _appears(self.snapshot)
                else f"{here} process: give a --workdir that all machines share"
            )

    def _begin(self) -> None:
        begun = self._is_begun()
        if begun and (self.has_work() or load_config(self.snapshot) == self.config):
            return
        with writable(self.root):
            if begun:
                shutil.rmtree(self.tokenizer, ignore_errors=True)  # of the other config
                _keep_written(self.snapshot)
            write_config(self.root, self.config)

    def has_work(self, name: str | None = None) -> bool:
        """Whether a phase, or any, has what would be lost: a checkpoint, notes, its completion."""
        return any(_has_work(self.phase(phase)) for phase in ([name] if name else self.phases))

    @property
    def phases(self) -> tuple[str, ...]:
        """All that may have a folder; those of methods are called as these."""
        return (*BEFORE_METHODS, *self.config.known_methods)

    @property
    def snapshot(self) -> Path:
        return self.root / "config.yaml"

    @property
    def tokenizer(self) -> Path:
        return self.root / "tokenizer"

    @property
    def dataset(self) -> Path:
        return self.phase(ANNOTATE) / "dataset"

    @property
    def critiques(self) -> Path:
        return self.root / "critiques.jsonl"

    @property
    def report(self) -> Path:
        return self.root / "report.html"

    def phase(self, name: str) -> Path:
        """Folder of a phase; a policy phase has the name of its method."""
        return self.root / section_of(name)

    def checkpoints(self, name: str) -> Path:
        return self.phase(name) / "checkpoints"

    def is_complete(self, name: str) -> bool:
        return hosts.broadcast_from_primary(lambda: (self.phase(name) / "complete.json").exists())

    def complete_phases(self) -> list[str]:
        return [name for name in self.phases if self.is_complete(name)]

    def complete(self, name: str, summary: dict[str, Any]) -> dict[str, Any]:
        """Records that a phase is done; the summary is what reports and later phases read.

        With it goes what stands for the log that the phase wrote, "log".
        """
        log = self.phase(name) / metrics.FILE
        found = hosts.broadcast_from_primary(
            lambda: metrics.checksum(log) if log.exists() else None
        )
        summary = summary | {"phase": name} | ({} if found is None else {"log": found})
        write_json(self.phase(name) / "complete.json", summary)
        return summary

    def summary(self, name: str) -> dict[str, Any]:
        """What `complete` recorded.

        Raises:
          T2GError: the phase is not complete, or the record is damaged; its command is named.
        """
        path = self.phase(name) / "complete.json"

        def recorded() -> dict[str, Any]:
            if not path.exists():
                raise T2GError(f"{path} is missing: first run `{command(name)} CONFIG`")
            shape = MethodSummary if name in self.config.known_methods else Summary
            return read_json(path, made_by=command(name), shape=shape)

        return hosts.broadcast_from_primary(recorded)


def _has_work(folder: Path) -> bool:
    notes = (folder / "journal.jsonl", folder / "quarantine.jsonl")
    return (
        (folder / "complete.json").exists()
        or any((folder / "checkpoints").glob("[0-9]*"))
        or any(path.exists() and path.stat().st_size for path in notes)
    )


def is_run(folder: str | os.PathLike[str]) -> bool:
    """Whether a folder is that of a run: it has a config.yaml, and what a run leaves beside it."""
    folder = Path(folder)
    names = ("run.lock", "tokenizer", SFT)
    return (folder / "config.yaml").is_file() and any((folder / name).exists() for name in names)


def accept_changes(root: str | os.PathLike[str], config: Config) -> list[str]:
    """Records a run's new config; what it was goes to config.<n>.yaml, with the time of the change.

    Phases that are complete stay as they are, one that is under way goes on from its last
    checkpoint with the new values.

    Returns:
      What changed, as "key: old → new"; nothing if nothing did, or there is no run yet.

    Raises:
      T2GError: another process is writing there.
    """
    return hosts.broadcast_from_primary(lambda: _accept(Path(root), config))


def _accept(root: Path, config: Config) -> list[str]:
    snapshot = root / "config.yaml"
    changed = changes(load_config(snapshot), config) if snapshot.exists() else []
    if changed:
        with claimed(root):
            if not any(_has_work(path) for path in root.iterdir()):
                shutil.rmtree(root / "tokenizer", ignore_errors=True)  # of the other config
            elif made := [line for line in changed if is_one_of(line.partition(":")[0], TRAINED)]:
                raise T2GError(
                    f"{root / 'tokenizer'} was trained already, and stays ({', '.join(made)}); "
                    "leave these values as they were, or give this run a --workdir of its own"
                )
            when = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
            about = [f"# Until {when}, when this changed:", *(f"#   {line}" for line in changed)]
            _keep(snapshot, "\n".join([*about, snapshot.read_text("utf-8")]))
            write_config(root, config)
    return changed


def write_config(root: Path, config: Config) -> None:
    """Writes the config of a run, and where the modules and files are that it names."""
    write_text(root / user_code.FOLDERS_NOTE, user_code.folders_note())
    write_text(root / "config.yaml", to_yaml(config))


def _keep(snapshot: Path, text: str) -> None:
    """Writes what a config was to the next config.<n>.yaml beside it."""
    names = [path.name for path in snapshot.parent.iterdir()]
    kept = [re.fullmatch(r"config\.(\d+)\.yaml", name) for name in names]
    number = 1 + max((int(match[1]) for match in kept if match), default=0)
    write_text(snapshot.with_name(f"config.{number}.yaml"), text)


def _keep_written(snapshot: Path) -> None:
    """Keeps a config that somebody wrote, with notes and all; one of ours can be made again."""
    text = snapshot.read_text("utf-8-sig")
    if text != to_yaml(load_config(snapshot)):
        _keep(snapshot, text)


def _appears(path: Path, seconds: float = 5.0) -> bool:
    """Whether a file is there; network file systems may show it somewhat later."""
    end = time.monotonic() + seconds
    while not path.exists():
        if time.monotonic() > end:
            return False
        time.sleep(0.1)
    return True


def best_by(config: Config) -> tuple[str, Literal["max", "min"]] | None:
    """`Checkpoints.keep_best` of a config, for the phases of methods."""
    name, best_is = config.checkpoint.keep_best, config.checkpoint.best_is
    return None if name is None else (name, best_is)


def command(name: str) -> str:
    """The command that makes a phase's artifacts."""
    fixed = {SFT: "t2g sft", ANNOTATE: "t2g annotate", REWARD_MODEL: "t2g train-rm"}
    return fixed.get(name, f"t2g train-policy --method {name}")


def read_json(path: Path, *, made_by: str, shape: Any = None) -> dict[str, Any]:
    """What a command wrote about a phase with `write_json`.

    Args:
      shape: what it must hold (see `records`). None: by the name of the file.

    Raises:
      T2GError: it is damaged, or not as it was written. One without a checksum is somebody's own.
    """
    shape = shape or _SHAPES.get(path.name, Record)
    mend = f"delete it, and run `{made_by} CONFIG` to have it written again"
    return checked.read(path, shape, mend=mend)


_SHAPES = {"complete.json": Summary, "evaluation.json": Evaluation, "begun.json": Begun}


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Writes an object, with a checksum that `read_json` looks at."""
    write_text(path, json.dumps(checked.sealed(value), indent=1, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """`durable.write_text`, by the first process; nowhere if a claimed folder is gone.

    Raises:
      T2GError: see `require_claims`.
    """
    require_claims()
    if hosts.is_primary():
        durable.write_text(path, text)
