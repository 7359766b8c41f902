import random

import pytest
from reasoning_gym.logic.knights_knaves import KnightsKnavesConfig, KnightsKnavesDataset

from t2g_jax.tasks import TaskError, make_task
from t2g_jax.tasks.puzzles.knights_knaves import Island, KnightsKnaves, holds, parse

PAPER = make_task("knights_knaves")
ISLAND = Island(
    names=("James", "Ann", "Jack"),
    role_names=("a saint", "an egoist"),
    statements=(
        ("lying", 1),
        ("and", ("telling-truth", 0), ("lying", 2)),
        ("->", ("not", ("telling-truth", 1)), ("<=>", ("lying", 1), ("telling-truth", 0))),
    ),
    solution=(True, False, True),
    question="Who?",
)
ASKED = KnightsKnaves(prompt_style="short").example(ISLAND, "by hand")
ANSWER = "James is a saint, Ann is an egoist, and Jack is a saint"


def test_floor_on_the_papers_test_split():
    floor = PAPER.floor(PAPER.split("test"))
    assert floor.accuracy == 0.06
    words = "knave, knave, knave, knight, knight"
    assert floor.policy == f"always says {words}, in the order of the people"


def test_short_prompt_by_hand():
    assert ASKED.prompt == (
        "A saint tells the truth, an egoist lies.\n"
        "James: Ann is an egoist.\n"
        "Ann: James is a saint and Jack is an egoist.\n"
        "Jack: if (not Ann is a saint) then (Ann is an egoist if and only if James is a saint).\n"
        "Who is what? Answer in \\boxed{}."
    )
    assert ASKED.answer == ANSWER


def test_solutions_agree_with_reasoning_gym():
    gym = KnightsKnavesDataset(KnightsKnavesConfig(seed=0, size=1))
    for example in PAPER.split("test"):
        statements, solution = example.metadata["statements"], example.metadata["solution"]
        assert gym.find_solution(statements) == [tuple(solution)]
        assert all(holds(example.metadata, solution, person) for person in range(5))
        answer = PAPER.extract_answer(PAPER.solve(example))
        assert gym.score_answer(answer, vars(example)) == 1.0


@pytest.mark.parametrize(
    "answer",
    [
        ANSWER,
        ANSWER + ".",
        ANSWER.upper(),
        "Jack is a saint, James is a saint and Ann is an egoist",
        "james is a saint\nann is an egoist\njack is a saint",
        "James: saint, Ann: egoist, Jack: saint",
        r"\text{James is a saint, Ann is a egoist, and Jack is a saint}",
        "James is a saint. Jack is a saint. Ann is an egoist. Jack is a saint.",
    ],
)
def test_ways_to_write_the_answer(answer):
    assert PAPER.score(ASKED, f"\\boxed{{{answer}}}").reward == 1.0


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "James is a saint and Ann is an egoist",
        "James is a saint, Ann is an egoist, and Jack is an egoist",
        ANSWER + ", Jack is an egoist",
        "James is a saint egoist, Ann is an egoist saint, and Jack is a saint egoist",
        "it is false that " + ANSWER,
        "James is not a saint, Ann is an egoist, and Jack is a saint",
        "James is a knight, Ann is a knave, and Jack is a knight",
        "James is a saint/egoist, Ann is a saint/egoist, and Jack is a saint/egoist",
        "saint, egoist, saint",
        "Jameſ is a saint, Ann is an egoist, and Jack is a saint",
        "JamesAnn is a saint, Ann is an egoist, and Jack is a saint",
    ],
)
def test_wrong_answers(answer):
    score = PAPER.score(ASKED, f"\\boxed{{{answer}}}")
    assert (score.correct, score.formatted, score.reward) == (False, True, 0.0)


def test_mistakes():
    def attempts(mistake):
        task = make_task("knights_knaves", mistakes={mistake: 1})
        found = (task.demonstrate(ASKED, random.Random(i)) for i in range(100))
        return {
            tuple(claim.role for claim in parse(task.extract_answer(text), ASKED.metadata))
            for text in found
        }

    assert attempts("believe") == {(True, True, True)}
    assert len(attempts("guess")) == 8
    # James says that Ann lies, so one of them does; as Ann's words must fit too, one way is left.
    assert attempts("half") == {(True, False, True)}


def test_half_reads_the_first_statements_only():
    task, rng = make_task("knights_knaves", mistakes={"half": 1}), random.Random(0)
    fits = []
    for example in task.split("test"):
        answer = task.extract_answer(task.demonstrate(example, rng))
        attempt = [claim.role for claim in parse(answer, example.metadata)]
        fits.append([holds(example.metadata, attempt, person) for person in range(5)])
    assert all(fit[:3] == [True] * 3 for fit in fits)
    assert 0.2 < sum(all(fit) for fit in fits) / len(fits) < 0.6


def test_no_puzzle_with_one_solution():
    task = make_task("knights_knaves", settings={"n_people": 1, "depth_constraint": 1})
    with pytest.raises(TaskError, match="raise n_people or depth_constraint"):
        task.split("test")


def test_one_cast_has_the_same_people_in_all_puzzles():
    many = make_task("knights_knaves", preset="tiny", settings={"one_cast": 0})
    one = make_task("knights_knaves", preset="tiny")
    assert len({tuple(example.metadata["names"]) for example in one.split("test")}) == 1
    assert len({tuple(example.metadata["role_names"]) for example in one.split("test")}) == 1
    assert len({tuple(example.metadata["names"]) for example in many.split("test")}) > 100
    for a, b in zip(one.split("test"), many.split("test"), strict=True):
        assert a.metadata["statements"] == b.metadata["statements"]
