import pytest

from t2g_jax.judges import CritiqueLevel, JudgeError
from t2g_jax.tasks import Example
from t2g_jax.tasks.puzzles.shortest_path import ShortestPath, ShortestPathJudge


def asked(*rows: str):
    return ShortestPath().example([list(row) for row in rows], "by hand")


OPEN = asked("*OO", "OXO", "OO#")
CLOSED = asked("*OX", "OXO", "XO#")
HIDDEN = asked("OOO", "O#O")


@pytest.mark.parametrize(
    ("example", "answer", "what", "where", "quotes"),
    [
        (OPEN, "right down", "The path is blocked.", "Step 2 is blocked.", "right+ down-"),
        (OPEN, "up down", "The path leaves the grid.", "Step 1 leaves the grid.", "up-"),
        (OPEN, "right", "The path stops short of #.", "*, at step 1.", "right+ }-"),
        (
            OPEN,
            "right right left right down down",
            "The path is longer than needed.",
            "Step 3 is a detour.",
            "right+ right+ left-",
        ),
        (
            OPEN,
            "down down right right left right",
            "The path goes on past #.",
            "Step 5 goes on past #.",
            "down+ down+ right+ right+ left-",
        ),
        (
            OPEN,
            "down down right right right",
            "The path goes on past #.",
            "Step 5 goes on past #.",
            "down+ down+ right+ right+ right-",
        ),
        (OPEN, "infeasible", "There is a path.", "There is a path.", "infeasible-"),
        (CLOSED, "down right right", "The path is blocked.", "Step 2 is blocked.", "right-"),
        (CLOSED, "down up", "The path stops short of #.", "*, at step 2.", "}-"),
        (CLOSED, "left", "The path leaves the grid.", "Step 1 leaves the grid.", "left-"),
        (HIDDEN, "down", "There is no start.", "Step 1 has no start.", "down-"),
    ],
)
def test_texts_and_quotes(example, answer, what, where, quotes):
    completion = f"\\boxed{{{answer}}}"

    def judge(level):
        return ShortestPathJudge(level).critique(example, completion)

    assert judge(CritiqueLevel.CORRECTNESS).text == "Wrong."
    assert judge(CritiqueLevel.WHAT).text == what
    assert judge(CritiqueLevel.WHERE).text == where.replace("*", "The path stops short of #")
    signs = {1.0: "+", -1.0: "-"}
    found = judge(CritiqueLevel.WHERE).quotes
    assert " ".join(quote.text + signs[quote.reward] for quote in found) == quotes


@pytest.mark.parametrize("example", [CLOSED, HIDDEN])
def test_right_to_say_that_there_is_none(example):
    critique = ShortestPathJudge(CritiqueLevel.WHERE).critique(example, "\\boxed{infeasible}")
    assert critique.text == "Correct."
    assert [(quote.text, quote.reward) for quote in critique.quotes] == [("infeasible", 1.0)]


@pytest.mark.parametrize("metadata", [{}, {"grid": []}, {"grid": [["*", "O"]]}])
def test_examples_that_cannot_be_judged(metadata):
    with pytest.raises(JudgeError, match="odd: its metadata has no `grid` with a #"):
        ShortestPathJudge(CritiqueLevel.WHERE).critique(Example("odd", "", "", metadata), "")
