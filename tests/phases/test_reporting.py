import html
import json

import numpy as np
import pytest
from tiny import without_checksum

from t2g_jax.config import METHODS
from t2g_jax.errors import T2GError
from t2g_jax.phases import reporting
from t2g_jax.report.formatting import percent
from t2g_jax.run import provenance
from t2g_jax.run.samples import read_samples
from t2g_jax.run.workspace import Workspace
from t2g_jax.training.metrics import read_metrics


def test_the_page_has_the_table_and_the_samples(tiny_run, tiny_context):
    page = (tiny_run.workdir / "report.html").read_text("utf-8")
    text = html.unescape(page)
    for method in tiny_run.config.methods:
        assert method in text
    assert "gives one fixed answer for each size" in text
    assert "text2grad, step 3" in text
    (sample, *_) = read_samples(tiny_run.workdir / "text2grad")
    assert sample.critique in text
    assert sample.prompt.splitlines()[0] in text
    assert tiny_run.config.name in text


def test_contents(tiny_run):
    report = reporting.contents(Workspace(tiny_run.workdir, tiny_run.config))
    methods = [method for method in METHODS if method in tiny_run.config.methods]
    assert [row.method for row in report.results] == methods
    phases = [phase.phase for phase in report.phases]
    assert phases == ["sft", "annotate", "reward_model", *methods]
    assert all(row.tokens_generated > 0 for row in report.results)
    # Nothing may have been good enough for rejection sampling to learn from.
    trained = [row.tokens_trained for row in report.results if row.method != "rejection-sampling"]
    assert min(trained) > 0
    assert all(row.seconds > 0 for row in report.results)
    assert {row.before for row in report.results} == {report.results[0].before}
    drawn = {(curve.label, curve.metric) for curve in report.curves}
    for method in methods:
        assert (method, reporting.CURVES["reward"]) in drawn
    for method in ("text2grad", "rltf-sd", "grpo"):
        assert ((method, reporting.CURVES["kl"]) in drawn) == (method == "text2grad")
        assert (method, reporting.CURVES["test_accuracy"]) in drawn
    assert ("rltf-sd", reporting.CURVES["accuracy_turn_2"]) in drawn
    assert "wrong first" in reporting.CURVES["accuracy_turn_2"]
    assert {curve.metric for curve in report.curves if not curve.single_turn} == {
        reporting.CURVES["accuracy_turn_2"]
    }
    assert f"{percent(report.results[0].before)} of first attempts" in report.subtitle
    tested = next(c for c in report.curves if c.metric == reporting.CURVES["test_accuracy"])
    assert tested.steps == (1, 3)
    assert [score.label for score in report.class_scores] == ["poor", "neutral", "good"]
    steps = {name: getattr(tiny_run.config, name.replace("-", "_")).steps for name in methods}
    kept = [(sample.method, sample.step) for sample in report.samples]
    assert kept == [
        (method, step + 1) for method in methods for step in range(steps[method]) for _ in range(4)
    ]  # of each prompt one, at the first, the middle and the last of at most three steps
    by_tokens = [curve for curve in report.curves if curve.x_label == "tokens generated"]
    assert {curve.metric for curve in by_tokens} == {
        reporting.CURVES["accuracy"],
        reporting.CURVES["test_accuracy"],
    }
    for row in report.results:
        curve = next(
            c
            for c in by_tokens
            if (c.label, c.metric) == (row.method, reporting.CURVES["accuracy"])
        )
        assert len(curve.steps) == steps[row.method]
        assert curve.steps[0] == 0
        assert np.all(np.diff([*curve.steps, row.tokens_generated]) > 0)
    assert "span_source: reward_model" in report.config_yaml


def test_samples_are_whole(tiny_run, tiny_context):
    for sample in reporting.contents(Workspace(tiny_run.workdir, tiny_run.config)).samples:
        assert sample.prompt
        for attempt in (sample, *sample.retries):
            assert attempt.correct == (attempt.reward == 1)
            weighed = [cell.advantage is not None for cell in attempt.tokens]
            assert weighed == [sample.method != "rejection-sampling"] * len(attempt.tokens)
    for sample in read_samples(tiny_run.workdir / "text2grad"):
        assert sample.predicted_critique is not None
        assert len(sample.tokens) > 0
        for cell in sample.tokens:
            assert -1 <= cell.predicted <= 1
            assert cell.true in (-1, 0, 1)
            assert cell.advantage is not None


def test_with_some_phases_only(tiny_run, tmp_path):
    workdir, config = tiny_run.branch(tmp_path / "run", "sft", "grpo")
    report = reporting.contents(Workspace(workdir, config))
    assert [row.method for row in report.results] == ["grpo"]
    assert report.class_scores == ()
    assert {sample.method for sample in report.samples} == {"grpo"}


