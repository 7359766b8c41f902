"""What holds for every puzzle."""

import json
import os
import random
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t2g_jax.tasks import PUZZLES, Example, TaskError, make_task

TASKS = {
    (name, preset): make_task(name, preset=preset, train_size=3_000, test_size=60)
    for name in PUZZLES
    for preset in ("paper", "tiny")
}
TINY = [TASKS[name, "tiny"] for name in PUZZLES]


def content(example: Example) -> str:
    """The problem without its wording."""
    keys = ("matrix", "grid", "statements")
    return json.dumps([example.metadata[key] for key in keys if key in example.metadata])


@pytest.mark.parametrize("key", TASKS, ids=str)
def test_solutions_are_right(key):
    task = TASKS[key]
    for example in [*task.split("test"), *task.split("train")[:100]]:
        score = task.score(example, task.solve(example))
        assert (score.correct, score.formatted, score.reward) == (True, True, 1.0)
        assert task.extract_answer(task.solve(example)) is not None


@pytest.mark.parametrize("key", TASKS, ids=str)
def test_demonstrations_are_formatted_and_sometimes_right(key):
    task, rng = TASKS[key], random.Random(0)
    examples = task.split("train")[:300]
    scores = [task.score(e, task.demonstrate(e, rng)) for e in examples]
    assert all(score.formatted for score in scores)
    assert 0 < sum(score.correct for score in scores) < 0.75 * len(scores)


@pytest.mark.parametrize("task", TINY, ids=PUZZLES)
def test_demonstrations_follow_the_generator_given(task):
    example = task.split("test")[0]
    first = [task.demonstrate(example, random.Random(i)) for i in range(20)]
    assert first == [task.demonstrate(example, random.Random(i)) for i in range(20)]


@pytest.mark.parametrize("task", TINY, ids=PUZZLES)
def test_splits_share_no_puzzle(task):
    test, train = ({content(e) for e in task.split(split)} for split in ("test", "train"))
    assert len(test) > 50
    assert len(train) > 1_000
    assert not test & train


@pytest.mark.parametrize("task", TINY, ids=PUZZLES)
def test_train_split_is_a_sequence(task):
    train = task.split("train")
    assert len(train) == 3_000
    assert train[5] == train[5] == train[3:9][2] == train[-2_995]
    assert [e.id for e, _ in zip(train, range(3), strict=False)] == [e.id for e in train[:3]]
    assert len({e.id for e in train} | {e.id for e in task.split("test")}) == 3_060
    with pytest.raises(IndexError):
        train[3_000]


@pytest.mark.parametrize("name", PUZZLES)
def test_split_sizes_do_not_change_the_other_split(name):
    small = make_task(name, preset="tiny", train_size=10, test_size=60)
    assert small.split("test") == TASKS[name, "tiny"].split("test")
    assert small.split("train")[:] == TASKS[name, "tiny"].split("train")[:10]
    long = make_task(name, preset="tiny", train_size=50_000, test_size=60)
    assert len(long.split("train")) == 50_000
    assert long.split("train")[49_999].prompt


@pytest.mark.parametrize("name", PUZZLES)
def test_seed_changes_the_puzzles(name):
    other = make_task(name, preset="tiny", seed=1, train_size=10, test_size=60)
    assert other.split("test") != TASKS[name, "tiny"].split("test")


def test_same_in_every_process():
    program = (
        "import hashlib, json, random; from t2g_jax.tasks import PUZZLES, make_task\n"
        "for name in PUZZLES:\n"
        "    task = make_task(name, preset='tiny', test_size=60)\n"
        "    examples = [*task.split('test'), *task.split('train')[:200]]\n"
        "    rng = random.Random(0)\n"
        "    texts = [[e.id, e.prompt, task.demonstrate(e, rng)] for e in examples]\n"
        "    print(hashlib.sha256(json.dumps(texts).encode()).hexdigest())\n"
    )

    def digest(hash_seed: str) -> str:
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        command = [sys.executable, "-c", program]
        return subprocess.run(
            command, env=environment, capture_output=True, text=True, check=True
        ).stdout

    assert digest("1") == digest("2")


@pytest.mark.parametrize("key", TASKS, ids=str)
def test_metadata_survives_json(key):
    task = TASKS[key]
    for example in task.split("test"):
        metadata = json.loads(json.dumps(example.metadata))
        assert metadata == example.metadata
        copy = Example(example.id, example.prompt, example.answer, metadata)
        assert task.score(copy, task.solve(copy)).correct


