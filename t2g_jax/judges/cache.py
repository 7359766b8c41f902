"""Critiques on disk: a judge that is paid or waited for is asked once about a completion.

A run that goes on after it was stopped meets the same completions again, and a policy repeats
itself; both then get the critique that was given before, bit for bit, though the judge might say
something else today.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from t2g_jax.errors import T2GError
from t2g_jax.judges.batches import AnyJudge
from t2g_jax.runtime import checked, files
from t2g_jax.tasks.base import Critique, Example, plain_text

MAX_LINE = 1_000_000
"""Bytes of a line: JSON of the longest critique. Longer ones are neither written nor read."""


class CritiqueCache:
    """Append-only JSON lines, {"key", "critique"}, one for each critique, with their
    checksums (`checked`).

    The key is a hash of who was asked (`identity_of`), prompt, answer, metadata and completion.
    Failures are not kept: they are asked about again. A line that was cut short by a kill, or whose
    checksum does not fit, counts as not there. One process writes; what it wrote is with the
    operating system before `put` returns, and on disk within a second or so.

    Args:
      path: the file; made with the first critique, in a folder that is there.
      identity: of the judge. Critiques of another are in the same file, and are not found.
      writes: whether anything may be written; else what is there is read alone.
    """

    def __init__(self, path: str | os.PathLike[str], identity: str, *, writes: bool = True):
        self.path, self.identity = Path(path), identity
        self._writes = writes
        self._where: dict[str, int] = {}
        self._read_to = 0
        self._synced = time.monotonic()

    def get(self, example: Example, completion: str) -> Critique | None:
        """The critique that was given of a completion, if one was."""
        key = self.key(example, completion)
        self._look()
        if key not in self._where or not self.path.exists():
            return None
        with self._opened() as file:
            file.seek(self._where[key])
            entry = _entry(file.readline(MAX_LINE + 1))
        if entry is None or entry.get("key") != key:  # it was changed since
            return None
        return Critique.from_dict(entry["critique"])

    def put(self, example: Example, completion: str, critique: Critique) -> None:
        """Keeps a critique, unless there is one, or the folder is gone (other writers say so)."""
        key = self.key(example, completion)
        self._look()
        line = checked.line({"key": key, "critique": critique.to_dict()})
        if not self._writes or key in self._where or len(line) > MAX_LINE:
            return
        if not self.path.parent.is_dir():
            return
        with open(self.path, "ab") as file:
            # After a line that was cut short, ours begins anew.
            gap = b"\n" if file.tell() > self._read_to else b""
            self._where[key] = file.tell() + len(gap)
            file.write(gap + line)
            file.flush()
            self._read_to = file.tell()
            if time.monotonic() - self._synced > 1:
                os.fsync(file.fileno())
                self._synced = time.monotonic()

    def key(self, example: Example, completion: str) -> str:
        """What a critique is found by."""
        about = [self.identity, example.prompt, example.answer, example.metadata, completion]
        text = json.dumps(about, sort_keys=True, default=repr)
        return hashlib.sha256(text.encode()).hexdigest()

    def __len__(self) -> int:
        self._look()
        return len(self._where)

    def _opened(self) -> IO[bytes]:
        try:
            return open(self.path, "rb")
        except OSError as error:
            raise files.unreadable(self.path, error, "put it back, or delete it") from error

    def _look(self) -> None:
        """Reads the lines that were added since the last look; other phases write there too."""
        if not self.path.exists() or self.path.stat().st_size <= self._read_to:
            return
        with self._opened() as file:
            file.seek(self._read_to)
            while line := file.readline(MAX_LINE + 1):
                if not line.endswith(b"\n"):
                    if len(line) <= MAX_LINE:  # the last one, cut short
                        break
                    while line and not line.endswith(b"\n"):  # no line of ours
                        line = file.readline(MAX_LINE + 1)
                elif (key := _key(line)) is not None:
                    self._where.setdefault(key, self._read_to)
                self._read_to = file.tell()


def identity_of(
    judge: AnyJudge, name: str, level: str, settings: Mapping[str, Any] | None = None
) -> str:
    """Who is asked, as a hash: the name and settings in the config, how much it is to say, its own
    name, the text of the file that it is defined in, and its own `settings`, if it has any.

    A judge whose critiques depend on more (a model, a prompt, a temperature) says so in an
    attribute `settings`, anything that `repr` shows; when that changes, it is asked anew.
    """
    try:
        code = Path(inspect.getfile(type(judge))).read_bytes()
    except (OSError, TypeError):  # it has no file
        code = b""
    its_own = plain_text(repr(getattr(judge, "settings", None)), 100_000)
    called = plain_text(getattr(judge, "name", ""), 1000)
    about = [name, level, called, hashlib.sha256(code).hexdigest(), its_own, dict(settings or {})]
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


def _entry(line: bytes) -> dict[str, Any] | None:
    """What a line says, if it is whole and says what was written."""
    try:
        return checked.read_line(line, where="")
    except T2GError:
        return None


def _key(line: bytes) -> str | None:
    entry = _entry(line)
    return None if entry is None or not isinstance(entry.get("key"), str) else entry["key"]
