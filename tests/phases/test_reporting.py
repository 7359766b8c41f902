import html

import pytest

from t2g_jax.errors import T2GError
from t2g_jax.phases import reporting, samples
from t2g_jax.phases.workspace import Workspace


def test_the_page_has_the_table_and_the_samples(tiny_run, tiny_context):
    page = (tiny_run.workdir / "report.html").read_text("utf-8")
    text = html.unescape(page)
    for method in tiny_run.config.methods:
        assert method in text
    assert "gives one fixed answer for each size" in text
    assert "text2grad, step 3" in text
    (sample, *_) = samples.read_samples(tiny_run.workdir / "text2grad")
    assert sample.critique in text
    assert sample.prompt.splitlines()[0] in text
    assert tiny_run.config.name in text


def test_contents(tiny_run):
    report = reporting.contents(Workspace(tiny_run.workdir, tiny_run.config))
    assert [row.method for row in report.results] == ["text2grad", "rltf-sd", "grpo"]
    assert [phase.phase for phase in report.phases] == [
        "sft",
        "annotate",
        "reward_model",
        "text2grad",
        "rltf-sd",
        "grpo",
    ]
    assert all(row.tokens_generated > 0 for row in report.results)
    assert all(row.tokens_trained > 0 for row in report.results)
    assert all(row.seconds > 0 for row in report.results)
    assert {row.before for row in report.results} == {report.results[0].before}
    drawn = {(curve.label, curve.metric) for curve in report.curves}
    for method in tiny_run.config.methods:
        assert (method, reporting.CURVES["kl"]) in drawn
        assert (method, reporting.CURVES["test_accuracy"]) in drawn
    assert ("rltf-sd", reporting.CURVES["accuracy_turn_2"]) in drawn
    tested = next(c for c in report.curves if c.metric == reporting.CURVES["test_accuracy"])
    assert tested.steps == (1, 3)
    assert [score.label for score in report.class_scores] == ["poor", "neutral", "good"]
    assert len(report.samples) == 3 * 4
    assert "span_source: reward_model" in report.config_yaml


def test_samples_are_whole(tiny_run, tiny_context):
    for sample in samples.read_samples(tiny_run.workdir / "text2grad"):
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
    assert report.class_scores == report.samples == ()


def test_what_was_not_evaluated_is_named(tiny_run, tmp_path):
    workdir, config = tiny_run.branch(tmp_path / "run", "sft", "grpo")
    (workdir / "grpo" / "evaluation.json").unlink()
    with pytest.raises(T2GError, match=r"grpo.evaluation.json is missing: first run `t2g evaluate"):
        reporting.run(config, workdir)
