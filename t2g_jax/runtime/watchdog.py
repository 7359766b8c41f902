"""Ends a process that makes no progress, and says where it was stuck.

A hanging process would hold its machines for days; and if it is one of several, the others wait for
it in a collective operation, each of them without progress. So every process has a watchdog, and
all of them end.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import jax

from t2g_jax.printing import tell
from t2g_jax.runtime.hosts import EXIT_LOST

_STDERR = 2
_last = time.monotonic()
_DELAY = 5.0
"""Seconds from the dump to the end: other processes of the run are about to dump theirs."""


def beat() -> None:
    """There is progress: a step, a batch of samples, an answer of the judge, a program compiled."""
    global _last
    _last = time.monotonic()


@contextlib.contextmanager
def watching(minutes: float, folder: str | os.PathLike[str]) -> Iterator[None]:
    """Inside, the process ends after so many minutes without a `beat`; 0: never.

    The stacks of all its threads go to stderr and, if the folder is there, to `folder`/stacks/, and
    it exits with status 70.
    If the interpreter itself is stuck, they go to stderr alone, a minute later, with status 1.

    What takes longer than that in one go must be allowed for: the compilation of one program, one
    answer of a judge, reading a checkpoint. They count as progress only when they end.
    """
    if not minutes:
        yield
        return
    over = threading.Event()
    jax.monitoring.register_event_duration_secs_listener(_compiled)
    beat()
    thread = threading.Thread(
        target=_watch, args=(60 * minutes, Path(folder), over), name="watchdog", daemon=True
    )
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        faulthandler.cancel_dump_traceback_later()
        jax.monitoring.unregister_event_duration_listener(_compiled)


def _watch(seconds: float, folder: Path, over: threading.Event) -> None:
    while (left := _last + seconds - time.monotonic()) > 0:
        # Should this thread not be let to run again: one of C, which needs nobody's leave.
        faulthandler.dump_traceback_later(left + 60, exit=True, file=_STDERR)
        if over.wait(min(left, 10.0)):
            return
    _end(seconds, folder)


def _end(seconds: float, folder: Path) -> None:
    try:
        name = f"process-{jax.process_index()}-{socket.gethostname()}-{os.getpid()}.txt"
        path = folder / "stacks" / name
        is_there = folder.is_dir()  # else it was moved, or not made yet
        tell(
            f"\nt2g: no progress for {seconds / 60:g} minutes (training.watchdog_minutes): ending. "
            f"What the process was doing{f' (also in {path})' if is_there else ''}:"
        )
        faulthandler.dump_traceback(_STDERR, all_threads=True)
        if is_there:
            path.parent.mkdir(exist_ok=True)
            with open(path, "w", encoding="utf-8") as file:
                faulthandler.dump_traceback(file, all_threads=True)
        time.sleep(_DELAY)
    finally:
        os._exit(EXIT_LOST)  # nothing that hangs can hold it up


def _compiled(event: str, duration_secs: float, **_: str | int) -> None:
    del event, duration_secs
    beat()
