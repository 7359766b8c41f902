"""Binary matrices: how far is each cell from the nearest 0, going up, down, left and right?"""

import random
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from t2g_jax.tasks.base import Critique, CritiqueLevel, Example, Floor, Judge, JudgeError
from t2g_jax.tasks.puzzles.boxed import boxed, scan
from t2g_jax.tasks.puzzles.gym import gym_module
from t2g_jax.tasks.puzzles.quoting import phrase, quote_at, read_box
from t2g_jax.tasks.puzzles.reasoning import ReasoningTask

_GYM = gym_module("algorithmic.binary_matrix")
Grid = list[list[int]]


class BinaryMatrix(ReasoningTask[Grid, Grid]):
    """Binary matrices of reasoning-gym, each with at least one 0."""

    name = "binary_matrix"
    gym_config = _GYM.BinaryMatrixConfig
    largest = {"min_n": 32, "max_n": 32}
    presets = {
        "paper": {"min_n": 3, "max_n": 5, "p_zero": 0.25},
        "tiny": {"min_n": 3, "max_n": 4, "p_zero": 0.25},
    }
    default_mistakes = {"copy": 0.1, "rows": 0.25, "columns": 0.25, "diagonals": 0.2, "short": 0.2}
    """copy: the matrix itself; rows, columns: looks only along those; diagonals: counts a step
    across a corner as one; short: does not count the last step."""

    def draw(self, rng: random.Random) -> Grid:
        n = rng.randint(self.settings["min_n"], self.settings["max_n"])
        p_zero = self.settings["p_zero"]
        cells = [0] + [0 if rng.random() < p_zero else 1 for _ in range(n * n - 1)]
        rng.shuffle(cells)
        return [cells[i * n : (i + 1) * n] for i in range(n)]

    def build(self, ticket: Grid) -> Grid:
        return ticket

    def content(self, puzzle: Grid) -> str:
        return to_text(puzzle)

    def example(self, puzzle: Grid, id: str) -> Example:
        matrix = to_text(puzzle)
        if self.prompt_style == "full":
            question = _GYM.QUESTION_TEMPLATE.format(matrix=matrix).strip()
            prompt = f"{question}\n\nPut your final answer in \\boxed{{}}, one row on each line."
        else:
            prompt = f"Distance to the nearest 0 for each cell:\n{matrix}\nAnswer in \\boxed{{}}."
        answer = to_text(nearest_zero(puzzle, _taxicab))
        return Example(id, prompt, answer, {"matrix": puzzle})

    def is_correct(self, example: Example, answer: str) -> bool:
        rows = parse(answer, len(example.metadata["matrix"]))
        return rows is not None and to_text(values(rows)) == example.answer

    def floor(self, examples: Sequence[Example]) -> Floor:
        """Copying the input, or the most common answer for each size."""
        if not examples:
            raise ValueError("floor: needs at least one example")
        copies = sum(e.answer == to_text(e.metadata["matrix"]) for e in examples)
        by_size: dict[int, Counter[str]] = {}
        for e in examples:
            by_size.setdefault(len(e.metadata["matrix"]), Counter())[e.answer] += 1
        constants = sum(answers.most_common(1)[0][1] for answers in by_size.values())
        if copies >= constants:
            return Floor(copies / len(examples), "copies the input")
        return Floor(constants / len(examples), "gives one fixed answer for each size")

    def solve(self, example: Example) -> str:
        return boxed(example.answer)

    def demonstrate(self, example: Example, rng: random.Random) -> str:
        metric = _METRICS[self.pick_mistake(rng)]
        return boxed(to_text(nearest_zero(example.metadata["matrix"], metric)))

    def judge(self, level: CritiqueLevel) -> Judge:
        return BinaryMatrixJudge(level)


# --- Distances -----------------------------------------------------------------------------------

Metric = Callable[[int, int], int | None]
"""Rows apart, columns apart → distance; None if a solver of that kind does not see the 0 at all."""


def _taxicab(rows: int, columns: int) -> int:
    return rows + columns


_METRICS: dict[str, Metric] = {
    "copy": lambda rows, columns: 0 if rows == columns == 0 else None,
    "rows": lambda rows, columns: columns if rows == 0 else None,
    "columns": lambda rows, columns: rows if columns == 0 else None,
    "diagonals": max,
    "short": lambda rows, columns: max(rows + columns - 1, 0),
}


def nearest_zero(matrix: Grid, metric: Metric) -> Grid:
    """Distance from each cell to its nearest 0; a cell that sees no 0 stays the 1 that it is."""
    zeros = [(r, c) for r, row in enumerate(matrix) for c, cell in enumerate(row) if cell == 0]

    def distance(row: int, column: int) -> int:
        seen = (metric(abs(row - r), abs(column - c)) for r, c in zeros)
        return min((d for d in seen if d is not None), default=1)

    return [[distance(r, c) for c in range(len(row))] for r, row in enumerate(matrix)]


# --- Text ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cell:
    """A number and where it stands in the text: int(text[start:end]) == value."""

    value: int
    start: int
    end: int


# A number, the end of a row, or what may stand between: lists as in Python or JSON, and LaTeX.
_PARTS = re.compile(
    r"(?P<number>-?[0-9]{1,9}(?![0-9]))"
    r"|(?P<end>[\n\r\v\f\x1c-\x1e\x85\u2028\u2029;\]]|\\\\)"
    r"|(?P<between>[\s,&|\[()$]|\\(?:begin|end)\{[a-z]{0,9}matrix\}|\\(?:left|right))"
)


