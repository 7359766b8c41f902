"""Append-only JSON lines: what a long annotation has done so far, and what it had to give up."""

from __future__ import annotations

import collections
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from t2g_jax.errors import T2GError
from t2g_jax.runtime import checked, files
from t2g_jax.runtime.locks import lock


class Journal:
    """One JSON object a line, each with an "id" of its own; survives being killed at any byte.

    Lines have checksums, see `checked`, so that one that was changed is noticed.
    Every entry is handed to the operating system before `append` returns, so it outlives the
    process; it is forced to disk with the others of the last `sync_seconds`, so at most those are
    lost with the machine. Opening a journal again drops a last line that was cut short. One process
    writes, from one thread.

    `done` is the set of ids in the journal.

    Raises:
      T2GError: another process has the journal open; or a line is not an entry, is not as it was
        written, or repeats an id (the file and line are named).
    """

    def __init__(self, path: str | os.PathLike[str], *, sync_seconds: float = 1.0):
        self.path = Path(path)
        self._file = _AppendOnly(self.path, sync_seconds)
        self.done: set[str] = set()
        try:
            for number, entry in _entries(self.path):
                if _id(entry, f"{self.path}, line {number}") in self.done:
                    raise T2GError(
                        f"{self.path}, line {number}: id {entry['id']!r} is there before; "
                        f"delete one of the two lines"
                    )
                self.done.add(entry["id"])
        except T2GError:
            self._file.close()
            raise

    def append(self, entry: Mapping[str, Any]) -> None:
        """Raises T2GError if the entry has no "id", or one that is done."""
        if _id(entry, str(self.path)) in self.done:
            raise T2GError(f"{self.path}: id {entry['id']!r} is done; skip the ids in `done`")
        self._file.append(entry)
        self.done.add(entry["id"])

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """The entries in the order they were appended, read from the file."""
        return (entry for _, entry in _entries(self.path))

    def __len__(self) -> int:
        return len(self.done)

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_) -> None:
        self.close()


class Quarantine:
    """Records that could not be used, in JSON lines: {"id", "reason", "payload"}.

    `reason` is short and from a small set, as it is counted; details go into the payload. An id may
    come again, once per attempt. Durable, and opened again, as a `Journal`.

    `counts` is a Counter by reason; `ids` the set of ids.
    """

    def __init__(self, path: str | os.PathLike[str], *, sync_seconds: float = 1.0):
        self.path = Path(path)
        self._file = _AppendOnly(self.path, sync_seconds)
        self.counts: collections.Counter[str] = collections.Counter()
        self.ids: set[str] = set()
        try:
            for number, entry in _entries(self.path):
                self.ids.add(_id(entry, f"{self.path}, line {number}"))
                if not isinstance(entry.get("reason"), str):
                    raise T2GError(
                        f'{self.path}, line {number}: the entry has no "reason" text; delete it'
                    )
                self.counts[entry["reason"]] += 1
        except T2GError:
            self._file.close()
            raise

    def add(self, id: str, reason: str, payload: Any) -> None:
        """Records why `id` cannot be used; the payload is whatever is needed to look into it."""
        self._file.append({"id": id, "reason": reason, "payload": payload})
        self.ids.add(id)
        self.counts[reason] += 1

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (entry for _, entry in _entries(self.path))

    def __len__(self) -> int:
        return self.counts.total()

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Quarantine:
        return self

    def __exit__(self, *_) -> None:
        self.close()


class _AppendOnly:
    """A locked file of lines. Opening it drops a last line without its newline."""

    def __init__(self, path: Path, sync_seconds: float):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._file = open(path, "a+b")
        except OSError as error:
            raise files.unreadable(path, error) from error
        if not lock(self._file.fileno()):
            self._file.close()
            raise T2GError(f"{path} is being written by another process; wait for it, or stop it")
        self._file.truncate(_whole_lines(self._file))
        self._sync_seconds, self._synced = sync_seconds, time.monotonic()

    def append(self, entry: Mapping[str, Any]) -> None:
        self._file.write(checked.line(entry))
        self._file.flush()
        if time.monotonic() - self._synced >= self._sync_seconds:
            self._sync()

    def close(self) -> None:
        if not self._file.closed:
            self._sync()
            self._file.close()

    def _sync(self) -> None:
        os.fsync(self._file.fileno())
        self._synced = time.monotonic()


def _whole_lines(file, block: int = 1 << 16) -> int:
    """The length in bytes of the file up to its last newline, found from the end."""
    end = file.seek(0, os.SEEK_END)
    while end > 0:
        start = max(end - block, 0)
        file.seek(start)
        newline = file.read(end - start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        end = start
    return 0


def _entries(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    mend = "repair it, or delete the line to have that record done again"
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            yield number, checked.read_line(line, where=f"{path}, line {number}", mend=mend)


def _id(entry: Mapping[str, Any], where: str) -> str:
    if not isinstance(entry.get("id"), str):
        raise T2GError(f'{where}: the entry has no "id" text; give it one')
    return entry["id"]
