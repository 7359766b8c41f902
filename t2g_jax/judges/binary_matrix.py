"""A program that says which distances in a binary matrix are wrong: too small or too large."""

from collections.abc import Iterator

from t2g_jax.judges.base import (
    Critique,
    CritiqueLevel,
    JudgeError,
    phrase,
    quote_at,
    quote_box,
    quote_last_line,
)
from t2g_jax.tasks.base import Example
from t2g_jax.tasks.binary_matrix import Cell, Grid, parse, values
from t2g_jax.tasks.boxed import find_boxed


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
        box = find_boxed(completion)
        if box is None:
            return Critique("No answer in \\boxed{}.", quote_last_line(completion, -1.0))
        rows = parse(box.content, n)
        if rows is None:
            text = "The answer in \\boxed{} is not a matrix of numbers."
            return Critique(text, quote_box(completion, box, -1.0))
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
