"""Scores of span labels, and whether probabilities come true, worked out by hand."""

import numpy as np
import pytest

from t2g_jax.feedback.span_scores import calibration, class_scores


def test_class_scores_by_hand():
    """Of five tokens: poor is claimed twice and once rightly; nobody claims good."""
    claimed = np.array([-1, -1, 0, 0, 0])
    found = class_scores(np.eye(3)[claimed + 1], np.array([-1, 0, 0, 1, -1]))
    assert found == [
        {"label": "poor", "precision": 0.5, "recall": 0.5, "f1": pytest.approx(0.5), "support": 2},
        {
            "label": "neutral",
            "precision": pytest.approx(1 / 3),
            "recall": 0.5,
            "f1": pytest.approx(0.4),
            "support": 2,
        },
        {"label": "good", "precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 1},
    ]


def test_calibration_by_hand():
    """Two tokens said to be poor with .24 and .26, one of which is; two with .9, both of which are:
    error ½ |.25 − ½| + ½ |.9 − 1|."""
    poor = np.array([0.24, 0.26, 0.9, 0.9])
    probabilities = np.stack([poor, 1 - poor, 0 * poor], -1)
    targets = np.eye(3)[[0, 1, 0, 0]]
    found, neutral, good = calibration(probabilities, targets)
    assert found["error"] == pytest.approx(0.5 * 0.25 + 0.5 * 0.1)
    rows = [(row["low"], row["high"], row["tokens"]) for row in found["bins"]]
    assert rows == [(0.2, 0.3, 2), (0.9, 1.0, 2)]
    seen = [(row["predicted"], row["observed"]) for row in found["bins"]]
    np.testing.assert_allclose(seen, [(0.25, 0.5), (0.9, 1)])
    assert neutral["error"] == pytest.approx(found["error"])  # the other side of the same coin
    assert (good["label"], good["error"]) == ("good", 0)
    assert [row["tokens"] for row in good["bins"]] == [4]


def test_bounds_belong_to_the_bin_above_and_one_to_the_last():
    poor = np.array([0.0, 0.5, 1.0])
    probabilities = np.stack([poor, 1 - poor, 0 * poor], -1)
    found = calibration(probabilities, np.eye(3)[[1, 1, 0]], bins=2)[0]
    assert [(row["low"], row["tokens"]) for row in found["bins"]] == [(0.0, 1), (0.5, 2)]


def test_what_comes_true_is_calibrated(rng):
    """Labels drawn from the probabilities; with a class weighed five times they come less true."""
    p = rng.dirichlet([1, 4, 1], size=20_000)
    true = (rng.random((len(p), 1)) > p.cumsum(-1)).sum(-1)
    for found in calibration(p, np.eye(3)[true]):
        assert found["error"] < 0.02
    weighed = p * [5, 1, 1] / (p * [5, 1, 1]).sum(-1, keepdims=True)
    assert calibration(weighed, np.eye(3)[true])[0]["error"] > 0.2


def test_nothing_to_measure():
    for found in calibration(np.zeros((0, 3)), np.zeros((0, 3))):
        assert (found["error"], found["bins"]) == (0, [])
    assert {score["support"] for score in class_scores(np.zeros((0, 3)), np.zeros(0))} == {0}
