"""Whole runs with tasks of one's own: rows that can be right, and a task that only grades."""

import json
import sys

import pytest
import yaml

from t2g_jax import cli, user_code
from t2g_jax.training.metrics import read_metrics

MODULE = '''
from t2g_jax.judges import Critique
from t2g_jax.spans import Quote
from t2g_jax.tasks import Example, Score

class Short:
    """The shorter, the better."""
    system = "Be brief."
    def __init__(self, size):
        self.size = size
    def split(self, split):
        count = self.size if split == "train" else 4
        prompt = [{"role": "user", "content": "Say hi"}, {"role": "assistant", "content": "Hi"}]
        return [
            Example(f"{split}-{i}", [*prompt, {"role": "user", "content": f"{split} {i}"}])
            for i in range(count)
        ]
    def score(self, example, completion):
        return Score(1 - len(completion) / 50, metrics={"chars": len(completion)})
    def demonstrate(self, example, rng):
        return rng.choice("abc") * rng.randint(1, 9)

def make(size):
    return Short(size)

class Judge:
    name = "brief"
    def critique(self, example, completion):
        return Critique("Shorter!", (Quote(completion[:3], -1.0),) if completion.strip() else ())

def judge(task, level):
    return Judge()
'''


@pytest.fixture
def run(tmp_path, root, monkeypatch, compiled_once):
    """run("name", changes of the tiny config): its work directory, after all phases."""
    monkeypatch.setattr(sys, "path", list(filter(None, sys.path)))
    monkeypatch.setattr(user_code, "_folders", [])
    (tmp_path / "own_task.py").write_text(MODULE)
    tiny = yaml.safe_load((root / "tests/configs/tiny.yaml").read_text())

    def run(**changes):
        config = tmp_path / "own.yaml"
        merged = {
            key: tiny.get(key, {}) | value if isinstance(value, dict) and key != "task" else value
            for key, value in (tiny | changes).items()
        }
        config.write_text(yaml.safe_dump(merged))
        with compiled_once():
            assert cli.main(["run", str(config), "--workdir", str(tmp_path / "run")]) == 0
        return tmp_path / "run"

    yield run
    sys.modules.pop("own_task", None)


def evaluation(folder):
    return json.loads((folder / "evaluation.json").read_text())


def test_rows_from_demonstrations_to_second_attempts(tmp_path, run, capsys):
    rows = [
        {
            "question": f"{i}+1=",
            "answer": i + 1,
            "demonstration": str(i + 1) if i % 2 else "hm",
            "feedback": "Say the number.",
        }
        for i in range(24)
    ]
    del rows[3]["demonstration"]
    lines = [json.dumps(row) for row in rows]
    (tmp_path / "rows.jsonl").write_text("\n".join([*lines[:5], "{oops", *lines[5:]]))
    settings = {
        "train": "rows.jsonl",  # beside the config
        "reward": ["numeric", {"name": "regex", "pattern": "^[0-9]+$", "correct_from": None}],
        "columns": {"prompt": "question"},
        "test_size": 4,
    }
    workdir = run(methods=["rltf-sd"], task={"name": "data", "settings": settings})
    (bad,) = map(json.loads, (workdir / "quarantine/rows.jsonl").read_text().splitlines())
    assert bad["line"] == 6
    assert bad["reason"].startswith("not JSON")
    scores = evaluation(workdir / "rltf_sd")
    assert 0 <= scores["accuracy"] <= 1
    assert scores["floor_policy"] == "always gives the most frequent answer"
    assert scores["floor"] == 0.25
    assert scores["second_turn"] is not None
    log = list(read_metrics(workdir / "rltf_sd"))
    assert all({"accuracy", "reward", "score_numeric", "score_regex"} <= set(line) for line in log)
    said = capsys.readouterr().err
    assert "task: 20 rows to train on, 4 to evaluate on" in said
    assert "1 row cannot be used; the first is" in said
    assert f"{workdir / 'quarantine/rows.jsonl'} has them all" in said

    # The run goes on with these rows, and with no others.
    (tmp_path / "rows.jsonl").write_text("\n".join(lines[:20]))
    assert cli.main(["evaluate", str(tmp_path / "own.yaml"), "--workdir", str(workdir)]) == 2
    assert "are not those that the run in" in capsys.readouterr().err


def test_a_task_that_only_grades_is_told_by_its_reward(run, capsys):
    workdir = run(
        methods=["rltf-sd", "text2grad"],
        task={"name": "own_task:make", "settings": {"size": 16}},
        judge={"name": "own_task:judge"},
        text2grad={"span_source": "judge"},
        checkpoint={"keep_best": "test_reward"},
        evaluate={"checkpoint": "best"},
    )
    for name in ("sft", "rltf_sd", "text2grad"):
        scores = evaluation(workdir / name)
        assert scores["accuracy"] is None
        assert scores["correct"] is None
        assert scores["floor"] is None
        low, high = scores["interval"]
        assert low <= scores["reward"] <= high
        assert len(scores["rewards"]) == 4
        assert scores["second_turn"] is not None
    log = list(read_metrics(workdir / "rltf_sd"))
    for line in log:
        assert {"reward", "reward_turn_2", "score_chars", "distilled"} <= set(line)
        assert not {"accuracy", "formatted", "accuracy_turn_2"} & set(line)
        assert line["distilled"] == 8  # no attempt is right, so that each is improved on
    assert any("test_reward" in line for line in log)
    assert not any("test_accuracy" in line for line in log)
    out, err = capsys.readouterr()
    assert "own_task:make only grades: these are mean rewards" in " ".join(out.split())
    assert "sft: mean reward" in err
    assert "right" not in err.partition("sft: mean reward")[2].partition("\n")[0]
    page = (workdir / "report.html").read_text()
    assert "Reward of first attempts, test prompts" in page
    assert "Single-turn accuracy" not in page


def test_without_a_judge_nothing_is_tried_again(run, capsys):
    workdir = run(
        methods=["grpo"],
        task={"name": "own_task:make", "settings": {"size": 16}},
        checkpoint={"keep_best": None},
        grpo={"steps": 1},
    )
    assert evaluation(workdir / "grpo")["second_turn"] is None
    assert "nothing is tried after a critique" in capsys.readouterr().err


def test_the_best_by_accuracy_of_a_task_without_one(run, capsys):
    with pytest.raises(AssertionError):
        run(
            methods=["grpo"],
            task={"name": "own_task:make", "settings": {"size": 16}},
            checkpoint={"keep_best": "test_accuracy"},
            grpo={"steps": 1},
        )
    said = capsys.readouterr().err
    assert "checkpoint.keep_best is test_accuracy, but the task own_task:make only grades" in said
