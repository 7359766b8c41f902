"""A program that walks a path and says which step goes wrong, and how."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

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
from t2g_jax.tasks.boxed import find_boxed
from t2g_jax.tasks.shortest_path import (
    DESTINATION,
    INFEASIBLE,
    MOVES,
    START,
    Grid,
    Move,
    cell,
    find,
    parse,
    steps_to_go,
    walk,
)


@dataclass(frozen=True)
class Fault:
    """Why a path fails, and at which of its moves; `at` is len(moves) if it should have gone on."""

    what: str
    where: str
    at: int


class ShortestPathJudge:
    """Names the first step that goes wrong, never a right one, nor that there is no path.

    Its quotes are the moves: good as long as they follow a shortest path, poor where they leave it;
    what comes after is neutral.

    Args:
      level: how much the text says; the quotes are the same at every level.
    """

    name = "shortest_path"

    def __init__(self, level: CritiqueLevel) -> None:
        self.level = level

    def critique(self, example: Example, completion: str) -> Critique:
        """Raises JudgeError if the example does not come with its grid."""
        grid = example.metadata.get("grid")
        if not grid or find(grid, DESTINATION) is None:
            raise JudgeError(
                "incomplete example",
                f"{example.id}: its metadata has no `grid` with a {DESTINATION}",
            )
        box = find_boxed(completion)
        if box is None:
            return Critique("No answer in \\boxed{}.", quote_last_line(completion, -1.0))
        moves = parse(box.content)
        if moves is None:
            text = "The answer in \\boxed{} is not a path."
            return Critique(text, quote_box(completion, box, -1.0))

        solvable = find(grid, START) in steps_to_go(grid)
        fault = _fault(grid, moves, solvable)
        marks = [(m.start, m.end, 1.0) for m in moves]
        if fault is None:
            text = "Correct."
        else:
            text = phrase(self.level, what=fault.what, where=[fault.where], max_listed=1)
            marks = marks[: fault.at] if solvable else []  # no way is good where none leads there
            blamed = (*moves, Move("", len(box.content), len(box.content) + 1))[fault.at]
            marks.append((blamed.start, blamed.end, -1.0))
        quotes = (quote_at(completion, box.start + s, box.start + e, r) for s, e, r in marks)
        return Critique(text, tuple(quotes))


def _fault(grid: Grid, moves: Sequence[Move], solvable: bool) -> Fault | None:
    """What first goes wrong; None if the path is a shortest one, or rightly said not to exist."""
    if moves[0].word == INFEASIBLE:
        return Fault("There is a path.", "There is a path.", 0) if solvable else None
    start = find(grid, START)
    if start is None:
        return Fault("There is no start.", "Step 1 has no start.", 0)
    to_go = steps_to_go(grid)
    places = walk(grid, start, moves)
    for i, (here, there) in enumerate(pairwise(places)):
        if solvable and to_go[here] == 0:
            return Fault("The path goes on past #.", f"Step {i + 1} goes on past #.", i)
        if solvable and to_go[there] != to_go[here] - 1:
            return Fault("The path is longer than needed.", f"Step {i + 1} is a detour.", i)
    done = len(places) - 1
    if done < len(moves):
        if solvable and to_go[places[-1]] == 0:
            return Fault("The path goes on past #.", f"Step {done + 1} goes on past #.", done)
        dr, dc = MOVES[moves[done].word]
        if cell(grid, (places[-1][0] + dr, places[-1][1] + dc)) is None:
            return Fault("The path leaves the grid.", f"Step {done + 1} leaves the grid.", done)
        return Fault("The path is blocked.", f"Step {done + 1} is blocked.", done)
    if solvable and to_go[places[-1]] == 0:
        return None
    return Fault("The path stops short of #.", f"The path stops short of #, at step {done}.", done)