@pytest.mark.parametrize("name", PUZZLES)
def test_prompts(name):
    short = make_task(name, preset="tiny", prompt_style="short", test_size=60)
    pairs = list(zip(TASKS[name, "tiny"].split("test"), short.split("test"), strict=True))
    for full, brief in pairs:
        assert (full.answer, full.metadata) == (brief.answer, brief.metadata)
        assert "\\boxed{}" in full.prompt
        assert "\\boxed{}" in brief.prompt
        assert len(brief.prompt) < len(full.prompt)
    assert len({brief.prompt for _, brief in pairs}) > 30


@pytest.mark.parametrize("task", TINY, ids=PUZZLES)
@given(text=st.text() | st.text("\\boxed{} \n0123,-[]&isaknveghturpdwl"))
@settings(max_examples=60)
def test_rubbish_scores_nothing(task, text):
    example = task.split("test")[0]
    assert task.score(example, text).reward == -0.1 or "boxed" in text
    box = "\\boxed{" + text + "}"
    assert task.score(example, box).reward in (0.0, -0.1, 1.0)
    assert isinstance(task.extract_answer(box), str | None)


@pytest.mark.parametrize("task", TINY, ids=PUZZLES)
def test_reward(task):
    example = task.split("test")[0]
    assert task.score(example, "").reward == -0.1
    assert task.score(example, example.answer).reward == -0.1
    assert task.score(example, "\\boxed{}").reward == 0.0
    assert task.score(example, f"\\boxed{{?}} no: {task.solve(example)}, I think.").reward == 1.0
    assert task.score(example, f"{task.solve(example)} or \\boxed{{?}}").reward == 0.0


@pytest.mark.parametrize("task", TINY, ids=PUZZLES)
def test_floor_is_about_the_examples_given(task):
    example = task.split("test")[0]
    assert task.floor([example]).accuracy in (0.0, 1.0)
    with pytest.raises(ValueError, match="at least one example"):
        task.floor([])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "sudoku"}, "unknown name 'sudoku'; known: binary_matrix, knights_knaves"),
        ({"preset": "huge"}, "unknown preset 'huge'; known: paper, tiny"),
        ({"settings": {"n": 3}}, "unknown setting 'n'; known: min_n, max_n, p_zero"),
        ({"settings": {"size": 3}}, "unknown setting 'size'"),
        ({"settings": {"max_n": 3.5}}, "setting `max_n` is 3.5; must be a whole number"),
        ({"settings": {"max_n": "4"}}, "setting `max_n` is '4'; must be a whole number"),
        ({"settings": {"min_n": 9}}, "min_n must be less than or equal to max_n"),
        ({"settings": {"max_n": 10**18}}, "task.settings of .*`max_n` is 10+; must be at most 32"),
        ({"name": "knights_knaves", "settings": {"n_people": 30}}, "must be at most 12"),
        ({"name": "knights_knaves", "settings": {"n_people": 1}}, "raise n_people to 2 or more"),
        ({"name": "knights_knaves", "settings": {"depth_constraint": 10**6}}, "at most 8"),
        ({"name": "shortest_path", "settings": {"max_cols": 10**18}}, "must be at most 32"),
        ({"prompt_style": "long"}, "unknown prompt_style 'long'; known: full, short"),
        ({"mistakes": {"sleep": 1.0}}, "unknown mistakes 'sleep'; known: copy"),
        ({"mistakes": {"copy": 0.0}}, "mistakes must be at least 0, and one above 0"),
        ({"train_size": 0}, r"train_size \(0\)"),
        ({"test_size": 20_000}, r"test_size \(20000\)"),
    ],
)
def test_what_cannot_be_made(arguments, message):
    with pytest.raises(TaskError, match=message):
        make_task(**{"name": "binary_matrix", **arguments})


def test_too_few_puzzles_for_two_splits():
    task = make_task("binary_matrix", settings={"min_n": 2, "max_n": 2}, test_size=500)
    assert len(task.split("test")) == 500
    with pytest.raises(TaskError, match=r"15 different test puzzles; make the puzzles larger"):
        task.split("train")


def test_without_reasoning_gym(monkeypatch):
    monkeypatch.setitem(sys.modules, "reasoning_gym.algorithmic.binary_matrix", None)
    monkeypatch.delitem(sys.modules, "t2g_jax.tasks.puzzles.binary_matrix")
    with pytest.raises(TaskError, match=r"pip install 't2g_jax\[tasks\]'"):
        make_task("binary_matrix")


def test_unknown_split():
    with pytest.raises(TaskError, match="unknown split 'dev'; known: train, test"):
        TINY[0].split("dev")
