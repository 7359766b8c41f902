"""What a study reads off its cells."""

import json

import numpy as np
import pytest

from t2g_jax import cli
from t2g_jax.report.statistics import clustered_interval, crossed_interval
from t2g_jax.study.measures import Curve, Outcome, Summary, compare, measure
from t2g_jax.study.plan import load_study


@pytest.mark.parametrize(
    ("goal", "tokens"), [(0.0, 0.0), (0.1, 0.0), (0.2, 50.0), (0.3, 100.0), (0.35, 250.0)]
)
def test_where_a_curve_reaches_a_goal(goal, tokens):
    """It falls in between: the first time counts."""
    curve = Curve((0, 100, 200, 300), (0.1, 0.3, 0.2, 0.5))
    assert curve.reaches(goal) == pytest.approx(tokens)


def test_a_goal_out_of_reach():
    assert Curve((0, 100), (0.1, 0.3)).reaches(0.31) is None


def outcome(curve, *, seed=0, accuracy=None, one_off=0):
    final = curve.accuracy[-1] if accuracy is None else accuracy
    correct = (np.arange(100) < round(100 * final)).astype(float)[:, None]
    return Outcome(seed, correct, curve, int(curve.tokens[-1]), one_off, 0.05, "copies")


def test_mean_curve_goes_as_far_as_all_seeds():
    summary = Summary(
        (outcome(Curve((0, 100), (0.0, 0.4))), outcome(Curve((0, 50, 200), (0.2, 0.2, 0.8))))
    )
    assert summary.curve.tokens == (0, 50, 100)
    assert summary.curve.accuracy == pytest.approx((0.1, 0.2, 0.4))
    assert summary.accuracy == pytest.approx(0.6)
    assert summary.tokens == 150


def warm_start(accuracy):
    return {0: {"accuracy": accuracy}, 1: {"accuracy": accuracy}}


def test_compared_with_a_baseline():
    baseline = Summary(
        tuple(outcome(Curve((0, 400, 1000), (0.1, 0.5, 0.5)), seed=s) for s in (0, 1))
    )
    fast = Curve((0, 300, 1000), (0.1, 0.7, 0.9))
    slow = Curve((0, 1000), (0.1, 0.3))
    arm = Summary((outcome(fast, seed=0, one_off=500), outcome(slow, seed=1, one_off=500)))
    c = compare("a", arm, "b", baseline, warm_start(0.1))
    assert (c.goal, c.learned, c.spent, c.needed) == (0.5, True, 1000, 400)
    # The mean curve is (0, .1), (300, .43), (1000, .6).
    expected = 300 + 700 * (0.5 - 0.43) / (0.6 - 0.43)
    assert c.tokens == pytest.approx(expected)
    assert c.share == pytest.approx(expected / 1000)
    assert c.share_with_one_off == pytest.approx((expected + 500) / 1000)
    assert c.share_of_needed == pytest.approx(expected / 400)
    assert c.best == pytest.approx(0.6)
    assert c.by_seed == {0: pytest.approx(0.2), 1: None}


def test_a_baseline_that_learned_nothing():
    flat = Summary(tuple(outcome(Curve((0, 100), (0.1, 0.1)), seed=s) for s in (0, 1)))
    c = compare("a", flat, "b", flat, warm_start(0.1))
    assert not c.learned
    assert compare("a", flat, "b", flat, warm_start(0.01)).learned


def test_cells_are_read(fake, study_file, tmp_path):
    path, root = study_file(), tmp_path / "cells"
    root.mkdir()
    accuracy = {"grpo": 0.5, "rltf-sd": 0.9, "spans": 0.3}
    (root / "behavior.json").write_text(json.dumps({"accuracy": accuracy}))
    assert cli.main(["study", str(path), "--workdir", str(root), "--jobs", "2"]) == 0
    study = load_study(path)
    (task,) = measure(study, root)
    assert {name: s.accuracy for name, s in task.arms.items()} == accuracy
    assert task.floor == (0.05, "copies the input")
    assert task.warm("accuracy") == 0.1
    assert not task.missing
    curve = task.arms["rltf-sd"].curve
    assert curve.tokens == (0, 100, 200, 300, 400, 500)  # looked at before a step's tokens
    assert curve.accuracy == pytest.approx((0, 0.18, 0.36, 0.54, 0.72, 0.9))
    assert (task.arms["spans"].one_off, task.arms["grpo"].one_off) == (150, 0)
    sd, spans = task.comparisons
    assert (sd.arm, sd.baseline, spans.arm) == ("rltf-sd", "grpo", "spans")
    assert sd.share == pytest.approx(0.5 / 0.9)
    assert spans.tokens is None