def test_what_was_not_evaluated_is_named(tiny_run, tmp_path):
    workdir, config = tiny_run.branch(tmp_path / "run", "sft", "grpo")
    (workdir / "grpo" / "evaluation.json").unlink()
    with pytest.raises(T2GError, match=r"grpo.evaluation.json is missing: first run `t2g evaluate"):
        reporting.run(config, workdir)


def test_what_is_not_complete_is_left_out_and_named(tiny_run, tmp_path):
    workdir, config = tiny_run.branch(tmp_path / "run", "sft", "grpo", "ppo")
    (workdir / "ppo" / "complete.json").unlink()
    report = reporting.contents(Workspace(workdir, config))
    assert [row.method for row in report.results] == ["grpo"]
    assert "ppo is not complete, and left out: `t2g train-policy --method ppo CONFIG` goes on" in (
        " ".join(report.warnings)
    )


def test_conversations_are_kept_whole(tiny_run, tiny_context):
    kept = read_samples(tiny_run.workdir / "rltf_sd")
    conversations = [sample for sample in kept if sample.retries]
    assert conversations
    for sample in conversations:
        assert not sample.correct
        assert sample.critique
        assert all(cell.true is not None for cell in sample.tokens)  # of the critique's quotes
        (*_, last) = sample.retries
        assert last.tokens


def line(step, **metrics):
    return {"step": step, "phase": "grpo", "seconds": 1.0} | metrics


def test_curves_against_steps_and_tokens():
    lines = [
        line(step, accuracy=step / 10, kl=0.1, tokens_generated=7, tokens_generated_total=7 * step)
        for step in (1, 2, 3)
    ]
    lines[1]["test_accuracy"] = 0.25
    drawn = {(c.metric, c.x_label): (c.steps, c.values) for c in reporting.drawn("grpo", lines)}
    accuracy, tested = (reporting.CURVES[name] for name in ("accuracy", "test_accuracy"))
    assert drawn == {
        (accuracy, "steps"): ((1, 2, 3), (0.1, 0.2, 0.3)),
        (accuracy, "tokens generated"): ((0, 7, 14), (0.1, 0.2, 0.3)),
        (tested, "steps"): ((2,), (0.25,)),
        (tested, "tokens generated"): ((7,), (0.25,)),
        (reporting.CURVES["kl"], "steps"): ((1, 2, 3), (0.1, 0.1, 0.1)),
    }


def test_a_log_that_does_not_count_tokens_is_drawn_against_steps_only():
    lines = [line(1, accuracy=0.1), line(2, accuracy=0.2)]
    assert {curve.x_label for curve in reporting.drawn("grpo", lines)} == {"steps"}


def test_a_collapse_is_in_the_report_and_on_the_terminal(tiny_run, tmp_path, capsys):
    workdir, config = tiny_run.branch(tmp_path / "run", "sft", "grpo")
    log = [line(step, entropy=1.0 if step < 6 else 0.01, reward=0.0) for step in range(1, 13)]
    text = "".join(json.dumps(entry) + "\n" for entry in log)
    (workdir / "grpo" / "metrics.jsonl").write_text(text, "utf-8")
    (start, another, warning) = reporting.run(config, workdir).warnings
    assert another.startswith(f"grpo: {workdir / 'grpo' / 'metrics.jsonl'} is not as it was when")
    assert start.startswith("sft: 0.0% of first attempts are right")
    assert warning.startswith("grpo, step 10: entropy fell from 1 to 0.01 nats")
    assert warning in html.unescape((workdir / "report.html").read_text("utf-8"))
    assert f"Warning: {warning}" in capsys.readouterr().out


# Of attempts, of updates by a policy gradient, and of asking for critiques.
ATTEMPTS = {
    "reward", "accuracy", "completion_tokens", "completion_tokens_max", "cut_off", "equal_groups",
    "learning_rate", "tokens_generated", "tokens_generated_total", "tokens_trained",
    "tokens_per_second_sample",
}  # fmt: skip
UPDATES = {
    "kl_sampler_trainer", "ratio", "ratio_min", "ratio_max", "log_ratio", "log_ratio_min",
    "log_ratio_max", "clip_fraction", "entropy", "grad_norm", "skipped_updates",
    "tokens_per_second_update",
}  # fmt: skip
REFERENCE = {"kl", "kl_per_sequence", "kl_coefficient", "tokens_per_second_score"}
CRITIQUES = {"judge_failures"}


