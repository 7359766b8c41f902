"""How things are measured here: in turns, in one process, on the same cores; medians and ratios.

Other work on the machine slows both sides of a turn alike, so the ratio of a turn says more than
either time. Nothing is asserted: a section shows the target beside what was reached.
"""

from __future__ import annotations

import dataclasses
import gc
import os
import platform
import re
import statistics
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from typing import Any

Run = Callable[[], Any]


def pin(threads: int | None) -> int:
    """Keeps this process to so many cores, which is how many threads XLA and torch then use.

    To be called before either is imported. Returns the number of threads.
    """
    if not hasattr(os, "sched_setaffinity"):  # not Linux: all cores
        return os.cpu_count() or 1
    cores = sorted(os.sched_getaffinity(0))[-(threads or 0) :]
    os.sched_setaffinity(0, cores)
    os.environ["OMP_NUM_THREADS"] = str(len(cores))
    return len(cores)


@dataclasses.dataclass(frozen=True)
class Turns:
    """Seconds of each turn, ours and theirs."""

    ours: list[float]
    theirs: list[float]

    @property
    def ratios(self) -> list[float]:
        return [b / a for a, b in zip(self.ours, self.theirs, strict=True)]

    def row(self, name: str, target: str, *, work: float = 1.0, unit: str = "s") -> list[str]:
        """A row of `compared`: name, ours, theirs, how many times faster (range), target.

        `work` / seconds is shown where `unit` is not seconds: tokens/s and the like.
        """

        def shown(seconds: list[float]) -> str:
            median = statistics.median(seconds)
            return duration(median) if unit == "s" else f"{work / median:,.0f} {unit}"

        low, high = min(self.ratios), max(self.ratios)
        middle = statistics.median(self.ratios)
        ratio = f"**{middle:.2f} ×** ({low:.2f}–{high:.2f})"
        return [name, shown(self.ours), shown(self.theirs), ratio, target]


def in_turns(ours: Run, theirs: Run, *, turns: int, warm_up: int = 1) -> Turns:
    """ABABAB…: each runs once a turn, after so many turns that do not count."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for turn in range(warm_up + turns):
        for run, kept in zip((ours, theirs), seconds, strict=True):
            gc.collect()
            time.sleep(0.01)  # threads of the other side stop spinning
            start = time.perf_counter()
            run()
            if turn >= warm_up:
                kept.append(time.perf_counter() - start)
    return Turns(*seconds)


def duration(seconds: float) -> str:
    return f"{1e3 * seconds:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"


@dataclasses.dataclass(frozen=True)
class Section:
    """What one benchmark says: a heading, what was measured, a table."""

    title: str
    text: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]

    def markdown(self) -> str:
        table = [self.header, ["---"] * len(self.header), *self.rows]
        lines = ["| " + " | ".join(row) + " |" for row in table] if self.rows else []
        return "\n".join([f"## {self.title}", "", self.text.strip(), "", *lines]).strip()


def compared(title: str, text: str, *rows: Sequence[str], theirs: str) -> Section:
    """A section of rows made by `Turns.row`."""
    return Section(title, text, ["", "t2g_jax", theirs, "times faster", "target"], rows)


def machine(threads: int) -> str:
    """One line: processor, threads, versions."""
    cpu = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo") as file:
            cpu = re.search(r"model name\s*: (.*)", file.read() + "model name: CPU").group(1)
    versions = []
    for package in ("jax", "torch", "transformers"):
        try:
            versions.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            continue
    return f"{cpu}, {threads} threads, Python {platform.python_version()}, {', '.join(versions)}"


def replaced(page: str, name: str, section: str) -> str:
    """A page with the section of that name put in its place, or at the end if it is new."""
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    block = f"{begin}\n{section}\n{end}"
    pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
    if pattern.search(page):
        return pattern.sub(lambda _: block, page)
    return page.rstrip() + f"\n\n{block}\n"