def test_cells_of_a_task_that_only_grades(fake, study_file, tmp_path):
    path, root = study_file(), tmp_path / "cells"
    root.mkdir()
    rewards = {"grpo": 0.5, "rltf-sd": 0.9, "spans": 0.3}
    (root / "behavior.json").write_text(json.dumps({"accuracy": rewards, "graded": True}))
    assert cli.main(["study", str(path), "--workdir", str(root), "--jobs", "2"]) == 0
    study = load_study(path)
    (task,) = measure(study, root)
    assert task.graded
    assert {name: s.accuracy for name, s in task.arms.items()} == rewards
    assert task.warm_start_accuracy == 0.1
    sd, _ = task.comparisons
    assert sd.share == pytest.approx(0.5 / 0.9)
    (page,) = tmp_path.rglob("*.md")
    text = page.read_text()
    assert "final mean reward" in text
    assert "Warm start: 0.10 on average" in text
    assert "grpo's final 0.50" in text
    assert "Floor:" not in text
    (figure,) = tmp_path.rglob("*.svg")
    assert "mean reward of first attempts" in figure.read_text()


# --- The interval ----------------------------------------------------------------------------


def test_one_training_or_trainings_that_agree_are_prompts_alone():
    correct = np.random.default_rng(0).random((40, 4)) < 0.3
    assert crossed_interval(correct[None]) == clustered_interval(correct)
    twice = np.stack([correct, correct])
    both = clustered_interval(np.concatenate([correct, correct], axis=1))
    assert crossed_interval(twice) == pytest.approx(both)


def test_trainings_that_differ_widen_it():
    rng = np.random.default_rng(0)
    hard = rng.random((1, 200, 1))
    same = rng.random((3, 200, 4)) < hard
    apart = rng.random((3, 200, 4)) < hard ** np.array([3.0, 1.0, 0.3])[:, None, None]
    narrow, wide = crossed_interval(same), crossed_interval(apart)
    assert narrow[1] - narrow[0] < 0.12
    assert wide[1] - wide[0] > 0.4


def test_it_covers_the_truth_where_prompts_alone_do_not():
    """Logits with a random effect of the training and one of the prompt; 3 trainings."""
    rng = np.random.default_rng(0)
    effects = rng.normal(size=(200_000, 2)) * (0.7, 1.0)
    truth = (1 / (1 + np.exp(-effects.sum(axis=1)))).mean()
    hits = naive = 0
    for _ in range(600):
        logits = rng.normal(size=(3, 1, 1)) * 0.7 + rng.normal(size=(1, 80, 1))
        correct = rng.random((3, 80, 4)) < 1 / (1 + np.exp(-logits))
        low, high = crossed_interval(correct)
        hits += low <= truth <= high
        low, high = clustered_interval(correct.transpose(1, 0, 2).reshape(80, -1))
        naive += low <= truth <= high
    assert hits / 600 > 0.9
    assert naive / 600 < 0.6


def test_never_leaves_the_unit_interval():
    rng = np.random.default_rng(0)
    for _ in range(200):
        correct = rng.random(rng.integers(1, 6, size=3)) < rng.random()
        low, high = crossed_interval(correct)
        assert 0.0 <= low <= correct.mean() + 1e-12
        assert correct.mean() - 1e-12 <= high <= 1.0


def test_shape():
    with pytest.raises(ValueError, match=r"\[trainings, prompts, samples\]"):
        crossed_interval(np.zeros((3, 4)))
    with pytest.raises(ValueError, match="outside"):
        crossed_interval(np.full((2, 3, 1), -0.1))
