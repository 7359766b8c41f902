"""Who writes to a work directory: one run at a time, and only while it is where it was."""

from __future__ import annotations

import contextlib
import datetime
import os
import shutil
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from t2g_jax.errors import T2GError
from t2g_jax.runtime import hosts
from t2g_jax.runtime.locks import lock

_claims: dict[Path, _Claim | None] = {}


@contextlib.contextmanager
def claimed(root: str | os.PathLike[str]) -> Iterator[None]:
    """Inside, no other process writes to a work directory; it may read there.

    Phases claim it, and a process may claim it again while it has it. The claim ends with the
    process, however it ends. Of the processes of a run the first claims. A folder that nothing was
    written to is left as it was found.

    Raises:
      T2GError: another process has it (it is named), or the folder cannot be written to, or is not
        there any more.
    """
    root = Path(root).resolve()
    if root in _claims:
        require_claims()
        yield
        return
    claims: list[_Claim] = []
    hosts.broadcast_from_primary(lambda: claims.append(_Claim(root)))
    _claims[root] = claims[0] if claims else None
    try:
        yield
    finally:
        del _claims[root]
        for claim in claims:
            claim.release()


def is_claimed(root: str | os.PathLike[str]) -> bool:
    """Whether this process has claimed a work directory."""
    return Path(root).resolve() in _claims


def require_claims() -> None:
    """Checks that the folders that this process has claimed are still there, and still its own.

    Raises:
      T2GError: one was moved, deleted, replaced, or claimed by another process.
    """
    for claim in _claims.values():
        if claim is not None:
            claim.check()


@contextlib.contextmanager
def writable(root: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise T2GError(
            f"cannot write to the work directory {root}: {error.strerror}; give a --workdir that "
            "you may write to"
        ) from error


class _Claim:
    """The first process's hold on a work directory: of the folder itself, and of run.lock in it.

    The folder's own lock outlives a deleted run.lock; run.lock holds where folders cannot be locked
    (NFS), and names the process.

    Raises:
      T2GError: another process has it (it is named), or the folder cannot be written to.
    """

    def __init__(self, root: Path):
        self.root = root
        missing = [path for path in (root, *root.parents) if not path.exists()]
        with writable(root):
            root.mkdir(parents=True, exist_ok=True)
            self._held = {path.name for path in root.iterdir()}
            self._made = [root / "run.lock", *missing]
            self._folder = os.open(root, os.O_RDONLY)
        try:
            if not lock(self._folder):
                raise self._in_use()
            with writable(root):
                self._file = self._locked_file()
        except BaseException:
            os.close(self._folder)
            raise
        for left in root.glob("tokenizer.*.partial"):  # by a process that was killed
            shutil.rmtree(left, ignore_errors=True)

    def check(self) -> None:
        """Raises T2GError if the folder is not where it was any more, or another process has it."""
        if not self._is_there():
            raise T2GError(
                f"{self.root} was moved, deleted or replaced while this run wrote to it"
                f"{self._now()}; what was saved before is there: go on with the same command and "
                "that --workdir"
            )
        if not _is(self._file.fileno(), self.root / "run.lock"):  # it was deleted
            file = self._locked_file()
            self._file.close()
            self._file = file

    def release(self) -> None:
        """Another process may claim the folder; if nothing was made in it, it is as it was."""
        new = {"run.lock"} - self._held
        if new and self._is_there() and {p.name for p in self.root.iterdir()} == self._held | new:
            with contextlib.suppress(OSError):
                for path in self._made:  # run.lock, then folders from the innermost
                    path.rmdir() if path.is_dir() else path.unlink()
        self._file.close()
        os.close(self._folder)

    def _locked_file(self) -> IO[bytes]:
        # Without a buffer: what a full disk does not take is not tried again on closing.
        file = open(self.root / "run.lock", "ab+", buffering=0)
        if not lock(file.fileno()):
            file.close()
            raise self._in_use()
        since = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        file.truncate(0)
        command_line = " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])[:200]
        who = f"process {os.getpid()} on {socket.gethostname()}"
        self._said = f"{who} ({command_line}; since {since})\n".encode(errors="replace")
        file.write(self._said)
        return file

    def _is_there(self) -> bool:
        if _is(self._folder, self.root):
            return True
        try:  # some file systems number folders anew
            return (self.root / "run.lock").read_bytes() == self._said
        except OSError:
            return False

    def _in_use(self) -> T2GError:
        holder = ""
        with contextlib.suppress(OSError):
            holder = (self.root / "run.lock").read_text("utf-8", "replace").strip()
        return T2GError(
            f"{self.root} is in use by {holder or 'another process'}; wait for it, stop it, or "
            "give this run a --workdir of its own"
        )

    def _now(self) -> str:
        """Where the folder is now, if the system can tell."""
        try:
            path = Path(os.readlink(f"/proc/self/fd/{self._folder}"))
        except OSError:
            return ""
        return f" (it is now {path})" if path.exists() else ""


def _is(descriptor: int, path: Path) -> bool:
    """Whether a path still leads to what was opened."""
    try:
        there = os.stat(path)
    except OSError:
        return False
    return os.path.samestat(os.fstat(descriptor), there)