@pytest.mark.parametrize(
    ("method", "columns"),
    [
        ("text2grad", ATTEMPTS | UPDATES | REFERENCE | CRITIQUES | {"unaligned_quotes"}),
        ("ppo", ATTEMPTS | UPDATES | REFERENCE),
        ("grpo", ATTEMPTS | UPDATES),
        ("grpo-multiturn", ATTEMPTS | UPDATES | REFERENCE | CRITIQUES),
        ("rltf-sd", ATTEMPTS | UPDATES | CRITIQUES),
        ("rltf-fm", ATTEMPTS | UPDATES | CRITIQUES),
        ("rejection-sampling", ATTEMPTS),
    ],
)
def test_every_step_logs_what_one_needs_to_see(tiny_run, method, columns):
    for entry in read_metrics(tiny_run.workdir / method.replace("-", "_")):
        assert columns - set(entry) == set(), entry["step"]
        assert columns >= REFERENCE or not REFERENCE & set(entry)  # nobody asks for it


def test_the_last_point_is_what_came_of_the_training():
    """Every so many steps are looked at, so the log alone may end before the end."""
    lines = [
        {"step": step, "accuracy": 0.1 * step, "tokens_generated": 5.0}
        | {"tokens_generated_total": 5.0 * step}
        | ({"test_accuracy": 0.2 * step} if step % 2 else {})
        for step in range(1, 5)
    ]
    by_axis = {
        (curve.metric, curve.x_label): (curve.steps, curve.values)
        for curve in reporting.drawn("m", lines, {"step": 4, "accuracy": 0.75})
    }
    test, train = reporting.CURVES["test_accuracy"], reporting.CURVES["accuracy"]
    assert by_axis[test, "steps"] == ((1, 3, 4), (0.2, pytest.approx(0.6), 0.75))
    assert by_axis[test, "tokens generated"][0] == (0.0, 10.0, 20.0)
    assert by_axis[train, "steps"][0] == (1, 2, 3, 4)
    # Of another checkpoint than the last: the evaluation says nothing about the end. And where the
    # last step was looked at, that is the last point.
    for log, evaluation in ((lines, {"step": 2}), (lines[:3], {"step": 3})):
        found = reporting.drawn("m", log, evaluation | {"accuracy": 0.75})
        assert next(curve for curve in found if curve.metric == test).steps == (1, 3)
    # Nobody looked at the test accuracy while training: one point is no curve.
    bare, evaluation = [{"step": 1, "accuracy": 0.5}], {"step": 1, "accuracy": 0.7}
    assert [curve.metric for curve in reporting.drawn("m", bare, evaluation)] == [train]


def test_the_last_point_is_measured_as_the_others_were(tiny_run, tmp_path):
    """The evaluation that the run itself made; not one of another temperature."""
    workdir, config = tiny_run.branch(tmp_path / "run", "sft", "grpo")
    log = workdir / "grpo" / "metrics.jsonl"
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    del lines[-1]["test_accuracy"]
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    path = workdir / "grpo" / "evaluation.json"
    evaluation = without_checksum(path)
    for temperature, steps in ((1.0, (1, 3)), (0.5, (1,))):
        evaluation["settings"]["sampling.temperature"] = temperature
        path.write_text(json.dumps(evaluation))
        report = reporting.contents(Workspace(workdir, config))
        (curve,) = (
            curve
            for curve in report.curves
            if curve.metric == reporting.CURVES["test_accuracy"] and curve.x_label == "steps"
        )
        assert curve.steps == steps


@pytest.mark.parametrize(
    ("program", "name"), [("/bin/t2g", "t2g"), ("/x/t2g_jax/__main__.py", "python -m t2g_jax")]
)
def test_the_environment_of_a_phase(monkeypatch, program, name):
    monkeypatch.setattr("sys.argv", [program, "run", "my config.yaml"])
    made = provenance.environment()
    assert made["command"] == f"{name} run 'my config.yaml'"
    assert made["devices"] == "8 × cpu"
    assert made["commit"]


def test_the_environment_is_that_of_the_phases(tiny_run, tmp_path, monkeypatch):
    """Not of the process that writes the report."""
    workdir, config = tiny_run.branch(tmp_path / "run", "sft", "grpo")
    record = without_checksum(workdir / "grpo" / "complete.json")
    record["environment"]["commit"] = "0123456789ab"
    (workdir / "grpo" / "complete.json").write_text(json.dumps(record))
    made = Workspace(workdir, config).summary("sft")["environment"]
    monkeypatch.setattr("sys.argv", ["/bin/t2g", "report"])
    found = reporting.contents(Workspace(workdir, config)).environment
    assert found["command"] == made["command"] != "t2g report"
    assert found["commit"] == f"{made['commit']} (sft); 0123456789ab (grpo)"
    assert found["seed"] == "0"
