"""The log of a run: JSON lines that survive a restart without gaps or repeats, and stage times."""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
import typing
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import pydantic

from t2g_jax.errors import T2GError
from t2g_jax.runtime import checked, durable, files

FILE = "metrics.jsonl"
_NOT_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


class MetricsWriter:
    """Appends one JSON object a step to `<directory>/metrics.jsonl`.

    Every line has "step", "phase" and "seconds" (wall time since the run began, restarts included,
    the time between them not), then the metrics. Numbers that JSON does not know are written as
    the strings "NaN", "Infinity" and "-Infinity"; `read_metrics` turns them back.

    Args:
      directory: the run's folder.
      phase: written on every line.
      resumed_step: the step of the checkpoint that the run continues from; lines of later steps
        are dropped, as they will be written again. None: the run begins, and no line is kept.
      enabled: False writes nothing, for all processes but the first.

    Raises:
      T2GError: the log to continue is damaged (the line is named), or lacks steps before the one
        resumed from.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        phase: str,
        resumed_step: int | None = None,
        enabled: bool = True,
    ):
        self.path = Path(directory) / FILE
        self._phase = phase
        self._file = None
        before = 0.0
        if enabled:
            kept = [] if resumed_step is None else whole_log(self.path, resumed_step)
            before = max((line["seconds"] for line in kept), default=0.0)
            durable.write_text(self.path, "".join(map(_line, kept)))
            self._file = open(self.path, "a", encoding="utf-8")
        self._began = time.monotonic() - before

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Appends a line.

        Args:
          step: optimizer step that the metrics belong to.
          metrics: scalars (Python, NumPy or JAX), text or None, by name.

        Raises:
          T2GError: a value is not a scalar, or a name is taken by the line itself.
        """
        if self._file is None:
            return
        line = {
            "step": int(step),
            "phase": self._phase,
            "seconds": round(time.monotonic() - self._began, 3),
        }
        for name, value in metrics.items():
            if name in line:
                raise T2GError(f"metric {name!r} has the name of a column of the log; rename it")
            line[name] = _scalar(name, value)
        self._file.write(_line(line))
        self._file.flush()

    def sync(self) -> None:
        """Forces all lines to disk; a checkpoint must not outlive the lines before it."""
        if self._file is not None:
            os.fsync(self._file.fileno())

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(self, *_) -> None:
        self.close()


def read_metrics(
    path: str | os.PathLike[str],
    *,
    numbers: Collection[str] = (),
    needed: Collection[str] = (),
) -> list[dict[str, Any]]:
    """The lines of a log, oldest first; a last line that was cut short is left out.

    Args:
      path: a `metrics.jsonl`, or the folder that holds it.
      numbers: metrics, or beginnings of their names, that must be numbers (or None) where they
        are. needed: those that every line must have, as numbers.

    Raises:
      T2GError: there is no log, or a line is damaged (file and line are named).
    """
    path = Path(path)
    path = path / FILE if path.is_dir() and path.name != FILE else path
    if not path.exists():
        raise T2GError(f"no metrics in {path}; correct the path, or run the phase that writes it")
    lines = []
    for number, line in files.read_jsonl(path, _Line, mend="delete it"):
        line = {k: _NOT_FINITE.get(v, v) if isinstance(v, str) else v for k, v in line.items()}
        for name, value in (dict.fromkeys(needed) | line).items():
            counts = name in needed or (value is not None and name.startswith(tuple(numbers)))
            if counts and type(value) not in (int, float):
                what = f"`{name}` is {value!r:.60}, and no number"
                raise files.damaged(f"{path}, line {number}", what, "put it back as it was")
        lines.append(line)
    return lines


def _of_a_step(line: dict[str, Any]) -> dict[str, Any]:
    if type(line.get("step")) is not int or line["step"] < 0:
        raise ValueError("`step` is no step")
    seconds = line.get("seconds")
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or seconds < 0:
        raise ValueError("`seconds` are no time")
    return line


_Line = typing.Annotated[
    dict[str, bool | int | float | str | None], pydantic.AfterValidator(_of_a_step)
]


def checksum(path: Path) -> str:
    """What stands for the lines of a log, times aside; see `checked`. Raises as `read_metrics`."""
    return checked.checksum([line for _, line in files.read_jsonl(path, _Line, mend="delete it")])


def whole_log(path: Path, steps: int) -> list[dict[str, Any]]:
    """The lines of steps 1 to `steps`; what comes after them is left out.

    Raises:
      T2GError: a step is missing, or there twice; it is named, with the way out.
    """
    lines = read_metrics(path) if path.exists() else []
    kept = [line for line in lines if line["step"] <= steps]
    found = [line["step"] for line in kept]
    if len(found) == steps and found == list(range(1, len(found) + 1)):
        return kept
    there = set(found)
    absent = next((step for step in range(1, steps + 1) if step not in there), None)
    what = f"has no line of step {absent}" if absent else "has its steps twice, or in disorder"
    raise T2GError(
        f"{path} {what if lines else 'is missing'}, but the checkpoint to go on from is of step "
        f"{steps}: its tokens and seconds would not be counted. Put it back as it was, or delete "
        f"{path.parent} to have the whole phase done again"
    )


class Stopwatch:
    """Seconds by stage of a step, for tokens per second in the log.

    >>> watch = Stopwatch()
    >>> with watch.stage("sample"):
    ...     pass
    >>> list(watch.lap())
    ['sample']

    JAX returns before the device is done: block on the results inside the stage.
    """

    def __init__(self):
        self._seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Adds the time spent inside to `name`, also when it raises."""
        began = time.perf_counter()
        try:
            yield
        finally:
            spent = time.perf_counter() - began
            self._seconds[name] = self._seconds.get(name, 0.0) + spent

    def lap(self) -> dict[str, float]:
        """The seconds by stage since the last lap, in the order the stages were first entered."""
        seconds, self._seconds = self._seconds, {}
        return seconds


def _scalar(name: str, value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if getattr(value, "size", None) == 1 and hasattr(value, "item"):
        return value.item()
    kind = f"{type(value).__name__} of shape {getattr(value, 'shape', None)}"
    raise T2GError(f"metric {name!r} is a {kind}; log a scalar, such as its mean")


def _line(line: Mapping[str, Any]) -> str:
    def writable(value):
        if not isinstance(value, float) or math.isfinite(value):
            return value
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"

    return json.dumps({k: writable(v) for k, v in line.items()}, allow_nan=False) + "\n"
