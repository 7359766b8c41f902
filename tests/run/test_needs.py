"""What a config asks of its task is asked before anything begins."""

import json

import pytest

from t2g_jax.config import load_config
from t2g_jax.errors import T2GError
from t2g_jax.judges.guard import Guard
from t2g_jax.run.needs import ignored, require_needed
from t2g_jax.run.panel import JudgePanel
from t2g_jax.run.rows import require_rows
from t2g_jax.run.scorer import Scorer
from t2g_jax.spans import Quote
from t2g_jax.tasks import Example, Score, find_task
from t2g_jax.tasks.base import Critique, JudgeError


@pytest.fixture
def config(tmp_path):
    """config("grpo", "--a.b", "c"): of these methods, with options."""

    def config(methods, *options):
        path = tmp_path / "config.yaml"
        path.write_text(f"methods: [{methods}]\ntask: {{name: data, settings: {{train: x}}}}\n")
        return load_config(path, options)

    return config


@pytest.fixture
def rows(tmp_path):
    """rows(column="…", reward=…): the task `data` of ten rows that have this column, too."""

    def rows(reward="exact", **columns):
        path = tmp_path / "rows.jsonl"
        lines = [json.dumps({"prompt": f"{i}?", "answer": "a", **columns}) for i in range(10)]
        path.write_text("\n".join(lines))
        return find_task("data", {"train": str(path), "reward": reward})

    return rows


@pytest.mark.parametrize("method", ["grpo", "ppo"])
def test_a_warm_start_needs_demonstrations(config, rows, method):
    with pytest.raises(T2GError, match=r"no demonstrations, which sft.steps \(400\) needs: give"):
        require_needed(config(method), rows())
    require_needed(config(method), rows(demonstration="a"))


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("rltf-sd", ()),
        ("rltf-fm", ()),
        ("grpo-multiturn", ()),
        ("rejection-sampling", ()),
    ],
)
def test_methods_that_learn_from_critiques_need_a_judge(config, rows, method, options):
    task = rows(demonstration="a")
    with pytest.raises(T2GError, match=f"no judge of its own, which {method} needs: name one in"):
        require_needed(config(method, *options), task)
    require_needed(config(method, *options), rows(demonstration="a", feedback="Say a."))
    require_needed(config(method, *options, "--judge.name", "my:judge"), task)


@pytest.mark.parametrize("options", [(), ("--text2grad.span_source", "judge")])
def test_spans_need_a_judge_that_quotes(config, rows, options):
    options = (*options, "--annotate.prompts", "9")
    task = rows(demonstration="a", feedback="Say a.")
    with pytest.raises(T2GError, match="quotes nothing, but quotes are what the spans of text2g"):
        require_needed(config("text2grad", *options), task)
    with pytest.raises(T2GError, match="no judge of its own, which text2grad needs"):
        require_needed(
            config("text2grad", "--text2grad.span_source", "judge"), rows(demonstration="a")
        )
    require_needed(config("text2grad", *options, "--judge.name", "my:judge"), task)
    unscored = rows(reward=None, demonstration="a", feedback="Say a.")
    with pytest.raises(T2GError, match="what the reward of a task without `score` is made of"):
        require_needed(config("grpo"), unscored)


def test_what_a_run_does_nothing_with_is_told(config, rows):
    own, others = ("--judge.name", "task"), ("--judge.name", "my:judge")
    task = rows(demonstration="a", privileged_context="It is a.")
    assert ignored(config("rltf-sd", *own), task) == []
    assert ignored(config("grpo", *others), task) == [], "nobody is shown a critique"
    (note,) = ignored(config("rltf-sd", *others), task)
    assert "`privileged_context` (10 rows) is not shown to anybody" in note

    without = rows(demonstration="a")
    (note,) = ignored(config("rltf-sd", *others), without)
    assert "repair_fraction (0.5): the warm start shows no second attempts" in note
    assert "no judge of its own; sft.critiques: judge shows the run's" in note
    assert ignored(config("rltf-sd", *others, "--sft.critiques", "judge"), without) == []
    graded = rows(reward={"name": "exact", "correct_from": None}, demonstration="a", feedback="f")
    (note,) = ignored(config("rltf-sd", *own), graded)
    assert "as the task has no right answers" in note
    assert ignored(config("rltf-sd", *own, "--sft.repair_fraction", "0"), graded) == []


