"""A plan as a table in the terminal, as Markdown for a page, and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import rich.console
import rich.table
from rich.text import Text

from t2g_jax.plan.measure import Need, to_json
from t2g_jax.plan.topologies import GIB, Topology
from t2g_jax.printing import visible

KINDS = ("weights", "optimizer", "gradients", "temporaries", "KV cache", "kept beside")
"""Of memory, as columns; "kept beside" has a reference and a reward model, "temporaries" batches,
too."""

ASSUMPTIONS = """\
Rows are as long as model.context_length and no two share a batch row: what a run needs at most.
GiB of one chip. kept beside: what a phase keeps while the function runs (reference, reward model,
the state of the optimizer while sampling). temporaries: activations and all else.
Time: the longest of computing (matrix products, half of the attention's pairs), reading memory and
receiving from other chips, each at the maker's rate and at the same time; no run is faster.
Expected: the cycles that the compiler counts for a TPU's operations one after another, without
waiting for others, where that is longer. MFU: FLOPs that the mathematics needs, nothing counted
twice, by peak FLOPs in that time."""


def as_table(needs: Sequence[Need], topology: Topology) -> rich.table.Table:
    table = rich.table.Table(title_justify="left", header_style="bold", pad_edge=False)
    for name, justify in _COLUMNS:
        table.add_column(name, justify=justify)
    for need in needs:
        *cells, fits = _cells(need)
        table.add_row(*cells, Text(fits, style="green" if need.fits else "bold red"))
    return table


def show(
    console: rich.console.Console, needs: Sequence[Need], topology: Topology, about: str
) -> None:
    """Prints a plan: the table, what does not fit and what to change, and what it assumes."""
    console.print(Text(visible(about), style="bold"))
    console.print(as_table(needs, topology))
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
    names = [name for name, _ in _COLUMNS]
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
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


_COLUMNS: tuple[tuple[str, Any], ...] = (
    ("phase", "left"),
    ("function", "left"),
    ("rows", "left"),
    *((kind, "right") for kind in KINDS),
    ("total", "right"),
    ("of", "right"),
    ("PFLOP", "right"),
    ("received", "right"),
    ("time ≥", "right"),
    ("expected", "right"),
    ("MFU ≤", "right"),
    ("fits", "left"),
)


def _cells(need: Need) -> list[str]:
    memory = dict(need.memory)
    memory["temporaries"] += memory.pop("batch", 0.0)
    memory["kept beside"] = memory.get("kept beside", 0.0) + memory.pop("reference", 0.0)
    received = f"{sum(need.network.values()) / GIB:.1f}" if need.network else ""
    expected = expected_seconds(need)
    mfu = need.mfu * need.seconds / expected
    return [
        need.phase,
        need.name,
        need.shape,
        *(f"{memory[kind] / GIB:.2f}" if memory.get(kind) else "" for kind in KINDS),
        f"{'' if need.basis == 'compiled' else '≈ '}{need.total / GIB:.2f}",
        f"{need.available / GIB:.1f}",
        f"{need.flops / 1e15:.3g}",
        received,
        _seconds(need.seconds),
        _seconds(expected) if need.compiler_seconds else "",
        f"{mfu:.0%}",
        "yes" if need.fits else "no",
    ]


def _seconds(value: float) -> str:
    return f"{value:.3g} s" if value < 100 else f"{value:.0f} s"
