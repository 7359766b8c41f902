import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from reasoning_gym.algorithmic.binary_matrix import BinaryMatrixConfig, BinaryMatrixDataset

from t2g_jax.tasks import make_task
from t2g_jax.tasks.puzzles.binary_matrix import BinaryMatrix, parse, to_text, values

PAPER = make_task("binary_matrix")
ASKED = BinaryMatrix().example([[0, 1, 1], [1, 1, 1], [1, 1, 0]], "by hand")
ANSWER = "0 1 2\n1 2 1\n2 1 0"


def test_floor_on_the_papers_test_split():
    floor = PAPER.floor(PAPER.split("test"))
    assert (floor.accuracy, floor.policy) == (0.125, "copies the input")


def test_floor_of_a_constant():
    task = make_task("binary_matrix", settings={"min_n": 2, "max_n": 2, "p_zero": 0.01})
    floor = task.floor(task.split("test"))
    answers = [e.answer for e in task.split("test")]
    assert floor.policy == "gives one fixed answer for each size"
    assert floor.accuracy == max(map(answers.count, answers)) / 200


def test_answer_by_hand():
    assert ASKED.answer == ANSWER
    assert PAPER.solve(ASKED) == "\\boxed{\n0 1 2\n1 2 1\n2 1 0\n}"


def test_answers_and_scores_agree_with_reasoning_gym():
    gym = BinaryMatrixDataset(BinaryMatrixConfig(seed=0, size=1))
    for example in PAPER.split("test"):
        assert example.answer == to_text(gym._get_distances(example.metadata["matrix"]))
        assert gym.score_answer(PAPER.extract_answer(PAPER.solve(example)), vars(example)) == 1.0


@pytest.mark.parametrize(
    "answer",
    [
        ANSWER,
        f"\n  {ANSWER}  \n\n",
        "0  1\t2\r\n1 2 1\r\n\r\n2 1 0",
        "0 1 2 1 2 1 2 1 0",
        "[[0, 1, 2], [1, 2, 1], [2, 1, 0]]",
        "0,1,2\n1,2,1\n2,1,0",
        r"\begin{bmatrix} 0 & 1 & 2 \\ 1 & 2 & 1 \\ 2 & 1 & 0 \end{bmatrix}",
    ],
)
def test_ways_to_write_the_answer(answer):
    assert PAPER.score(ASKED, f"So it is $\\boxed{{{answer}}}$.").reward == 1.0


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "0 1 2\n1 2 1\n2 1 1",
        "0 1 2\n1 2 1",
        "0 1 2\n1 2 1\n2 1 0\n0",
        "0 1 2 1\n2 1\n2 1 0",
        "012\n121\n210",
        "0 1 2\n1 2 1\n2 1 0 or so",
        "0 1 2\n1 2 1\n2 1 0.0",
        "__import__('os').abort()",
        "[[0]*3]*3",
        "9" * 10_000,
        "٠ 1 2\n1 2 1\n2 1 0",
    ],
)
def test_wrong_answers(answer):
    score = PAPER.score(ASKED, f"\\boxed{{{answer}}}")
    assert (score.correct, score.formatted, score.reward) == (False, True, 0.0)


@pytest.mark.parametrize(
    ("mistake", "first_attempt"),
    [
        ("copy", "0 1 1\n1 1 1\n1 1 0"),
        ("rows", "0 1 2\n1 1 1\n2 1 0"),
        ("columns", "0 1 2\n1 1 1\n2 1 0"),
        ("diagonals", "0 1 2\n1 1 1\n2 1 0"),
        ("short", "0 0 1\n0 1 0\n1 0 0"),
    ],
)
def test_mistakes(mistake, first_attempt):
    task = make_task("binary_matrix", mistakes={mistake: 1.0})
    completion = task.demonstrate(ASKED, random.Random(0))
    assert task.extract_answer(completion) == first_attempt


def test_mistakes_of_rows_and_columns_differ():
    asked = PAPER.example([[0, 1, 1], [1, 1, 1], [1, 1, 1]], "by hand")
    attempts = {
        mistake: PAPER.extract_answer(
            make_task("binary_matrix", mistakes={mistake: 2}).demonstrate(asked, random.Random(0))
        )
        for mistake in PAPER.mistakes
    }
    assert attempts == {
        "copy": "0 1 1\n1 1 1\n1 1 1",
        "rows": "0 1 2\n1 1 1\n1 1 1",
        "columns": "0 1 1\n1 1 1\n2 1 1",
        "diagonals": "0 1 2\n1 1 2\n2 2 2",
        "short": "0 0 1\n0 1 2\n1 2 3",
    }


def test_mistakes_are_as_frequent_as_asked():
    task = make_task("binary_matrix", mistakes={"copy": 3, "rows": 1, "columns": 0})
    rng = random.Random(0)
    picks = [task.pick_mistake(rng) for _ in range(4_000)]
    assert set(picks) == {"copy", "rows"}
    assert picks.count("copy") / 4_000 == pytest.approx(0.75, abs=0.03)


@given(st.text("0123456789-,&[]\\ \n;x", max_size=60), st.integers(1, 5))
def test_cells_stand_where_they_say(text, n):
    for row in parse(text, n) or []:
        for cell in row:
            assert int(text[cell.start : cell.end]) == cell.value


def test_unequal_rows_are_kept():
    assert values(parse("1 2\n3\n", 3)) == [[1, 2], [3]]
    assert parse("", 3) is None
    assert parse(" \n ", 3) is None
