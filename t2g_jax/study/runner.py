"""Runs the jobs of a study as processes of `t2g`, several at a time; what is done is kept.

A job that was stopped goes on where it was, as `t2g` does; one that fails leaves `failed.json` with
the last lines of its log and does not stop those that need nothing of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import datetime
import importlib.metadata
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from t2g_jax.config import Config, diff, is_aside, load_config
from t2g_jax.errors import T2GError
from t2g_jax.installation import commit
from t2g_jax.runtime import durable
from t2g_jax.runtime.locks import lock
from t2g_jax.runtime.preemption import Preempted
from t2g_jax.study.plan import Study
from t2g_jax.version import __version__

PROGRAM = (sys.executable, "-m", "t2g_jax")
MAX_JOBS = 8
LOG, FAILED = "log.txt", "failed.json"
GRACE_SECONDS = 20
"""From asking a process to stop until it is made to."""
ACCELERATORS = ("/dev/nvidia0", "/dev/accel0", "/dev/vfio/0", "/dev/kfd")


@dataclasses.dataclass(frozen=True)
class Job:
    """Commands of `t2g` in one work folder, one after the other.

    commands: their words after the config. needs: names of jobs that come first. copies: folders of
    other work folders that this one begins with.
    """

    name: str
    folder: Path
    config: Config
    commands: tuple[tuple[str, ...], ...]
    needs: tuple[str, ...] = ()
    copies: tuple[Path, ...] = ()

    @property
    def record(self) -> Path:
        """There when the job is done: with what it was made, and when."""
        return self.folder / f"{self.name.rpartition('/')[2]}.made.json"

    @property
    def is_done(self) -> bool:
        return self.record.exists()


def jobs_of(study: Study, root: Path) -> list[Job]:
    """The jobs of all cells, each after those that it needs."""
    from t2g_jax.phases.pipeline import phases
    from t2g_jax.run.workspace import SFT, command

    jobs: dict[str, Job] = {}
    for cell in study.cells:
        shared = root / cell.shared_folder
        start = f"{cell.shared_folder}/warm_start"
        jobs.setdefault(start, Job(start, shared, cell.shared, (("sft",), ("evaluate",))))
        needs = (start,)
        before = [name for name in phases(cell.config) if name not in cell.config.methods]
        if more := [name for name in before if name != SFT]:
            feedback = f"{cell.shared_folder}/{more[-1]}"
            commands = tuple(tuple(command(name).split()[1:]) for name in more)
            jobs.setdefault(feedback, Job(feedback, shared, cell.shared, commands, (start,)))
            needs = (feedback,)
        copies = tuple(shared / name for name in ("tokenizer", *before))
        jobs[cell.folder] = Job(
            cell.folder, root / cell.folder, cell.config, (("run",),), needs, copies
        )
    # Shared work first: with it done, whatever is left can run in any order.
    return sorted(jobs.values(), key=lambda job: len(job.needs) + bool(job.copies))


def check(jobs: Sequence[Job]) -> None:
    """Raises T2GError if a folder belongs to a job with another config; names folders and keys.

    What neither decides what is learned nor how it is measured may differ.
    """
    from t2g_jax.run.provenance import measured_with

    misfits = {}
    for job in jobs:
        snapshot = job.folder / "config.yaml"
        if not snapshot.exists():
            continue
        decides = measured_with(job.config)
        keys = diff(load_config(snapshot), job.config)
        if keys := [key for key in keys if not is_aside(key) or key in decides]:
            misfits[job.folder] = keys
    if misfits:
        listed = "\n".join(f"  {folder} ({', '.join(keys)})" for folder, keys in misfits.items())
        raise T2GError(
            f"{len(misfits)} folders were made with other settings and no longer fit; delete them, "
            f"or choose another --workdir:\n{listed}"
        )


def default_jobs() -> int:
    """One for each core, at most 8; one alone where an accelerator may be used."""
    if os.environ.get("JAX_PLATFORMS") != "cpu" and any(map(os.path.exists, ACCELERATORS)):
        return 1
    return min(len(_cores()), MAX_JOBS)


def run(
    jobs: Sequence[Job], root: Path, *, at_once: int, say: Callable[[str], None]
) -> dict[str, bool]:
    """Runs what is not done; returns for each job whether it is done now.

    Raises:
      T2GError: this study is running already.
      KeyboardInterrupt: SIGINT came. Preempted: SIGTERM came; processes saved what they could. All
        of them have ended.
    """
    with _locked(root) as lock:
        try:
            return asyncio.run(_run_all(jobs, at_once, lock, say))
        except asyncio.CancelledError as stop:
            raise (Preempted if stop.args == (signal.SIGTERM,) else KeyboardInterrupt) from None


async def _run_all(
    jobs: Sequence[Job], at_once: int, lock: IO[str], say: Callable[[str], None]
) -> dict[str, bool]:
    main, loop = asyncio.current_task(), asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, main.cancel, number)
    slots: asyncio.Queue[set[int]] = asyncio.Queue()
    cores = sorted(_cores())
    for slot in range(at_once):
        slots.put_nowait(set(cores[slot::at_once]) or set(cores))
    results: dict[str, asyncio.Task[bool]] = {}
    left = sum(not job.is_done for job in jobs)

    async def finish(job: Job) -> bool:
        nonlocal left
        if job.is_done:
            return True
        needed = [await results[name] for name in job.needs]
        if not all(needed):
            left -= 1
            say(f"{job.name}: not run, as {job.needs[0]} failed")
            return False
        mine = await slots.get()
        try:
            began = time.monotonic()
            error = await _run_one(job, mine, lock)
        finally:
            slots.put_nowait(mine)
        left -= 1
        took = f"{time.monotonic() - began:.0f} s; {left} left"
        say(f"{job.name}: {'done' if error is None else f'FAILED, {error}'} ({took})")
        return error is None

    async with asyncio.TaskGroup() as group:
        for job in jobs:
            results[job.name] = group.create_task(finish(job))
    return {name: task.result() for name, task in results.items()}


async def _run_one(job: Job, cores: set[int], lock: IO[str]) -> str | None:
    """Runs the commands of a job; None, or what went wrong."""
    began = time.monotonic()
    begin(job)
    failed = job.folder / FAILED
    failed.unlink(missing_ok=True)
    for words in job.commands:
        name, *options = words
        config, folder = str(job.folder / "config.yaml"), str(job.folder)
        arguments = (name, config, *options, "--workdir", folder)
        with open(job.folder / LOG, "a", encoding="utf-8") as log:
            log.write(f"$ t2g {' '.join(arguments)}\n")
            log.flush()
            status = await _process((*PROGRAM, *arguments), cores, log, lock)
        if status != 0:
            last = (job.folder / LOG).read_text("utf-8", "replace").strip().splitlines()[-1]
            problem = {"command": f"t2g {' '.join(words)}", "exit": status, "last": last}
            _write(failed, problem)
            return f"see {job.folder / LOG}: {last}"
    _write(job.record, {**made_with(), "seconds": round(time.monotonic() - began, 1)})
    return None


async def _process(arguments: Sequence[str], cores: set[int], log: IO[str], lock: IO[str]) -> int:
    process = await asyncio.create_subprocess_exec(
        *arguments,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,  # Ctrl-C is for us; we pass it on
        pass_fds=(lock.fileno(),),  # locked as long as any of them lives
    )
    if hasattr(os, "sched_setaffinity"):  # JAX makes a thread for each core that it may use
        with contextlib.suppress(ProcessLookupError):
            os.sched_setaffinity(process.pid, cores)
    try:
        return await process.wait()
    except asyncio.CancelledError:
        for number in (signal.SIGTERM, signal.SIGKILL):  # at the first it saves where it is
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(process.wait(), GRACE_SECONDS)
                break
        raise


def begin(job: Job) -> None:
    """Makes the work folder of a job, with its config and copies, whole or not at all."""
    from t2g_jax.run.workspace import write_config

    if job.folder.exists():
        return
    partial = job.folder.with_name(job.folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for source in job.copies:
        shutil.copytree(source, partial / source.name)
    write_config(partial, job.config)
    durable.appear(partial, job.folder)


def made_with() -> dict[str, Any]:
    """Commit, versions, machine and time, for the page of results."""
    return {
        "commit": commit(),
        "versions": {
            "python": platform.python_version(),
            "t2g_jax": __version__,
            **{name: importlib.metadata.version(name) for name in ("jax", "numpy")},
        },
        "platform": os.environ.get("JAX_PLATFORMS") or "default",
        "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


@contextlib.contextmanager
def _locked(root: Path) -> Iterator[IO[str]]:
    root.mkdir(parents=True, exist_ok=True)
    with open(root / "lock", "w") as file:
        if not lock(file.fileno()):
            raise T2GError(
                f"{root}: this study is running, or a process of one that was killed still is; "
                "wait for it, or end it"
            )
        yield file


def _cores() -> set[int]:
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def _write(path: Path, values: dict[str, Any]) -> None:
    durable.write_text(path, json.dumps(values, indent=1) + "\n")
