"""The folder of a run: who wrote what where, and what is complete."""

from __future__ import annotations

import contextlib
import datetime
import errno
import fcntl
import json
import os
import shutil
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from t2g_jax import durable, files, hosts
from t2g_jax.config import METHODS, Config, changes, config_hash, load_config, to_yaml
from t2g_jax.errors import T2GError
from t2g_jax.phases.records import Evaluation, MethodSummary, Record, Summary

SFT, ANNOTATE, REWARD_MODEL = "sft", "annotate", "reward_model"


class Workspace:
    """Paths of a work directory, and a record of each complete phase.

        workdir/config.yaml             the config of the run
        workdir/config.<n>.yaml         what it was before the n-th change, see `accept_changes`
        workdir/run.lock                which process is writing here, see `claimed`
        workdir/tokenizer/              Hugging Face format
        workdir/<phase>/checkpoints/    state of a training phase
        workdir/<phase>/metrics.jsonl
        workdir/<phase>/samples/        completions for the report, if the method keeps any
        workdir/<phase>/complete.json   there when the phase is done: its summary
        workdir/critiques.jsonl         what a judge said that is not the task's own program
        workdir/annotate/dataset/       TFDS dataset; journal.jsonl and quarantine.jsonl beside it
        workdir/<phase>/evaluation.json
        workdir/report.html

    Of the processes of a run the first writes, and says what is there; checkpoints are written by
    all. It must be one folder that all of them see.

    Args:
      root: the work directory; made if missing.
      config: of this run; must be that of the run that lives here already, if there is one.

    Raises:
      T2GError: another config was used here before; the keys that differ are named, with their
        values. Or the folder cannot be written to, or is not the same for all processes.
    """

    def __init__(self, root: str | os.PathLike[str], config: Config):
        self.root = Path(root)
        self.config = config
        hosts.from_first(self._open)
        if hosts.several():
            seen = _appears(self.root / "config.yaml")
            here = f"{self.root.resolve()} on {socket.gethostname()} is not the folder of the first"
            hosts.agree(
                None if seen else f"{here} process: give a --workdir that all machines share"
            )

    def _open(self) -> None:
        snapshot = self.root / "config.yaml"
        if snapshot.exists():
            changed = changes(load_config(snapshot), self.config)
            if changed:
                shown = ", ".join(changed[:8]) + (" …" if len(changed) > 8 else "")
                raise T2GError(
                    f"{self.root} holds a run with another config ({shown}); to go on with the new "
                    "values add --accept-changes: phases that are complete stay as they are. Or "
                    "give this run a --workdir of its own"
                )
        else:
            with _writable(self.root):
                write_text(snapshot, to_yaml(self.config))

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
        return self.root / name.replace("-", "_")

    def checkpoints(self, name: str) -> Path:
        return self.phase(name) / "checkpoints"

    def is_complete(self, name: str) -> bool:
        return hosts.from_first(lambda: (self.phase(name) / "complete.json").exists())

    def complete(self, name: str, summary: dict[str, Any]) -> dict[str, Any]:
        """Records that a phase is done; the summary is what reports read."""
        summary = summary | {"phase": name, "config": config_hash(self.config)}
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
            shape = MethodSummary if name in METHODS else Summary
            return read_json(path, made_by=command(name), shape=shape)

        return hosts.from_first(recorded)


def accept_changes(root: str | os.PathLike[str], config: Config) -> list[str]:
    """Records a run's new config; what it was goes to config.<n>.yaml, with the time of the change.

    Phases that are complete stay as they are, one that is under way goes on from its last
    checkpoint with the new values.

    Returns:
      What changed, as "key: old → new"; nothing if nothing did, or there is no run yet.

    Raises:
      T2GError: another process is writing there.
    """
    return hosts.from_first(lambda: _accept(Path(root), config))