def to_text(grid: Grid) -> str:
    """One line for each row, one blank between cells."""
    return "\n".join(" ".join(map(str, row)) for row in grid)


def values(rows: Sequence[Sequence[Cell]]) -> Grid:
    """The numbers alone."""
    return [[cell.value for cell in row] for row in rows]


def parse(text: str, n: int) -> list[list[Cell]] | None:
    """The rows of numbers in `text`, of whatever shape; None if it holds anything else, or nothing.

    Lines, lists and LaTeX matrices are understood. n² numbers in a single row are taken for n rows.
    """
    parts = scan(text, _PARTS)
    if parts is None:
        return None
    rows: list[list[Cell]] = [[]]
    for part in parts:
        if part["number"]:
            rows[-1].append(Cell(int(part[0]), part.start(), part.end()))
        elif part["end"]:
            rows.append([])
    rows = [row for row in rows if row]
    if len(rows) == 1 and len(rows[0]) == n * n:
        rows = [rows[0][i * n : (i + 1) * n] for i in range(n)]
    return rows or None


# --- The judge --------------------------------------------------------------------------------


class BinaryMatrixJudge:
    """Quotes box and cells, good or poor; calls wrong cells too small (low) or too large, no more.

    Args:
      level: how much the text says; the quotes are the same at every level.
    """

    name = "binary_matrix"

    def __init__(self, level: CritiqueLevel) -> None:
        self.level = level

    def critique(self, example: Example, completion: str) -> Critique:
        """Raises JudgeError if the example's own answer is not a matrix."""
        solution = _solution(example)
        n = len(solution)
        read = read_box(
            completion, lambda text: parse(text, n), problem="is not a matrix of numbers"
        )
        if isinstance(read, Critique):
            return read
        box, rows = read
        text = "Correct." if values(rows) == solution else self._describe(rows, solution)
        # Cells are placed within the box, quotes within the completion.
        spans = _spans(rows, solution)
        quotes = [quote_at(completion, box.start + s, box.start + e, r) for s, e, r in spans]
        # A box is good in itself, or a policy would rather have another good cell in its place.
        # What is poor about missing rows is to have closed it there.
        opening = completion.rindex("\\boxed", 0, box.start)
        quotes.insert(0, quote_at(completion, opening, box.start, 1.0))
        if len(rows) <= n:
            closing = 1.0 if len(rows) == n else -1.0
            quotes.append(quote_at(completion, box.end, box.end + 1, closing))
        return Critique(text, tuple(quotes))

    def _describe(self, rows: list[list[Cell]], solution: Grid) -> str:
        n = len(solution)
        shape = [f"There are {len(rows)} rows, not {n}."] if len(rows) != n else []
        for r, row in enumerate(rows[:n], start=1):
            if len(row) != n:
                shape.append(f"Row {r} has {len(row)} numbers, not {n}.")
        signs = [sign for _, _, _, sign in _compare(rows, solution)]
        counts = [f"{signs.count(s)} too {word}" for s, word in _TOO.items() if s in signs]
        what = ["Wrong shape."] if shape else []
        what += [f"Wrong cells: {', '.join(counts)}."] if counts else []
        where = shape + _verdicts(rows, solution)
        return phrase(self.level, what=" ".join(what), where=where, max_listed=len(where))


_TOO = {-1: "small", +1: "large"}
_VERDICTS = {0: "right", -1: "low", +1: "high"}


def _verdicts(rows: list[list[Cell]], solution: Grid) -> list[str]:
    """A word for each cell, row by row: as regular as the matrix, so that it is easy to follow."""
    words: dict[int, list[str]] = {}
    for r, _, _, sign in _compare(rows, solution):
        words.setdefault(r, []).append(_VERDICTS[sign])
    return [f"Row {r + 1}: {' '.join(verdicts)}." for r, verdicts in words.items()]


def _solution(example: Example) -> Grid:
    size = len(example.answer.splitlines())
    rows = parse(example.answer, size)
    if rows is None or any(len(row) != size for row in rows):
        raise JudgeError(
            "incomplete example",
            f"{example.id}: its answer is not a square matrix: {example.answer!r:.60}",
        )
    return values(rows)


def _compare(rows: list[list[Cell]], solution: Grid) -> Iterator[tuple[int, int, Cell, int]]:
    """Row, column, cell, and the sign of its error; rows of a wrong length are left out."""
    for r, (row, right_row) in enumerate(zip(rows, solution, strict=False)):
        if len(row) == len(right_row):
            for c, (cell, right) in enumerate(zip(row, right_row, strict=True)):
                yield r, c, cell, (cell.value > right) - (cell.value < right)


def _spans(rows: list[list[Cell]], solution: Grid) -> list[tuple[int, int, float]]:
    """Start, end, reward within the box: cell by cell, or a row of wrong length as a whole."""
    cells = [
        (cell.start, cell.end, -1.0 if sign else 1.0)
        for _, _, cell, sign in _compare(rows, solution)
    ]
    n = len(solution)
    misfits = [
        (row[0].start, row[-1].end, -1.0) for r, row in enumerate(rows) if r >= n or len(row) != n
    ]
    return sorted(cells + misfits)
