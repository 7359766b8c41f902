"""How good a reward model's labels are, and how far its probabilities can be believed."""

from __future__ import annotations

from typing import Any

import numpy as np

CLASSES = ("poor", "neutral", "good")
BINS = 10


def class_scores(probabilities: np.ndarray, labels: np.ndarray) -> list[dict[str, Any]]:
    """Precision, recall, F1 and support of each class, the likeliest class being what is claimed.

    Args:
      probabilities: [N, 3] of poor, neutral and good for each token.
      labels: [N], −1, 0 or +1.
    """
    predicted = np.asarray(probabilities).reshape(-1, 3).argmax(-1) - 1
    return [
        {"label": label} | _scores(predicted == value, np.equal(labels, value))
        for label, value in zip(CLASSES, (-1, 0, 1), strict=True)
    ]


def _scores(claimed: np.ndarray, true: np.ndarray) -> dict[str, float]:
    """Precision, recall, F1 and support of one class; 0 where there is nothing to divide by.

    Args:
      claimed, true: [N] bool, the tokens predicted to be of the class, and those that are.
    """
    hits, support = int(np.sum(claimed & true)), int(np.sum(true))
    precision, recall = hits / max(int(np.sum(claimed)), 1), hits / max(support, 1)
    f1 = 2 * precision * recall / max(precision + recall, 1e-12)
    return {"precision": precision, "recall": recall, "f1": f1, "support": support}


def calibration(
    probabilities: np.ndarray, targets: np.ndarray, *, bins: int = BINS
) -> list[dict[str, Any]]:
    """Expected calibration error of each class, and the reliability table that it comes from.

    With the N tokens in bins of equal width by p, the probability of the class,

        error = Σ_b n_b / N · |mean_b p − mean_b q|,   q the class's share in the target

    which is 0 for probabilities that come true as often as they say. "On Calibration of Modern
    Neural Networks", Guo et al., arXiv 1706.04599, Eq. 3, one class at a time.

    Args:
      probabilities: [N, 3] in [0, 1].
      targets: [N, 3], one-hot for labels, shared out for severities (`losses.span_targets`).
      bins: into which [0, 1] is cut; a bound belongs to the bin above it, 1 to the last.

    Returns:
      For each class "label", "error" (0 without tokens) and "bins": "low", "high", "tokens",
      "predicted" (mean p) and "observed" (mean q) of those that hold tokens.
    """
    probabilities = np.asarray(probabilities, np.float64).reshape(-1, 3)
    targets = np.asarray(targets, np.float64).reshape(-1, 3)
    found = []
    for label, p, q in zip(CLASSES, probabilities.T, targets.T, strict=True):
        which = np.minimum((p * bins).astype(int), bins - 1)
        table = [
            {
                "low": b / bins,
                "high": (b + 1) / bins,
                "tokens": int(here.sum()),
                "predicted": float(p[here].mean()),
                "observed": float(q[here].mean()),
            }
            for b in range(bins)
            if (here := which == b).any()
        ]
        apart = sum(row["tokens"] * abs(row["predicted"] - row["observed"]) for row in table)
        found.append({"label": label, "error": apart / max(len(p), 1), "bins": table})
    return found
