import random

import pytest
from reasoning_gym.graphs.shortest_path import ShortestPathConfig, ShortestPathDataset

from t2g_jax.tasks import TaskError, make_task
from t2g_jax.tasks.puzzles.shortest_path import ShortestPath, find, parse

PAPER = make_task("shortest_path")


def asked(*rows: str):
    return ShortestPath(prompt_style="short").example([list(row) for row in rows], "by hand")


OPEN = asked("*OO", "OXO", "OO#")
CLOSED = asked("*XO", "XXO", "OO#")
HIDDEN = asked("OOO", "O#O")


def test_floor_on_the_papers_test_split():
    floor = PAPER.floor(PAPER.split("test"))
    assert (floor.accuracy, floor.policy) == (0.385, 'always says "infeasible"')


def test_floor_of_another_constant():
    floor = PAPER.floor([asked("*#"), asked("O*#"), asked("#*")])
    assert (floor.accuracy, floor.policy) == (2 / 3, 'always says "right"')


def test_hidden_starts():
    grids = [example.metadata["grid"] for example in PAPER.split("test")]
    assert sum(find(grid, "*") is None for grid in grids) == 6
    distinct = make_task("shortest_path", settings={"distinct_ends": 1})
    assert all(find(e.metadata["grid"], "*") for e in distinct.split("test"))


def test_prompt_by_hand():
    assert OPEN.prompt == (
        "Shortest path from * (1 1) to # (3 3), X is blocked:\n* O O\nO X O\nO O #\n"
        "Answer with up, down, left, right, or infeasible, in \\boxed{}."
    )
    assert HIDDEN.prompt.startswith("Shortest path from * to # (2 2), X is blocked:\n")
    assert (OPEN.answer, CLOSED.answer, HIDDEN.answer) == (
        "right right down down",
        "infeasible",
        "infeasible",
    )


def test_answers_and_scores_agree_with_reasoning_gym():
    gym = ShortestPathDataset(ShortestPathConfig(seed=0, size=1))
    for example in PAPER.split("test"):
        grid = example.metadata["grid"]
        if find(grid, "*") is None:
            continue
        assert len(gym._get_answer(grid)) == len(example.answer.replace("infeasible", "").split())
        entry = {"answer": example.answer, "metadata": {"matrix": grid}}
        assert gym.score_answer(PAPER.extract_answer(PAPER.solve(example)), entry) == 1.0


@pytest.mark.parametrize(
    ("example", "answer"),
    [
        (OPEN, "right right down down"),
        (OPEN, "down down right right"),
        (OPEN, "Right, right, down, down."),
        (OPEN, "r r d d"),
        (OPEN, "right -> right -> down -> down"),
        (OPEN, r"\text{right right down down}"),
        (OPEN, "['right', 'right', 'down', 'down']"),
        (CLOSED, "infeasible"),
        (CLOSED, "Infeasible."),
        (HIDDEN, '"infeasible"'),
    ],
)
def test_ways_to_write_the_answer(example, answer):
    assert PAPER.score(example, f"\\boxed{{{answer}}}").reward == 1.0


@pytest.mark.parametrize(
    ("example", "answer"),
    [
        (OPEN, ""),
        (OPEN, "infeasible"),
        (OPEN, "right right down"),
        (OPEN, "right down right down"),  # through a wall
        (OPEN, "up right right down down"),
        (OPEN, "right left right right down down"),
        (OPEN, "right right down down down"),
        (OPEN, "right right down down infeasible"),
        (OPEN, "go right right down down"),
        (OPEN, "rrdd"),
        (CLOSED, ""),
        (CLOSED, "right right down down"),
        (CLOSED, "not infeasible"),
        (CLOSED, "infeaſible"),
        (HIDDEN, "right"),
    ],
)
def test_wrong_answers(example, answer):
    score = PAPER.score(example, f"\\boxed{{{answer}}}")
    assert (score.correct, score.formatted, score.reward) == (False, True, 0.0)


@pytest.mark.parametrize(
    ("mistake", "example", "attempts"),
    [
        (
            "straight",
            asked("*OO", "OXO", "OX#"),
            {"right right down down", "down down right right"},
        ),
        ("mirrored", OPEN, {"left left down down", "down down left left"}),
        ("turned", OPEN, {"down down left left", "left left down down"}),
        ("reversed", OPEN, {"left left up up", "up up left left"}),
        ("timid", asked("*OO", "OXO", "OX#"), {"right right down down", "down down"}),
        ("timid", CLOSED, {"infeasible"}),
        ("wander", asked("*OO", "OXO", "#OO"), {"right right down down left left"}),
        ("wander", CLOSED, {"infeasible"}),
        ("give_up", OPEN, {"infeasible"}),
        ("straight", HIDDEN, {"infeasible"}),
    ],
)
def test_mistakes(mistake, example, attempts):
    task = make_task("shortest_path", mistakes={mistake: 1})
    completions = [task.demonstrate(example, random.Random(i)) for i in range(30)]
    assert {task.extract_answer(completion) for completion in completions} == attempts


def test_moves_stand_where_they_say():
    text = "right, U;\nleft"
    assert [(m.word, text[m.start : m.end]) for m in parse(text)] == [
        ("right", "right"),
        ("up", "U"),
        ("left", "left"),
    ]


def test_grid_without_room_for_both_ends():
    with pytest.raises(TaskError, match="min_rows or min_cols must be at least 2"):
        make_task("shortest_path", settings={"min_rows": 1, "min_cols": 1})
