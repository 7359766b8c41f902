"""Reads a compiled program's text: what its collectives send, loops counted as often as they run.

XLA's own cost analysis counts the body of a loop once, and layers, micro-batches and chunks of the
vocabulary are loops.
"""

from __future__ import annotations

import collections
import re

WIDTHS = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "f32": 4}
WIDTHS |= {"s32": 4, "u32": 4, "f64": 8, "s64": 8, "u64": 8}

COLLECTIVES = (
    "all-gather",
    "reduce-scatter",
    "all-reduce",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
)

_HEAD = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{$")
_LINE = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*)$")
_OP = re.compile(r"([a-z][a-z0-9\-]*)\(")
_CALLED = re.compile(r"(?:calls|to_apply|body|called_computations)=\{?%?([\w.\-, %]+)")
_ARRAY = re.compile(r"\b(pred|bf16|[fsu]\d+)\[([\d,]*)\]")


def collective_bytes(text: str, *, unknown_trips: int = 1) -> dict[str, float]:
    """Bytes that a device receives in one run of the program, by kind of collective.

    all-gather: the result less its own part; reduce-scatter: as many; all-reduce: twice that, as it
    is a reduce-scatter and an all-gather; all-to-all: all but its own part; collective-permute: the
    array.

    Args:
      text: of the compiled program, `compiled.as_text()`.
      unknown_trips: how often a loop runs whose condition does not say.
    """
    computations, entry = _computations(text)
    runs = _runs(computations, entry, unknown_trips)
    sent: dict[tuple[str, str], float] = {}
    for name, lines in computations.items():
        if not runs.get(name):
            continue
        for line in lines:
            op, kind = line.op, line.op.removesuffix("-start")
            if kind not in COLLECTIVES or op.endswith("-done"):
                continue
            # Pieces of one asynchronous collective share its channel; some are in loops that run
            # meanwhile.
            channel = re.search(r"channel_id=(\d+)", line.rest)
            key = kind, channel[1] if channel else f"{name}/{line.name}"
            bytes = _received(kind, line, op) * runs[name]
            sent[key] = min(sent.get(key, bytes), bytes)
    totals: dict[str, float] = collections.defaultdict(float)
    for (kind, _), bytes in sent.items():
        totals[kind] += bytes
    return dict(totals)


def cycles(text: str, *, unknown_trips: int = 1) -> float:
    """Clock cycles that the compiler expects of a TPU's operations, one after another.

    Kernels of their own (splash attention) and waiting for other chips are not in it. 0 if it knows
    no number for some operation, as for ragged products on v5p: then it writes one near 2^63.
    """
    computations, entry = _computations(text)
    runs = _runs(computations, entry, unknown_trips)
    costs = [
        (int(cost[1]), runs[name])
        for name, lines in computations.items()
        if runs.get(name)
        for line in lines
        if (cost := re.search(r'"estimated_cycles":"(\d+)"', line.rest))
    ]
    if any(cost >= _UNKNOWN for cost, _ in costs):
        return 0.0
    return sum(cost * times for cost, times in costs)


_UNKNOWN = 2**55


class _Instruction:
    def __init__(self, name: str, rest: str):
        self.name, self.rest = name, rest
        # The result's type may be a tuple with blanks and parentheses of layouts in it.
        after = _after_type(rest)
        self.type = rest[: len(rest) - len(after)]
        found = _OP.match(after.strip())
        self.op = found[1] if found else ""

    def operands(self) -> list[str]:
        found = re.search(re.escape(self.op) + r"\(([^()]*)\)", self.rest)
        return re.findall(r"%([\w.\-]+)", found[1]) if found else []


def _after_type(rest: str) -> str:
    if not rest.startswith("("):
        return rest.split(" ", 1)[1] if " " in rest else ""
    depth = 0
    for i, letter in enumerate(rest):
        depth += (letter == "(") - (letter == ")")
        if depth == 0:
            return rest[i + 1 :]
    return ""


def _computations(text: str) -> tuple[dict[str, list[_Instruction]], str]:
    found: dict[str, list[_Instruction]] = {}
    current: list[_Instruction] | None = None
    entry = ""
    for line in text.splitlines():
        if head := _HEAD.match(line):
            current = found.setdefault(head[1], [])
            entry = head[1] if line.startswith("ENTRY") else entry
        elif line.rstrip() == "}":  # kernels have lines of their own that only begin so
            current = None
        elif current is not None and (instruction := _LINE.match(line)):
            current.append(_Instruction(instruction[1], instruction[2]))
    return found, entry


