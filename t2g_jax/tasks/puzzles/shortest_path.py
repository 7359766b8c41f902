"""Shortest paths: from * to # on a grid, up, down, left and right, around the blocked cells."""

import random
import re
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from t2g_jax.tasks.base import Critique, CritiqueLevel, Example, Floor, Judge, JudgeError
from t2g_jax.tasks.puzzles.boxed import boxed, scan
from t2g_jax.tasks.puzzles.gym import gym_module
from t2g_jax.tasks.puzzles.quoting import phrase, quote_at, read_box
from t2g_jax.tasks.puzzles.reasoning import ReasoningTask

_GYM = gym_module("graphs.shortest_path")
_Config: Any = _GYM.ShortestPathConfig
Grid = list[list[str]]
Place = tuple[int, int]

START, DESTINATION, OPEN, BLOCKED = "*#OX"
INFEASIBLE = "infeasible"
MOVES: dict[str, Place] = {"right": (0, 1), "down": (1, 0), "left": (0, -1), "up": (-1, 0)}
_CONFUSED = {
    "turned": {"right": "down", "down": "left", "left": "up", "up": "right"},
    "reversed": {"right": "left", "down": "up", "left": "right", "up": "down"},
    "mirrored": {"right": "left", "left": "right"},
}


@dataclass
class ShortestPathSettings(_Config):
    """reasoning-gym's settings, and one more.

    distinct_ends: 0 lets the destination fall on the start and hide it, as it does in RLTF's code
    (3 % of the paper's puzzles); there is no path then.
    """

    distinct_ends: int = 1

    def validate(self) -> None:
        super().validate()
        assert self.min_rows * self.min_cols > 1, "min_rows or min_cols must be at least 2"


class ShortestPath(ReasoningTask[int, Grid]):
    """Shortest paths of reasoning-gym; some grids have none. Any shortest path is right."""

    name = "shortest_path"
    gym_config = ShortestPathSettings
    largest = {"min_rows": 32, "max_rows": 32, "min_cols": 32, "max_cols": 32}
    presets = {
        "paper": {
            "min_rows": 5,
            "max_rows": 6,
            "min_cols": 5,
            "max_cols": 6,
            "p_blocked": 0.4,
            "distinct_ends": 0,
        },
        "tiny": {"min_rows": 4, "max_rows": 4, "min_cols": 4, "max_cols": 4, "p_blocked": 0.4},
    }
    default_mistakes = {
        "turned": 0.4,
        "reversed": 0.4,
        "mirrored": 0.1,
        "straight": 0.02,
        "timid": 0.02,
        "wander": 0.02,
        "give_up": 0.04,
    }
    """straight: sees no blocked cell; turned, reversed, mirrored: the same, with the map held in a
    wrong way; timid: stops where no open cell is nearer; wander: takes the first way that leads
    there; give_up: finds none."""

    def draw(self, rng: random.Random) -> int:
        return rng.randint(0, 2**31)

    def build(self, ticket: int) -> Grid:
        rng = np.random.default_rng(ticket)
        rows = int(rng.integers(self.settings["min_rows"], self.settings["max_rows"] + 1))
        columns = int(rng.integers(self.settings["min_cols"], self.settings["max_cols"] + 1))
        p_blocked = self.settings["p_blocked"]
        grid = [
            [BLOCKED if rng.random() < p_blocked else OPEN for _ in range(columns)]
            for _ in range(rows)
        ]

        def anywhere() -> Place:
            return int(rng.integers(0, rows)), int(rng.integers(0, columns))

        start, destination = anywhere(), anywhere()
        while self.settings["distinct_ends"] and start == destination:
            destination = anywhere()
        grid[start[0]][start[1]] = START
        grid[destination[0]][destination[1]] = DESTINATION
        return grid

    def content(self, puzzle: Grid) -> str:
        return _to_text(puzzle)

    def example(self, puzzle: Grid, id: str) -> Example:
        text = _to_text(puzzle)
        if self.prompt_style == "full":
            question = _GYM.QUESTION_TEMPLATE.format(grid=text).strip()
            prompt = f"{question}\n\nPut your final answer in \\boxed{{}}."
        else:
            # A small model finds it hard to count where a symbol stands, so it is told.
            prompt = (
                f"Shortest path from {_where(puzzle, START)} to {_where(puzzle, DESTINATION)}, "
                f"X is blocked:\n{text}\n"
                "Answer with up, down, left, right, or infeasible, in \\boxed{}."
            )
        return Example(id, prompt, _shortest(puzzle), {"grid": puzzle})

    def is_correct(self, example: Example, answer: str) -> bool:
        moves = parse(answer)
        if moves is None:
            return False
        grid = example.metadata["grid"]
        to_go = steps_to_go(grid)
        start = find(grid, START)
        if start not in to_go:
            return moves[0].word == INFEASIBLE
        places = walk(grid, start, moves)
        return len(moves) == to_go[start] and places[-1] == find(grid, DESTINATION)

    def floor(self, examples: Sequence[Example]) -> Floor:
        """Always the same answer: "infeasible", or one of the most common right ones."""
        if not examples:
            raise ValueError("floor: needs at least one example")
        common = Counter(example.answer for example in examples).most_common(20)
        answers = [INFEASIBLE, *(answer for answer, _ in common if answer != INFEASIBLE)]
        counts = [sum(self.is_correct(e, answer) for e in examples) for answer in answers]
        best = max(range(len(answers)), key=counts.__getitem__)
        return Floor(counts[best] / len(examples), f'always says "{answers[best]}"')

    def solve(self, example: Example) -> str:
        return boxed(example.answer)

    def demonstrate(self, example: Example, rng: random.Random) -> str:
        grid = example.metadata["grid"]
        start, destination = find(grid, START), find(grid, DESTINATION)
        mistake = self.pick_mistake(rng)
        rows_first = rng.random() < 0.5
        if start is None or mistake == "give_up":
            return boxed(INFEASIBLE)
        if mistake == "wander":
            words = _wander(grid, start)
        else:
            words = _approach(grid, start, destination, rows_first, timid=mistake == "timid")
            words = [_CONFUSED.get(mistake, {}).get(word, word) for word in words]
        return boxed(" ".join(words) or INFEASIBLE)

    def judge(self, level: CritiqueLevel) -> Judge:
        return ShortestPathJudge(level)


