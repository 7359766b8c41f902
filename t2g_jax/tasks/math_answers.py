"""Whether two mathematical answers are equal, by math-verify, in a process of its own.

math-verify parses whatever a model wrote and simplifies it with SymPy. Its own time limits are
signals, which only the main thread of a process may use and which compiled code does not heed, and
some expressions take all memory. In another process it can be stopped, and a crash is only its own.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import math
import os
import selectors
import subprocess
import sys
import threading
import weakref
from dataclasses import dataclass
from pathlib import Path

from t2g_jax.errors import T2GError
from t2g_jax.installation import pip_install

START_SECONDS = 120.0
"""For its imports, on a machine that is busy with something else."""
_WORKER = Path(__file__).with_name("math_worker.py")


@dataclass(frozen=True)
class Comparison:
    """Whether two answers agree, and whether a mathematical expression was found in each."""

    agrees: bool
    answer_found: bool
    found: bool


NOTHING = Comparison(agrees=False, answer_found=False, found=False)
"""What stopped, crashed, or took too long."""


class MathAnswers:
    """Compares answers; the process begins with the first comparison and ends with this object.

    Args:
      seconds: for each of the three steps of a comparison: reading the two, and comparing them.

    Raises:
      T2GError: math-verify is not installed.
    """

    def __init__(self, seconds: float = 5.0) -> None:
        if importlib.util.find_spec("math_verify") is None:
            raise T2GError(
                f"task: the reward `math` needs the math-verify package: {pip_install('math')}"
            )
        self.seconds = seconds
        self._worker: subprocess.Popen[str] | None = None
        self._lock = threading.Lock()

    def compare(self, answer: str, completion: str) -> Comparison:
        """Whether the final expression of a completion equals that of the answer."""
        limit = max(math.ceil(self.seconds), 1)  # signals count whole seconds
        asked = json.dumps({"answer": answer, "completion": completion, "seconds": limit})
        with self._lock:
            worker = self._started()
            try:
                worker.stdin.write(f"{asked}\n")
                worker.stdin.flush()
                reply = _line(worker, 3 * limit + 1)
            except OSError:  # it crashed
                reply = ""
            if not reply:
                self._end()
                return NOTHING
            return Comparison(**json.loads(reply))

    def _started(self) -> subprocess.Popen[str]:
        if self._worker is not None and self._worker.poll() is None:
            return self._worker
        worker = subprocess.Popen(
            [sys.executable, str(_WORKER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            start_new_session=True,  # Ctrl-C is for us; it ends when its input does
        )
        self._worker = worker
        weakref.finalize(self, _kill, worker)
        if _line(worker, START_SECONDS) != "ready\n":
            self._end()
            raise T2GError(
                "task: the reward `math` cannot be used: math-verify did not start; "
                "`python -c 'import math_verify'` shows why"
            )
        return worker

    def _end(self) -> None:
        if self._worker is not None:
            _kill(self._worker)
            self._worker = None


def _line(worker: subprocess.Popen[str], seconds: float) -> str:
    """The next line of its output; empty if it ended, or took longer."""
    with selectors.DefaultSelector() as selector:
        selector.register(worker.stdout, selectors.EVENT_READ)
        if not selector.select(seconds):
            return ""
    return worker.stdout.readline()  # whole, as a line is written at once


def _kill(worker: subprocess.Popen[str]) -> None:
    worker.kill()
    worker.wait()
    for stream in (worker.stdin, worker.stdout):
        with contextlib.suppress(OSError):  # what was not written yet has no reader
            stream.close()