def _runs(
    computations: dict[str, list[_Instruction]], entry: str, unknown_trips: int
) -> dict[str, float]:
    """How often each computation runs."""
    runs: dict[str, float] = collections.defaultdict(float)

    def visit(name: str, times: float) -> None:
        runs[name] += times
        for line in computations.get(name, ()):
            if line.op == "while":
                body = re.search(r"body=%?([\w.\-]+)", line.rest)[1]
                visit(body, times * _trips(computations, line, body, unknown_trips))
            elif line.op == "conditional":
                names = re.search(r"(?:branch_computations=\{|true_computation=)(.*)", line.rest)
                for branch in re.findall(r"%([\w.\-]+)", names[1].split("}")[0]):
                    visit(branch, times)
            else:
                for called in _CALLED.findall(line.rest):
                    for other in re.findall(r"[\w.\-]+", called):
                        if other in computations:
                            visit(other, times)

    visit(entry, 1.0)
    return runs


def _trips(
    computations: dict[str, list[_Instruction]], loop: _Instruction, body: str, unknown: int
) -> float:
    """How often a loop runs: as XLA noted, or as `i < bound` from 0 says; else `unknown`."""
    if known := re.search(r'known_trip_count":?\{"n":"(\d+)"', loop.rest):
        return int(known[1])
    condition = re.search(r"condition=%?([\w.\-]+)", loop.rest)[1]
    lines = {line.name: line for line in computations.get(condition, ())}
    compares = [line for line in lines.values() if line.op == "compare"]
    if len(compares) != 1 or "direction=LT" not in compares[0].rest or len(lines) > 8:
        return unknown
    constant = index = None
    for operand in compares[0].operands():
        line = lines.get(operand)
        if line is not None and line.op == "constant":
            constant = int(re.search(r"constant\((-?\d+)\)", line.rest)[1])
        elif line is not None and line.op == "get-tuple-element":
            index = int(re.search(r"index=(\d+)", line.rest)[1])
    if constant is None or index is None:
        return unknown
    return constant / _increment(computations.get(body, []), index)


def _increment(body: list[_Instruction], index: int) -> int:
    """What a loop's body adds to its counter; 1 if that cannot be seen."""
    lines = {line.name: line for line in body}
    results = body[-1].operands() if body else []
    if index >= len(results):
        return 1
    total, name = 0, results[index]
    while (line := lines.get(name)) is not None and line.op in ("add", "copy", "bitcast"):
        names = line.operands()
        constants = [lines[n] for n in names if n in lines and lines[n].op == "constant"]
        if line.op == "add":
            if len(constants) != 1:
                return 1
            total += int(re.search(r"constant\((-?\d+)\)", constants[0].rest)[1])
        name = next((n for n in names if not (n in lines and lines[n].op == "constant")), "")
    return total or 1


def _received(kind: str, line: _Instruction, op: str) -> float:
    sizes = [_bytes(dtype, shape) for dtype, shape in _ARRAY.findall(line.type)]
    if not sizes:
        return 0.0
    ways = _group_size(line.rest)
    share = (ways - 1) / ways
    if kind == "collective-permute":
        return sizes[0]
    if op.endswith("-start") and kind == "all-gather":  # (operands, results)
        return max(sizes) * share
    if kind == "reduce-scatter":
        return (min(sizes) if op.endswith("-start") else sum(sizes)) * (ways - 1)
    if kind == "all-reduce":
        return 2 * sum(sizes) * share
    return sum(sizes) * share


def _group_size(rest: str) -> int:
    """Devices that exchange with each other, of either way to write their groups."""
    if found := re.search(r"replica_groups=mesh\[([^\]]*)\] ?\{([^}]*)\}", rest):
        sizes = dict(re.findall(r"'?([\w]+)'?=(\d+)", found[1]))
        size = 1
        for axis in re.findall(r"'([\w]+)'", found[2]):
            size *= int(sizes.get(axis, 1))
        if size > 1:
            return size
    if found := re.search(r"replica_groups=\[(\d+),(\d+)\]", rest):
        return int(found[2])
    if found := re.search(r"replica_groups=\{\{([\d,]+)\}", rest):
        return len(found[1].split(","))
    return 2


def _bytes(dtype: str, shape: str) -> float:
    size = float(WIDTHS.get(dtype, 1))
    for side in filter(None, shape.split(",")):
        size *= int(side)
    return size
