"""Copies of the log for TensorBoard and Weights & Biases, for those who ask for them.

The JSON lines (`metrics`) are the log; a tracker is told the same numbers under the same names. The
packages behind them are extras and imported only when asked for.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import re
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from t2g_jax.config import Config
from t2g_jax.errors import T2GError
from t2g_jax.installation import import_extra
from t2g_jax.runtime import durable, files
from t2g_jax.training import metrics


class Tracker(Protocol):
    """Where numbers go."""

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """The numbers of a step; steps come in order."""

    def close(self, *, failed: bool) -> None:
        """Everything is written; `failed`: the phase was stopped by an exception."""


@contextlib.contextmanager
def opened(
    config: Config,
    workdir: Path,
    folder: Path,
    phase: str,
    *,
    resumed_step: int | None,
    enabled: bool = True,
) -> Iterator[Trackers]:
    """The trackers that a config asks for, until the phase ends. To be opened before its log is.

    Args:
      folder: of the phase, with its `metrics.jsonl` if it goes on.
      resumed_step: of the checkpoint that the phase goes on from, None if it begins.
      enabled: False opens none, for all processes but the first.

    Raises:
      T2GError: the package of a tracker is missing, or it cannot begin; what to do is named.
    """
    settings = config.tracking
    tensorboard, mode, project = settings.tensorboard, settings.wandb, settings.project
    wanted: list[Tracker] = []
    if enabled and tensorboard:
        directory = workdir / "tensorboard" / folder.name
        wanted.append(TensorBoard(directory, resumed_step=resumed_step or 0))
    if enabled and mode != "disabled":
        wanted.append(
            WeightsAndBiases(
                folder,
                mode=mode,
                project=project,
                run=config.name,
                phase=phase,
                config=dataclasses.asdict(config),
            )
        )
    trackers = Trackers(wanted)
    failed = True
    try:
        yield trackers
        failed = False
    finally:
        trackers.close(failed=failed)


def require_packages(config: Config) -> None:
    """Raises T2GError if the package of a tracker that a config asks for is missing."""
    if config.tracking.tensorboard:
        import_extra("tensorboard", extra="tensorboard", needed_by="tracking.tensorboard")
    if config.tracking.wandb != "disabled":
        import_extra("wandb", extra="wandb", needed_by="tracking.wandb")


class Trackers:
    """Several trackers as one. What is no finite number is not told: a gap in the curve."""

    def __init__(self, trackers: Sequence[Tracker]):
        self._trackers = trackers

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        if not self._trackers:
            return
        numbers = {
            name: number
            for name, value in metrics.items()
            if value is not None
            and not isinstance(value, str)
            and math.isfinite(number := float(value))
        }
        for tracker in self._trackers:
            tracker.write(step, numbers)

    def close(self, *, failed: bool) -> None:
        with contextlib.ExitStack() as stack:  # one that fails does not keep the others open
            for tracker in self._trackers:
                stack.callback(tracker.close, failed=failed)


class TensorBoard:
    """Event files that TensorBoard reads: `tensorboard --logdir WORKDIR/tensorboard`.

    They are written by TensorBoard's own package, which needs neither TensorFlow nor PyTorch.

    Args:
      directory: of a phase; made if missing.
      resumed_step: what was written of later steps is not shown any more, as they come again.
    """

    def __init__(self, directory: str | os.PathLike[str], *, resumed_step: int = 0):
        import_extra("tensorboard", extra="tensorboard", needed_by="tracking.tensorboard")
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._event, self._summary = event_pb2.Event, summary_pb2.Summary
        self._writer = EventFileWriter(os.fspath(directory))
        restart = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._add(resumed_step + 1, session_log=restart)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        values = [
            self._summary.Value(tag=name, simple_value=value) for name, value in metrics.items()
        ]
        self._add(step, summary=self._summary(value=values))

    def _add(self, step: int, **what: Any) -> None:
        self._writer.add_event(self._event(wall_time=time.time(), step=step, **what))
        self._writer.flush()

    def close(self, *, failed: bool = False) -> None:
        self._writer.close()


class WeightsAndBiases:
    """A run of Weights & Biases, which a phase that goes on continues.

    The run's id is kept in the phase's folder. Steps that W&B has already are not sent again, since
    it refuses them; a phase that goes on makes them again, equal. The API key is W&B's own affair:
    `wandb login`, or the environment variable WANDB_API_KEY. Offline runs are uploaded by
    `wandb sync FOLDER/wandb/offline-run-*`.

    Args:
      directory: of a phase, with its `metrics.jsonl` if it goes on.
      mode: "online" or "offline"; the environment variable WANDB_MODE does not overrule it.
      project, run, phase: the run is named "<run>-<phase>", and grouped by the name of `run`.
      config: shown beside the run.

    Raises:
      T2GError: wandb is missing, nobody is logged in, or the server cannot be reached.
    """

    ID = "wandb_run.txt"

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        mode: str,
        project: str,
        run: str,
        phase: str,
        config: Mapping[str, Any],
    ):
        directory = Path(directory)
        if mode == "offline":
            # Its own error reports would look for the network.
            os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        wandb = import_extra("wandb", extra="wandb", needed_by="tracking.wandb")
        note = directory / self.ID
        goes_on = note.exists()
        identity = _identity(note) if goes_on else secrets.token_hex(8)
        directory.mkdir(parents=True, exist_ok=True)  # or W&B would write elsewhere
        try:
            self._run = wandb.init(
                mode=mode,
                project=project,
                group=run,
                name=f"{run}-{phase}",
                job_type=phase,
                id=identity,
                resume=None if mode == "offline" else "allow",
                dir=directory,
                config=dict(config),
                # The log, and nothing of what is on the terminal or in the repository.
                settings=wandb.Settings(
                    console="off",
                    disable_git=True,
                    disable_code=True,
                    disable_job_creation=True,
                    silent=mode == "offline",
                ),
            )
        except wandb.errors.Error as error:
            raise T2GError(
                f"tracking.wandb is {mode}, but Weights & Biases did not begin: {error}. Run "
                "`wandb login`, set WANDB_API_KEY, or use --tracking.wandb offline"
            ) from error
        if not goes_on:  # one that did not begin is not gone on with
            durable.write_text(note, identity + "\n")
        self._next = 0
        if goes_on:
            self._next = self._run.step if mode == "online" else _last_step(directory) + 1

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        if step < self._next:
            return
        self._run.log(dict(metrics), step=step)
        self._next = step + 1

    def close(self, *, failed: bool = False) -> None:
        self._run.finish(exit_code=int(failed))


def _identity(note: Path) -> str:
    """The id in a note, which W&B would refuse later, and otherwise, if it is none."""
    mend = "put it back, or delete it to begin another run of W&B"
    found = files.read_text(note, mend=mend).strip()
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", found):
        raise files.damaged(note, "it is no id of a run", mend)
    return found


def _last_step(directory: Path) -> int:
    """The last step in the log as the phase left it."""
    if not (directory / metrics.FILE).exists():
        return 0
    return max((line["step"] for line in metrics.read_metrics(directory)), default=0)
