"""What holds for the judge of every puzzle."""

import random
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t2g_jax.judges import CritiqueLevel
from t2g_jax.spans.align import align
from t2g_jax.tasks import PUZZLES, make_task

TASKS = {
    f"{name}-{preset}": make_task(name, preset=preset, train_size=200, test_size=60)
    for name in PUZZLES
    for preset in ("paper", "tiny")
}
COMPLETIONS = st.text() | st.text("\\boxed{} \n0123,-[]&isaknveghturpdwl", max_size=60)


def critiques(task, example, completion):
    return [task.judge(level).critique(example, completion) for level in CritiqueLevel]


def attempts(task):
    rng = random.Random(0)
    return [(example, task.demonstrate(example, rng)) for example in task.split("test")]


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_solutions_are_praised(task):
    for example in task.split("test"):
        completion = f"I checked it twice: {task.solve(example)}"
        for critique in critiques(task, example, completion):
            assert critique.text == "Correct."
            assert critique.quotes
            assert all(quote.reward == 1.0 for quote in critique.quotes)


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_praise_and_blame_agree_with_the_score(task):
    for example, completion in attempts(task):
        correct = task.score(example, completion).correct
        for critique in critiques(task, example, completion):
            assert (critique.text == "Correct.") == correct
            assert any(quote.reward < 0 for quote in critique.quotes) != correct


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_critiques_do_not_tell_the_answer(task):
    for example, completion in attempts(task):
        for critique in critiques(task, example, completion):
            assert example.answer not in critique.text
            for part in example.answer.replace("\n", ", ").split(", "):
                assert part not in critique.text


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_quotes_align_and_are_the_same_at_every_level(task):
    for example, completion in attempts(task):
        first, *others = critiques(task, example, completion)
        assert all(critique.quotes == first.quotes for critique in others)
        alignment = align(completion, first.quotes)
        assert not alignment.unaligned
        assert all(span.how == "exact" for span in alignment.spans)
        places = [(span.start, span.end) for span in alignment.spans]
        assert places == sorted(set(places))
        assert all(end <= start for (_, end), (start, _) in pairwise(places))


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
@pytest.mark.parametrize("box", [False, True], ids=["as it is", "boxed"])
@given(text=COMPLETIONS)
@settings(max_examples=50)
def test_any_completion_can_be_judged(task, box, text):
    example = task.split("test")[0]
    completion = f"\\boxed{{{text}}}" if box else text
    score = task.score(example, completion)
    for critique in critiques(task, example, completion):
        assert (critique.text == "Correct.") == score.correct
        assert ("No answer in" in critique.text) != score.formatted
        assert any(quote.reward < 0 for quote in critique.quotes) == (
            bool(completion.strip()) and not score.correct
        )
        assert not align(completion, critique.quotes).unaligned


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_unformatted_answers(task):
    example = task.split("test")[0]
    for critique in critiques(task, example, " \n"):
        assert (critique.text, critique.quotes) == ("No answer in \\boxed{}.", ())
    for critique in critiques(task, example, "I give up.\n\nReally.\n"):
        assert critique.text == "No answer in \\boxed{}."
        assert [(quote.text, quote.reward) for quote in critique.quotes] == [("Really.", -1.0)]
    for critique in critiques(task, example, "It is \\boxed{ }."):
        assert "\\boxed{} " in critique.text
        assert [(quote.text, quote.reward) for quote in critique.quotes] == [("{ }", -1.0)]


@pytest.mark.parametrize("name", PUZZLES)
def test_names(name):
    assert make_task(name).judge(CritiqueLevel.WHAT).name == name
