import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from t2g_jax.judges import CritiqueLevel, JudgeError
from t2g_jax.spans.align import align
from t2g_jax.tasks import Example
from t2g_jax.tasks.puzzles.binary_matrix import BinaryMatrix, BinaryMatrixJudge, to_text

TASK = BinaryMatrix()
ASKED = TASK.example([[0, 1, 1], [1, 1, 1], [1, 1, 0]], "by hand")  # 0 1 2 / 1 2 1 / 2 1 0


def judge(answer: str, level=CritiqueLevel.WHERE, **options):
    return BinaryMatrixJudge(level, **options).critique(ASKED, f"\\boxed{{{answer}}}")


FINE = [f"Row {r}: right right right." for r in (1, 2, 3)]


@pytest.mark.parametrize(
    ("answer", "what", "where"),
    [
        (
            "0 1 1\n1 2 1\n2 1 0",
            "Wrong cells: 1 too small.",
            "Row 1: right right low. Row 2: right right right. Row 3: right right right.",
        ),
        (
            "0 1 2\n1 0 3\n9 1 0",
            "Wrong cells: 1 too small, 2 too large.",
            "Row 1: right right right. Row 2: right low high. Row 3: high right right.",
        ),
        ("0 1 2\n1 2 1", "Wrong shape.", f"There are 2 rows, not 3. {FINE[0]} {FINE[1]}"),
        ("0 1 2\n1 2 1\n2 1 0\n0", "Wrong shape.", f"There are 4 rows, not 3. {' '.join(FINE)}"),
        (
            "0 1 2\n1 2\n2 1 0",
            "Wrong shape.",
            f"Row 2 has 2 numbers, not 3. {FINE[0]} {FINE[2]}",
        ),
        (
            "0 1\n1 2 -1",
            "Wrong shape. Wrong cells: 1 too small.",
            "There are 2 rows, not 3. Row 1 has 2 numbers, not 3. Row 2: right right low.",
        ),
    ],
)
def test_texts(answer, what, where):
    assert judge(answer, CritiqueLevel.CORRECTNESS).text == "Wrong."
    assert judge(answer, CritiqueLevel.WHAT).text == what
    assert judge(answer, CritiqueLevel.WHERE).text == where


@pytest.mark.parametrize(
    ("answer", "quotes"),
    [
        ("0 1 2\n1 2\n0 1 0", "0+ 1+ 2+ 1_2- 0- 1+ 0+ }+"),
        ("0 1 2\n1 2 1", "0+ 1+ 2+ 1+ 2+ 1+ }-"),
        ("0 1 2\n1 2 1\n2 1 0\n3 4 5", "0+ 1+ 2+ 1+ 2+ 1+ 2+ 1+ 0+ 3_4_5-"),
        ("[[0, 1, 1], [1, 2, 1], [2, 1, 0]]", "0+ 1+ 1- 1+ 2+ 1+ 2+ 1+ 0+ }+"),
        ("0 1 1 1 2 1 2 1 0", "0+ 1+ 1- 1+ 2+ 1+ 2+ 1+ 0+ }+"),
    ],
)
def test_quotes(answer, quotes):
    found = judge(answer).quotes
    signs = {1.0: "+", -1.0: "-"}
    said = [q.text.replace(" ", "_") + signs[q.reward] for q in found]
    assert said[0] == "\\boxed{+"
    assert " ".join(said[1:]) == quotes


@given(
    matrix=st.lists(st.integers(0, 1), min_size=9, max_size=9).filter(lambda cells: 0 in cells),
    changes=st.lists(st.integers(-1, 1), min_size=9, max_size=9),
    before=st.sampled_from(["", "Row 1 is 0 1 2.\n", "\\boxed{0 1} no, "]),
)
def test_cells_are_poor_where_they_are_wrong(matrix, changes, before):
    example = TASK.example([matrix[:3], matrix[3:6], matrix[6:]], "drawn")
    right = [int(cell) for cell in example.answer.split()]
    given_cells = [max(0, cell + change) for cell, change in zip(right, changes, strict=True)]
    answer = to_text([given_cells[:3], given_cells[3:6], given_cells[6:]])
    completion = f"{before}\\boxed{{\n{answer}\n}}\n1 0 2"
    critique = BinaryMatrixJudge(CritiqueLevel.WHERE).critique(example, completion)

    opening, *spans, closing = align(completion, critique.quotes).spans
    assert completion[opening.start : opening.end + 1] == "\\boxed{\n"
    assert completion[closing.start :] == "}\n1 0 2"
    assert opening.reward == closing.reward == 1.0
    first = completion.rindex("{") + 2
    assert [(span.start, span.end) for span in spans] == [
        (first + 2 * i, first + 2 * i + 1) for i in range(9)
    ]
    assert [span.reward for span in spans] == [
        1.0 if cell == wanted else -1.0 for cell, wanted in zip(given_cells, right, strict=True)
    ]
    if given_cells == right:
        assert critique.text == "Correct."
        return
    rows = re.findall(r"Row (\d): ([a-z ]+)\.", critique.text)
    assert " ".join(f"Row {r}: {words}." for r, words in rows) == critique.text
    assert [int(r) for r, _ in rows] == [1, 2, 3]
    words = [word for _, line in rows for word in line.split()]
    assert words == [
        "right" if cell == wanted else "high" if cell > wanted else "low"
        for cell, wanted in zip(given_cells, right, strict=True)
    ]


@given(st.text("0123 \n", max_size=60))
def test_texts_hold_places_and_sizes_only(answer):
    sentence = (
        r"(?:Row \d+:(?: right| low| high)+\.|There are \d+ rows, not 3\."
        r"|Row \d+ has \d+ numbers, not 3\.|Correct\."
        r"|The answer in \\boxed\{\} is not a matrix of numbers\.)"
    )
    assert re.fullmatch(rf"{sentence}(?: {sentence})*", judge(answer).text)


def test_examples_that_cannot_be_judged():
    example = Example("odd", "", "0 1", {"matrix": [[0, 1]]})
    with pytest.raises(JudgeError, match="odd: its answer is not a square matrix"):
        TASK.judge(CritiqueLevel.WHERE).critique(example, "\\boxed{0 1}")


def test_levels_can_be_named():
    assert [CritiqueLevel(name).name for name in ("correctness", "what", "where")] == [
        "CORRECTNESS",
        "WHAT",
        "WHERE",
    ]