def _accept(root: Path, config: Config) -> list[str]:
    snapshot = root / "config.yaml"
    changed = changes(load_config(snapshot), config) if snapshot.exists() else []
    if changed:
        with claimed(root):
            number = 1 + sum(1 for _ in root.glob("config.*.yaml"))
            when = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
            about = [f"# Until {when}, when this changed:", *(f"#   {line}" for line in changed)]
            kept = snapshot.read_text("utf-8")
            write_text(root / f"config.{number}.yaml", "\n".join([*about, kept]))
            write_text(snapshot, to_yaml(config))
    return changed


_claims: dict[Path, tuple[IO[bytes], int]] = {}


@contextlib.contextmanager
def claimed(root: str | os.PathLike[str]) -> Iterator[None]:
    """Inside, no other process writes to a work directory; it may read there.

    Phases claim it, and a process may claim it again while it has it. The claim ends with the
    process, however it ends. Of the processes of a run the first claims.

    Raises:
      T2GError: another process has it (it is named), or the folder cannot be written to.
    """
    root = Path(root).resolve()
    file, times = _claims.get(root, (None, 0))
    if file is None:
        claimed_by_first: list[IO[bytes]] = []
        hosts.from_first(lambda: claimed_by_first.append(_claim(root)))
        file = claimed_by_first.pop() if claimed_by_first else open(os.devnull, "rb")
    _claims[root] = file, times + 1
    try:
        yield
    finally:
        file, times = _claims.pop(root)
        if times > 1:
            _claims[root] = file, times - 1
        else:
            file.close()


def is_claimed(root: str | os.PathLike[str]) -> bool:
    """Whether this process has claimed a work directory."""
    return Path(root).resolve() in _claims


def _claim(root: Path) -> IO[bytes]:
    with _writable(root):
        root.mkdir(parents=True, exist_ok=True)
        # Without a buffer: what a full disk does not take is not tried again on closing.
        file = open(root / "run.lock", "ab+", buffering=0)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        holder = file.read().decode(errors="replace").strip() or "another process"
        file.close()
        raise T2GError(
            f"{root} is in use by {holder}; wait for it, stop it, or give this run a --workdir of "
            "its own"
        ) from None
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
            raise  # some network file systems have no locks; the run is then on its honour
    since = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    file.truncate(0)
    command_line = " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])[:200]
    who = f"process {os.getpid()} on {socket.gethostname()}"
    file.write(f"{who} ({command_line}; since {since})\n".encode())
    for left in root.glob("tokenizer.*.partial"):  # by a process that was killed
        shutil.rmtree(left, ignore_errors=True)
    return file


def _appears(path: Path, seconds: float = 5.0) -> bool:
    """Whether a file is there; network file systems may show it somewhat later."""
    end = time.monotonic() + seconds
    while not path.exists():
        if time.monotonic() > end:
            return False
        time.sleep(0.1)
    return True


@contextlib.contextmanager
def _writable(root: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise T2GError(
            f"cannot write to the work directory {root}: {error.strerror}; give a --workdir that "
            "you may write to"
        ) from error


def command(name: str) -> str:
    """The command that makes a phase's artifacts."""
    fixed = {SFT: "t2g sft", ANNOTATE: "t2g annotate", REWARD_MODEL: "t2g train-rm"}
    return fixed.get(name, f"t2g train-policy --method {name}")


def read_json(path: Path, *, made_by: str, shape: Any = None) -> dict[str, Any]:
    """What a command wrote about a phase with `write_json`.

    Args:
      shape: what it must hold (see `records`). None: by the name of the file.

    Raises:
      T2GError: it is damaged.
    """
    shape = shape or _SHAPES.get(path.name, Record)
    mend = f"delete it, and run `{made_by} CONFIG` to have it written again"
    return files.read_json(path, shape, mend=mend)


_SHAPES = {"complete.json": Summary, "evaluation.json": Evaluation}


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """`durable.write_text`, by the first process."""
    if hosts.is_first():
        durable.write_text(path, text)
