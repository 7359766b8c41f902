"""A method that is not of this package: the example of docs/plugins.md, in a run of its own."""

import json
import re
import sys

import package
import pytest
import tiny
import yaml

from t2g_jax import cli, user_code
from t2g_jax.config import load_config, to_yaml
from t2g_jax.errors import T2GError
from t2g_jax.judges import Critique, JudgeError
from t2g_jax.methods import SupervisedMethod, make_method
from t2g_jax.parallel.sharding import make_mesh
from t2g_jax.phases import judge_calls, policy
from t2g_jax.plan.programs import programs
from t2g_jax.run import provenance
from t2g_jax.run.context import Context
from t2g_jax.spans import Quote
from t2g_jax.training.metrics import read_metrics

VALUES = {"steps": 2, "prompts_per_step": 4, "group_size": 2, "eval_every": 0, "poor_spans": 1}


@pytest.fixture(scope="module")
def page(root):
    return (root / "docs" / "plugins.md").read_text()


@pytest.fixture
def here(page, tmp_path, monkeypatch):
    """The folder that commands are started in, which has the page's example."""
    (code,) = re.findall(r"^```python\n(.*?)^```", page, re.M | re.S)
    assert len(code.splitlines()) <= 60
    (tmp_path / "filtered_sft.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    monkeypatch.setattr(user_code, "_folders", [])
    with package.forgotten_afterwards():
        yield tmp_path


@pytest.fixture
def run(page, here, tiny_run):
    """The work folder of a run that has its warm start, and a config beside the example: the
    page's, of the tiny run."""
    workdir, config = tiny_run.branch(here / "run", "sft")
    (text,) = re.findall(r"^```yaml\n(.*?)^```", page, re.M | re.S)
    said = yaml.safe_load(text)
    said["filtered_sft"] |= VALUES
    path = here / "mine.yaml"
    path.write_text(yaml.dump(yaml.safe_load(to_yaml(config)) | said))
    (workdir / "config.yaml").write_text(to_yaml(load_config(path)))
    return workdir, path


def test_a_run_of_its_own(run, capfd):
    workdir, path = run
    began = ["--workdir", str(workdir)]
    assert cli.main(["train-policy", str(path), "--method", "filtered-sft", *began]) == 0
    lines = read_metrics(workdir / "filtered_sft")
    assert [line["step"] for line in lines] == [1, 2]
    assert all(line["judge_calls"] == 8 for line in lines)
    assert [line["rows"] for line in lines] == [8 * line["clean"] for line in lines]
    assert 0 < sum(line["rows"] for line in lines) < 16
    assert all(line["nll_loss"] > 0 for line in lines if line["rows"])
    summary = json.loads((workdir / "filtered_sft" / "complete.json").read_text())
    made = summary["made"]["inputs"]
    assert (made["filtered_sft.poor_spans"], made["plugins"]) == (1, ["filtered_sft:FilteredSFT"])
    # What is complete is not done again; it is evaluated, and in the report.
    capfd.readouterr()
    assert cli.main(["run", str(path), *began]) == 0
    said = capfd.readouterr()
    assert "filtered-sft: complete, skipped" in said.err
    scores = json.loads((workdir / "filtered_sft" / "evaluation.json").read_text())
    assert scores["phase"] == "filtered-sft"
    assert "filtered-sft" in said.out
    assert "filtered-sft" in (workdir / "report.html").read_text()
    # By the work folder alone, its policy answers.
    assert cli.main(["generate", str(workdir), "--method", "filtered-sft", "--json"]) == 0
    assert json.loads(capfd.readouterr().out.splitlines()[0])["completion"] is not None


def test_one_that_was_stopped_goes_on_and_may_be_changed(run, capfd):
    workdir, path = run
    words = [str(path), "--workdir", str(workdir)]
    one = ["--filtered-sft.steps=1", "--accept-changes"]
    assert cli.main(["train-policy", *words, "--method", "filtered-sft", *one]) == 0
    (workdir / "filtered_sft" / "complete.json").unlink()
    changed = ["--filtered-sft.poor_spans=3"]
    assert cli.main(["train-policy", *words, "--method", "filtered-sft", *changed]) == 2
    assert "filtered_sft.poor_spans: 1 → 3" in capfd.readouterr().err
    changed.append("--accept-changes")
    assert cli.main(["train-policy", *words, "--method", "filtered-sft", *changed]) == 0
    assert [line["step"] for line in read_metrics(workdir / "filtered_sft")] == [1, 2]
    found = load_config(workdir / "config.yaml")
    made = json.loads((workdir / "filtered_sft" / "complete.json").read_text())["made"]
    (earlier,) = made["earlier"]
    assert (earlier["until"], earlier["inputs"]["filtered_sft.poor_spans"]) == (1, 1)
    assert found.filtered_sft.poor_spans == 3


def test_what_it_says_of_itself_before_it_runs(run):
    _, path = run
    found = load_config(path)
    assert judge_calls.judge_calls(found)["filtered-sft"] == 2 * 8
    assert provenance.parents("filtered-sft", found) == ("sft",)
    (update,) = [
        program
        for program in programs(found, make_mesh(found.mesh), "filtered-sft")
        if program.name == "update"
    ]
    assert update.shape.startswith("1 × [8, ")
    assert load_config(path, ["--checkpoint.keep_best", "clean"]).checkpoint.keep_best == "clean"


def test_which_answers_it_learns(run):
    workdir, path = run
    opened = Context.open(load_config(path), workdir)
    context = tiny.changed(opened, filtered_sft__poor_spans=0)
    method = make_method("filtered-sft", context)
    assert isinstance(method, SupervisedMethod)
    assert method.config is context.config.filtered_sft
    assert method.accepts(Critique("Well.", (Quote("a", 1.0),)))
    assert not method.accepts(Critique("No.", (Quote("a", 1.0), Quote("b", -1.0))))
    assert not method.accepts(JudgeError("down"))
    lenient = tiny.changed(context, filtered_sft__poor_spans=1)
    other = make_method("filtered-sft", lenient)
    assert other.accepts(Critique("No.", (Quote("a", 1.0), Quote("b", -1.0))))


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("rows = [", "rows = 1 / 0 and [", "collect of FilteredSFT failed: ZeroDivisionError"),
        (
            "return MethodE",
            "return (rows, metrics)\n        MethodE",
            "collect of FilteredSFT returned tuple",
        ),
        (
            "(SupervisedMethod):",
            ":\n    def __init__(self, context):\n        self.plan = None\n",
            "has no 'config'",
        ),
    ],
)
def test_what_goes_wrong_in_it_is_a_line(run, here, old, new, said):
    workdir, path = run
    file = here / "filtered_sft.py"
    code = file.read_text()
    assert old in code
    file.write_text(code.replace(old, new))
    del sys.modules["filtered_sft"]
    with pytest.raises(T2GError) as caught:
        policy.run(load_config(path), workdir, "filtered-sft")
    assert "filtered-sft: " in str(caught.value)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
