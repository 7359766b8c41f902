"""Append-only JSON lines: what a long annotation has done so far, and what it had to give up."""

from __future__ import annotations

import collections
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

from t2g_jax.errors import T2GError
from t2g_jax.runtime import checked, files
from t2g_jax.runtime.locks import lock

SYNC_SECONDS = 1.0
"""What is written is forced to disk as often as this, at most."""


class _Lines:
    """JSON lines with checksums, see `checked`; a file that one process writes, from one thread.

    Opening it drops a last line that was cut short, and has each entry noted.

    Raises:
      T2GError: another process has it open, or a line is not as it was written.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._file = open(self.path, "a+b")
        except OSError as error:
            raise files.unreadable(self.path, error) from error
        try:
            if not lock(self._file.fileno()):
                raise T2GError(
                    f"{self.path} is being written by another process; wait for it, or stop it"
                )
            self._file.truncate(_whole_lines(self._file))
            self._synced = time.monotonic()
            for number, entry in _entries(self.path):
                self._note(entry, f"{self.path}, line {number}")
        except BaseException:
            self._file.close()
            raise

    def _note(self, entry: Mapping[str, Any], where: str) -> None:
        raise NotImplementedError

    def _append(self, entry: Mapping[str, Any]) -> None:
        self._file.write(checked.line(entry))
        self._file.flush()
        self._note(entry, str(self.path))
        if time.monotonic() - self._synced >= SYNC_SECONDS:
            self._sync()

    def _sync(self) -> None:
        os.fsync(self._file.fileno())
        self._synced = time.monotonic()

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """The entries in the order they were appended, read from the file."""
        return (entry for _, entry in _entries(self.path))

    def close(self) -> None:
        if not self._file.closed:
            self._sync()
            self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_) -> None:
        self.close()


class Journal(_Lines):
    """One JSON object a line, each with an "id" of its own; survives being killed at any byte.

    Every entry is handed to the operating system before `append` returns, so it outlives the
    process; it is forced to disk with the others of the last `SYNC_SECONDS`, so at most those are
    lost with the machine.

    `done` is the set of ids in the journal.

    Raises:
      T2GError: another process has the journal open; or a line is not an entry, is not as it was
        written, or repeats an id (the file and line are named).
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.done: set[str] = set()
        super().__init__(path)

    def append(self, entry: Mapping[str, Any]) -> None:
        """Raises T2GError if the entry has no "id", or one that is done."""
        if _id(entry, str(self.path)) in self.done:
            raise T2GError(f"{self.path}: id {entry['id']!r} is done; skip the ids in `done`")
        self._append(entry)

    def _note(self, entry: Mapping[str, Any], where: str) -> None:
        if _id(entry, where) in self.done:
            raise T2GError(
                f"{where}: id {entry['id']!r} is there before; delete one of the two lines"
            )
        self.done.add(entry["id"])

    def __len__(self) -> int:
        return len(self.done)


class Quarantine(_Lines):
    """Records that could not be used, in JSON lines: {"id", "reason", "payload"}.

    `reason` is short and from a small set, as it is counted; details go into the payload. An id may
    come again, once per attempt. Durable, and opened again, as a `Journal`.

    `counts` is a Counter by reason; `ids` the set of ids.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.counts: collections.Counter[str] = collections.Counter()
        self.ids: set[str] = set()
        super().__init__(path)

    def add(self, id: str, reason: str, payload: Any) -> None:
        """Records why `id` cannot be used; the payload is whatever is needed to look into it."""
        self._append({"id": id, "reason": reason, "payload": payload})

    def _note(self, entry: Mapping[str, Any], where: str) -> None:
        self.ids.add(_id(entry, where))
        if not isinstance(entry.get("reason"), str):
            raise T2GError(f'{where}: the entry has no "reason" text; delete it')
        self.counts[entry["reason"]] += 1

    def __len__(self) -> int:
        return self.counts.total()


def _whole_lines(file) -> int:
    """The length in bytes of the file up to its last newline, found from the end."""
    end = file.seek(0, os.SEEK_END)
    while end > 0:
        start = max(end - (1 << 16), 0)
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
