"""Shortest paths: from * to # on a grid, up, down, left and right, around the blocked cells."""

import random
import re
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from t2g_jax.judges.base import CritiqueLevel, Judge
from t2g_jax.tasks.base import Example, Floor
from t2g_jax.tasks.boxed import boxed
from t2g_jax.tasks.gym import gym_module
from t2g_jax.tasks.reasoning import ReasoningTask

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
        from t2g_jax.judges.shortest_path import ShortestPathJudge

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


def neighbours(grid: Grid, place: Place) -> dict[str, Place]:
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
        for neighbour in neighbours(grid, place).values():
            if neighbour not in to_go:
                to_go[neighbour] = to_go[place] + 1
                queue.append(neighbour)
    return to_go


def _shortest(grid: Grid) -> str:
    to_go, place = steps_to_go(grid), find(grid, START)
    if place not in to_go:
        return INFEASIBLE
    words = []
    while to_go[place] > 0:
        around = neighbours(grid, place).items()
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
            nearer = [word for word in nearer if word in neighbours(grid, place)]
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
        onward = neighbours(grid, trail[-1][1]).items()
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
    position = 0
    while position < len(text):
        part = _PARTS.match(text, position)
        if part is None:
            return None
        if part["word"]:
            word = part["word"].lower()
            moves.append(Move(_LETTERS.get(word, word), part.start(), part.end()))
        position = part.end()
    if len(moves) > 1 and any(move.word == INFEASIBLE for move in moves):
        return None
    return moves or None


def walk(grid: Grid, start: Place, moves: Sequence[Move]) -> list[Place]:
    """The places passed through, `start` first, up to the first move that is not possible."""
    places = [start]
    for move in moves:
        onward = neighbours(grid, places[-1]).get(move.word)
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
