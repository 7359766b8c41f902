"""A plan as a table in the terminal, as Markdown for a page, and as JSON."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import rich.box
import rich.console
import rich.table
from rich.text import Text

from t2g_jax.plan.measure import Need, to_json
from t2g_jax.plan.topologies import GIB, Topology
from t2g_jax.printing import visible
from t2g_jax.report.terminal import print_table

KINDS = ("weights", "optimizer", "gradients", "temporaries", "KV cache", "kept beside")
"""Kinds of memory, as columns. "kept beside" has a reference and a reward model; "temporaries" has
batches, too."""

ASSUMPTIONS = """\
Rows are as long as model.context_length and no two share a batch row: what a
run needs at most. GiB of one chip.
kept beside: what a phase keeps while the function runs (reference, reward
model, the state of the optimizer while sampling). temporaries: activations and
all else.
received: GiB, by one chip.
time: the longest of computing (matrix products, half of the attention's
pairs), reading memory and receiving from other chips, each at the maker's rate
and at the same time; no run is faster.
expected: the cycles that the compiler counts for a TPU's operations one after
another, without waiting for others, where that is longer.
MFU: FLOPs that the mathematics needs, nothing counted twice, by peak FLOPs in
that time."""


def memory_table(needs: Sequence[Need], topology: Topology) -> rich.table.Table:
    """What each function takes of a chip's memory; 80 columns are enough."""

    def cells(need: Need) -> list[str | Text]:
        fits = Text("yes", style="green") if need.fits else Text("no", style="bold red")
        return [*_memory(need), _total(need), fits]

    title = f"GiB of a chip, which has {topology.chip.memory / GIB:.1f}"
    return _by_phase(title, (*_SHORT.values(), "total", "fits"), needs, cells)


def time_table(needs: Sequence[Need]) -> rich.table.Table:
    """What each function computes and receives, and how long it takes at least."""
    return _by_phase("Work of all chips, and time", _WORK, needs, _work)


def show(
    console: rich.console.Console, needs: Sequence[Need], topology: Topology, about: str
) -> None:
    """Prints a plan: the table, what does not fit and what to change, and what it assumes."""
    console.print(Text(visible(about), style="bold"))
    print_table(console, memory_table(needs, topology))
    print_table(console, time_table(needs))
    for need in needs:
        if need.fits:
            continue
        console.print(
            Text(visible(f"{need.phase}, {need.name}: does not fit. {need.problem}")),
            soft_wrap=True,
        )
        for line in need.advice:
            console.print(Text(visible(f"  try {line}")), soft_wrap=True)
    for need in needs:
        if need.network:
            kinds = ", ".join(
                f"{kind} {size / GIB:.1f}" for kind, size in sorted(need.network.items())
            )
            console.print(
                Text(visible(f"{need.phase}, {need.name} receives GiB: {kinds}")), soft_wrap=True
            )
    console.print(Text(visible(ASSUMPTIONS), style="dim"), soft_wrap=True)


def as_markdown(needs: Sequence[Need]) -> str:
    lines = ["| " + " | ".join(_COLUMNS) + " |", "|" + "---|" * len(_COLUMNS)]
    lines += ["| " + " | ".join(_cells(need)) + " |" for need in needs]
    return "\n".join(lines)


def as_json(needs: Sequence[Need], topology: Topology, mesh: dict[str, int]) -> dict[str, Any]:
    return {
        "topology": topology.name,
        "chips": topology.chips,
        "chip": topology.chip.name,
        "memory_per_chip": topology.chip.memory,
        "mesh": mesh,
        "fits": all(need.fits for need in needs),
        "assumptions": ASSUMPTIONS,
        "programs": [to_json(need) for need in needs],
    }


def expected_seconds(need: Need) -> float:
    """By the compiler's count of cycles where that is longer than what hardware allows."""
    return max(need.seconds, need.compiler_seconds or 0.0)


_SHORT = dict(
    zip(
        KINDS,
        ("weights", "optim-\nizer", "gradi-\nents", "tempo-\nraries", "KV\ncache", "kept\nbeside"),
        strict=True,
    )
)
_WORK = ("PFLOP", "received", "time ≥", "expected", "MFU ≤")
_COLUMNS = ("phase", "function", "rows", *KINDS, "total", "of", *_WORK, "fits")


def _by_phase(
    title: str,
    columns: Sequence[str],
    needs: Sequence[Need],
    cells: Callable[[Need], Sequence[str | Text]],
) -> rich.table.Table:
    """A row for each function, below a line for its phase."""
    table = rich.table.Table(
        title=title,
        title_justify="left",
        title_style="",
        box=rich.box.SIMPLE_HEAD,
        header_style="bold",
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    table.add_column("function\nrows", overflow="fold")
    for name in columns:
        table.add_column(name, justify="left" if name == "fits" else "right")
    for phase, found in itertools.groupby(needs, lambda need: need.phase):
        table.add_section()
        table.add_row(Text(phase, style="bold"))
        for need in found:
            table.add_row(_function(need), *cells(need))
    return table


def _function(need: Need) -> Text:
    """Its name, and its rows below it."""
    return Text(visible(f"{need.name}\n{need.shape}"))


def _cells(need: Need) -> list[str]:
    """What a page has in `_COLUMNS`."""
    return [
        need.phase,
        need.name,
        need.shape,
        *_memory(need),
        _total(need),
        f"{need.available / GIB:.1f}",
        *_work(need),
        "yes" if need.fits else "no",
    ]


def _memory(need: Need) -> list[str]:
    memory = dict(need.memory)
    memory["temporaries"] += memory.pop("batch", 0.0)
    memory["kept beside"] = memory.get("kept beside", 0.0) + memory.pop("reference", 0.0)
    return [_gib(memory[kind]) if memory.get(kind) else "" for kind in KINDS]


def _total(need: Need) -> str:
    return f"{'' if need.basis == 'compiled' else '≈ '}{_gib(need.total)}"


def _gib(size: float) -> str:
    return f"{size / GIB:.2f}" if size < 100 * GIB else f"{size / GIB:.0f}"


def _work(need: Need) -> list[str]:
    received = f"{sum(need.network.values()) / GIB:.1f}" if need.network else ""
    expected = expected_seconds(need)
    return [
        f"{need.flops / 1e15:.3g}",
        received,
        _seconds(need.seconds),
        _seconds(expected) if need.compiler_seconds else "",
        f"{need.mfu * need.seconds / expected:.0%}",
    ]


def _seconds(value: float) -> str:
    return f"{value:.3g} s" if value < 100 else f"{value:.0f} s"
