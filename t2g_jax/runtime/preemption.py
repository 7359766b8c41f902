"""SIGTERM, which machines send before they go away: what is under way is finished and saved."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator

import numpy as np
from jax.experimental import multihost_utils

from t2g_jax.runtime import hosts
from t2g_jax.runtime.hosts import EXIT_PREEMPTED

__all__ = ["EXIT_PREEMPTED", "Preempted", "asked", "finishing", "stop_if_asked", "watched"]


class Preempted(BaseException):
    """The run was asked to stop, and did; no error, so that no `except Exception` takes it for one.

    All that was made is saved, and the same command goes on from there.
    """


_asked = False
_finishing = 0


@contextlib.contextmanager
def watched() -> Iterator[None]:
    """Inside, a first SIGTERM raises `Preempted`: at once, or at the end of `finishing`.

    One of several processes goes on to the next `stop_if_asked`, where all of them stop. A second
    one, or SIGINT after the first, ends the process at once, even in the middle of a
    compilation. Outside the main thread, which alone may handle signals, this does nothing.
    """
    global _asked
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    signal.signal(signal.SIGTERM, _on_sigterm)
    try:
        yield
    finally:
        _asked = False
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


@contextlib.contextmanager
def finishing() -> Iterator[None]:
    """Work that comes to its own end after a SIGTERM: it asks `asked` when it can stop.

    Raises:
      Preempted: on leaving, if SIGTERM came.
    """
    global _finishing
    _finishing += 1
    try:
        yield
    finally:
        _finishing -= 1
    stop_if_asked()


def asked() -> bool:
    """Whether any process of the run got SIGTERM. All processes ask at the same points."""
    global _asked
    if not hosts.several():
        return _asked
    agreed = bool(np.any(multihost_utils.process_allgather(np.array(_asked))))
    if agreed:
        _asked = True  # else it stays: it may have become true meanwhile, for the next time
    return agreed


def stop_if_asked() -> None:
    """Where a phase can stop, so that all processes do: not inside `finishing`.

    Raises:
      Preempted: any process of the run got SIGTERM.
    """
    if not _finishing and asked():
        raise Preempted


def _on_sigterm(number: int, frame: object) -> None:
    global _asked
    _asked = True
    # The kernel's own way: Python would wait for a compilation to end before it saw the second.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    line = "\nt2g: SIGTERM: finishing this step and saving; once more to stop at once\n"
    waits = _finishing or hosts.several()
    os.write(2, line.encode() if waits else b"")  # `print` is not for signal handlers
    if not waits:
        raise Preempted