# --- Grids ---------------------------------------------------------------------------------------


def find(grid: Grid, symbol: str) -> Place | None:
    """Row and column of the first such cell."""
    return next(
        ((r, c) for r, row in enumerate(grid) for c, cell in enumerate(row) if cell == symbol), None
    )


def cell(grid: Grid, place: Place) -> str | None:
    """What is there; None off the grid."""
    row, column = place
    inside = 0 <= row < len(grid) and 0 <= column < len(grid[row])
    return grid[row][column] if inside else None


def neighbors(grid: Grid, place: Place) -> dict[str, Place]:
    """Where each move leads, those into blocked cells and off the grid left out."""
    around = {word: (place[0] + dr, place[1] + dc) for word, (dr, dc) in MOVES.items()}
    return {word: p for word, p in around.items() if cell(grid, p) not in (None, BLOCKED)}


def steps_to_go(grid: Grid) -> dict[Place, int]:
    """Fewest moves to the destination, for each place that it can be reached from."""
    destination = find(grid, DESTINATION)
    to_go = {destination: 0}
    queue = deque(to_go)
    while queue:
        place = queue.popleft()
        for neighbor in neighbors(grid, place).values():
            if neighbor not in to_go:
                to_go[neighbor] = to_go[place] + 1
                queue.append(neighbor)
    return to_go


def _shortest(grid: Grid) -> str:
    to_go, place = steps_to_go(grid), find(grid, START)
    if place not in to_go:
        return INFEASIBLE
    words = []
    while to_go[place] > 0:
        around = neighbors(grid, place).items()
        word, place = next((w, p) for w, p in around if to_go[p] == to_go[place] - 1)
        words.append(word)
    return " ".join(words)


def _approach(
    grid: Grid, start: Place, destination: Place, rows_first: bool, timid: bool
) -> list[str]:
    """Moves that come nearer, as the crow flies; blocked cells stop the timid, others miss them."""
    words = []
    place = start
    while place != destination:
        down, right = destination[0] - place[0], destination[1] - place[1]
        vertical = ["down" if down > 0 else "up"] if down else []
        horizontal = ["right" if right > 0 else "left"] if right else []
        nearer = vertical + horizontal if rows_first else horizontal + vertical
        if timid:
            nearer = [word for word in nearer if word in neighbors(grid, place)]
        if not nearer:
            break
        words.append(nearer[0])
        place = place[0] + MOVES[nearer[0]][0], place[1] + MOVES[nearer[0]][1]
    return words


def _wander(grid: Grid, start: Place) -> list[str]:
    """The first way to the destination, trying right, down, left, up everywhere; [] if none."""
    trail: list[tuple[str, Place]] = [("", start)]
    seen = {start}
    while trail and cell(grid, trail[-1][1]) != DESTINATION:
        onward = neighbors(grid, trail[-1][1]).items()
        step = next(((word, place) for word, place in onward if place not in seen), None)
        if step is None:
            trail.pop()
        else:
            trail.append(step)
            seen.add(step[1])
    return [word for word, _ in trail[1:]]


# --- Text ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Move:
    """One of right, down, left, up (or infeasible), and where it stands in the text."""

    word: str
    start: int
    end: int


_PARTS = re.compile(
    r"(?P<word>(?ai:right|down|left|up|infeasible|[rdlu]))(?!\w)"
    r"|(?P<between>[\s,;.\"'\[\]{}]|->|→|\\(?:text|to|rightarrow)\b)"
)
_LETTERS = {word[0]: word for word in MOVES}


def parse(text: str) -> list[Move] | None:
    """The moves in `text`, or "infeasible" alone; None if it holds anything else, or nothing."""
    moves = []
    for part in scan(text, _PARTS) or ():
        if part["word"]:
            word = part["word"].lower()
            moves.append(Move(_LETTERS.get(word, word), part.start(), part.end()))
    if len(moves) > 1 and any(move.word == INFEASIBLE for move in moves):
        return None
    return moves or None


def walk(grid: Grid, start: Place, moves: Sequence[Move]) -> list[Place]:
    """The places passed through, `start` first, up to the first move that is not possible."""
    places = [start]
    for move in moves:
        onward = neighbors(grid, places[-1]).get(move.word)
        if onward is None:
            break
        places.append(onward)
    return places


def _where(grid: Grid, symbol: str) -> str:
    """ "* (2 3)": row and column, from 1; the symbol alone where the destination hides it."""
    place = find(grid, symbol)
    return symbol if place is None else f"{symbol} ({place[0] + 1} {place[1] + 1})"


def _to_text(grid: Grid) -> str:
    return "\n".join(" ".join(row) for row in grid)


# --- The judge --------------------------------------------------------------------------------


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
        read = read_box(completion, parse, problem="is not a path")
        if isinstance(read, Critique):
            return read
        box, moves = read

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
