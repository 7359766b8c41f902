import re

import pytest

from t2g_jax.judges import CritiqueLevel, JudgeError
from t2g_jax.tasks import Example, make_task
from t2g_jax.tasks.puzzles.knights_knaves import (
    Island,
    KnightsKnaves,
    KnightsKnavesJudge,
    holds,
    parse,
    to_text,
)

ISLAND = Island(
    names=("Emma", "Liam", "Noah"),
    role_names=("a knight", "a knave"),
    statements=(("lying", 1), ("and", ("telling-truth", 0), ("lying", 2)), ("lying", 1)),
    solution=(True, False, True),
    question="Who?",
)
ASKED = KnightsKnaves().example(ISLAND, "by hand")


def judge(answer: str, level=CritiqueLevel.WHERE, **options):
    return KnightsKnavesJudge(level, **options).critique(ASKED, f"\\boxed{{{answer}}}")


@pytest.mark.parametrize(
    ("attempt", "what", "where"),
    [
        (
            (True, True, True),
            "3 said to tell the truth would lie.",
            "What Emma says would be false. What Liam says would be false. "
            "What Noah says would be false. Look again at Liam.",
        ),
        (
            (False, False, True),
            "1 said to lie would tell the truth.",
            "What Emma says would be true. Look again at Emma.",
        ),
        (
            (False, True, True),
            "2 said to tell the truth would lie.",
            "What Liam says would be false. What Noah says would be false. Look again at Emma.",
        ),
        (
            (True, False, False),
            "2 said to lie would tell the truth.",
            "What Liam says would be true. What Noah says would be true. Look again at Noah.",
        ),
    ],
)
def test_texts(attempt, what, where):
    answer = to_text(ASKED.metadata, attempt)
    assert judge(answer, CritiqueLevel.CORRECTNESS).text == "Wrong."
    assert judge(answer, CritiqueLevel.WHAT).text == what
    assert judge(answer, CritiqueLevel.WHERE).text == where


def test_people_without_a_role_or_with_two():
    answer = "Emma is a knight, Noah is a knight, Noah is a knave"
    assert judge(answer, CritiqueLevel.WHAT).text == "1 without a role. 1 with two roles."
    critique = judge(answer)
    assert critique.text == "Liam has no role. Noah has two roles."
    assert [(quote.text, quote.reward) for quote in critique.quotes] == [
        ("Emma is a knight", 1.0),
        ("Noah is a knight", 1.0),
        ("Noah is a knave", -1.0),
        ("}", -1.0),
    ]


def test_long_lists_are_cut():
    answer = to_text(ASKED.metadata, (True, True, True))
    text = judge(answer, max_listed=1).text
    assert text == "What Emma says would be false. And 2 more errors. Look again at Liam."


def test_claims_are_poor_where_they_are_wrong_and_contradictions_are_named():
    task = make_task("knights_knaves", preset="tiny", test_size=40)
    for example in task.split("test"):
        puzzle = example.metadata
        for attempt in ((True, True, True), (False, True, False), (False, False, False)):
            completion = f"\\boxed{{{to_text(puzzle, attempt)}}}"
            critique = task.judge(CritiqueLevel.WHERE).critique(example, completion)
            assert [quote.reward > 0 for quote in critique.quotes] == [
                role == right for role, right in zip(attempt, puzzle["solution"], strict=True)
            ]
            named = re.findall(r"What (\w+) says would be (?:true|false)\.", critique.text)
            assert named == [
                name
                for person, name in enumerate(puzzle["names"])
                if not holds(puzzle, attempt, person)
            ]
            astray = re.findall(r"Look again at (\w+)\.$", critique.text)
            wrong = [quote.reward < 0 for quote in critique.quotes]
            assert astray == [name for name, w in zip(puzzle["names"], wrong, strict=True) if w][:1]
            assert parse(critique.text, puzzle) is None


def test_examples_that_cannot_be_judged():
    with pytest.raises(JudgeError, match="odd: `statements` is missing from its metadata"):
        KnightsKnavesJudge(CritiqueLevel.WHERE).critique(
            Example("odd", "", "", {"names": [], "role_names": []}), ""
        )