def test_one_turn_of_rejection_sampling_needs_none(config, rows):
    once = ("--rejection_sampling.turns", "1")
    require_needed(config("rejection-sampling", *once), rows(demonstration="a"))


def test_critiques_as_demonstrations_need_the_tasks_judge(config, rows):
    options = ("--sft.critique_fraction", "0.5", "--judge.name", "my:judge")
    with pytest.raises(T2GError, match=r"which sft.critique_fraction \(0.5\) needs"):
        require_needed(config("grpo", *options), rows(demonstration="a"))
    require_needed(config("grpo", *options, "--sft.critiques", "judge"), rows(demonstration="a"))


def test_a_task_without_a_reward_needs_a_judge(config, rows):
    task = rows(reward=None, demonstration="a")
    with pytest.raises(T2GError, match="no judge of its own, which a reward without `score` needs"):
        require_needed(config("grpo"), task)
    require_needed(config("grpo", "--judge.name", "my:judge"), task)


def test_rejection_sampling_needs_right_answers_or_a_threshold(config, rows):
    task = rows(reward={"name": "exact", "correct_from": None}, demonstration="a", feedback="f")
    with pytest.raises(T2GError, match=r"the task data only grades them: set rejection_sampling"):
        require_needed(config("rejection-sampling"), task)
    require_needed(config("rejection-sampling", "--rejection_sampling.least_reward", "0.5"), task)


def test_no_prompt_is_annotated_twice(config, rows):
    task, judge = rows(demonstration="a"), ("--judge.name", "my:judge")
    with pytest.raises(T2GError, match=r"annotate.prompts \(1000\) must not exceed the 9 training"):
        require_needed(config("text2grad", *judge), task)
    require_needed(config("text2grad", *judge, "--annotate.prompts", "9"), task)


# --- The reward ----------------------------------------------------------------------------------


class Judge:
    name = "a judge"

    def critique(self, example, completion):
        if completion == "?":
            raise JudgeError("do not know")
        return Critique("So.", (Quote(completion[:1], 1.0), Quote(completion[-1:], -0.5)))


def test_critiques_are_the_reward_of_a_task_without_one(rows):
    task = rows(reward=None)
    scorer = Scorer(task, JudgePanel(Judge(), Guard()))
    examples = task.split("train")[:2]
    found = scorer.scores(examples, ["ab", "?"], completion_ids=[[1], [2]])
    assert found == [Score(0.25), None]


def test_rewards_get_tokens_and_progress(rows):
    seen = []

    class Task:
        def score_batch(self, examples, completions, **about):
            seen.append(about)
            return [Score(1.0, metrics={"a": 2.0})] * len(completions)

    scorer = Scorer(Task(), JudgePanel(None, Guard()))
    assert scorer.scores([Example("i", "?")], ["x"], completion_ids=[[5]], step=3, steps=7) == [
        Score(1.0, metrics={"a": 2.0})
    ]
    assert seen == [{"completion_ids": [[5]], "step": 3, "steps": 7}]


def test_nobody_to_ask():
    panel = JudgePanel(None, Guard())
    assert list(panel.critiques([], [])) == []
    with pytest.raises(
        T2GError, match="there is no judge to ask for a critique: name one in judge"
    ):
        panel.critique(Example("i", "?"), "x")


# --- Rows ----------------------------------------------------------------------------------------


def test_a_run_goes_on_with_the_rows_that_it_began_with(tmp_path, rows):
    workdir = tmp_path / "run"
    require_rows(workdir, rows(), record=True)
    require_rows(workdir, rows())
    with pytest.raises(T2GError, match=r"the rows of the task .* are not those that the run in"):
        require_rows(workdir, rows(more="x"))


def test_rows_that_cannot_be_used_are_kept_with_their_reason(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "a"}\n{"prompt": 3}\n{"prompt": "b"}\n')
    require_rows(tmp_path / "run", find_task("data", {"train": str(path)}), record=True)
    (line,) = (tmp_path / "run/quarantine/rows.jsonl").read_text().splitlines()
    assert json.loads(line) == {
        "source": str(path),
        "line": 2,
        "reason": "`prompt` is int 3; must be text or messages",
    }
