"""What the cells of a study came to: accuracies, learning curves, tokens until a goal is reached.

Reads the files that `t2g` leaves in a cell's folder; knows nothing of how they were made.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from typing_extensions import TypedDict

from t2g_jax.config import section_of
from t2g_jax.errors import T2GError
from t2g_jax.report.statistics import crossed_interval, reward_interval
from t2g_jax.runtime import checked
from t2g_jax.study.plan import SHARED, Cell, Study
from t2g_jax.training.metrics import read_metrics

WARM_START, ANNOTATE = "sft", "annotate"


@dataclasses.dataclass(frozen=True)
class Curve:
    """Accuracy on the test examples after so many generated tokens; or mean reward, where the task
    only grades."""

    tokens: tuple[float, ...]
    accuracy: tuple[float, ...]

    def at(self, tokens: np.ndarray) -> np.ndarray:
        """Linear between the points."""
        return np.interp(tokens, self.tokens, self.accuracy)

    def reaches(self, goal: float) -> float | None:
        """Tokens at which the accuracy is first `goal`, linear between points; None: never."""
        points = list(zip(self.tokens, self.accuracy, strict=True))
        if points[0][1] >= goal:
            return points[0][0]
        for (x0, y0), (x1, y1) in itertools.pairwise(points):
            if y1 >= goal:
                return x0 + (x1 - x0) * (goal - y0) / (y1 - y0)
        return None


@dataclasses.dataclass(frozen=True)
class Outcome:
    """One cell that is done.

    values: [examples, samples] of the final evaluation, 1 where right; or the rewards, where the
    task only grades (`graded`). tokens: generated in training. one_off: generated once for the
    reward model that it learns from.
    """

    seed: int
    values: np.ndarray
    curve: Curve
    tokens: int
    one_off: int
    floor: float
    floor_policy: str
    graded: bool = False

    @property
    def accuracy(self) -> float:
        """Or the mean reward."""
        return float(self.values.mean())


@dataclasses.dataclass(frozen=True)
class Summary:
    """The outcomes of one arm on one task, a seed each."""

    outcomes: tuple[Outcome, ...]

    @property
    def accuracy(self) -> float:
        return float(np.mean([outcome.accuracy for outcome in self.outcomes]))

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the mean, over seeds and test examples."""
        values = np.stack([outcome.values for outcome in self.outcomes])
        return reward_interval(values) if self.graded else crossed_interval(values)

    @property
    def graded(self) -> bool:
        """Whether these are rewards."""
        return any(outcome.graded for outcome in self.outcomes)

    @property
    def tokens(self) -> float:
        return float(np.mean([outcome.tokens for outcome in self.outcomes]))

    @property
    def one_off(self) -> float:
        return float(np.mean([outcome.one_off for outcome in self.outcomes]))

    @property
    def curve(self) -> Curve:
        """The mean over seeds, as far as all of them go."""
        curves = [outcome.curve for outcome in self.outcomes]
        last = min(curve.tokens[-1] for curve in curves)
        points = sorted({x for curve in curves for x in curve.tokens if x < last} | {last})
        mean = np.mean([curve.at(np.array(points)) for curve in curves], axis=0)
        return Curve(tuple(points), tuple(mean.tolist()))


@dataclasses.dataclass(frozen=True)
class Comparison:
    """When an arm is as accurate as its baseline is at the end, in tokens of the baseline.

    goal: the baseline's final accuracy, mean over seeds. learned: the baseline got above the warm
    start, so that there is something to reach. tokens: until the arm's mean curve reaches the
    goal; None: it never does. best: the top of that curve. spent: what the baseline generated in
    all. needed: until the baseline's own mean curve reaches its goal. by_seed: tokens / spent of
    each seed alone, against the same seed of the baseline.
    """

    arm: str
    baseline: str
    goal: float
    learned: bool
    tokens: float | None
    one_off: float
    best: float
    spent: float
    needed: float
    by_seed: Mapping[int, float | None]
    graded: bool = False

    @property
    def share(self) -> float | None:
        """Tokens, as a share of those that the baseline generated."""
        return None if self.tokens is None else self.tokens / self.spent

    @property
    def share_of_needed(self) -> float | None:
        """As a share of the tokens after which the baseline was first as good as at its end."""
        if self.tokens is None:
            return None
        return self.tokens / self.needed if self.needed else math.inf

    @property
    def share_with_one_off(self) -> float | None:
        """Tokens with those generated for the reward model, as a share of the baseline's."""
        return None if self.tokens is None else (self.tokens + self.one_off) / self.spent


@dataclasses.dataclass(frozen=True)
class TaskOutcome:
    """All arms on one task.

    missing: what there is to say of each cell that is not done.
    """

    task: str
    arms: Mapping[str, Summary]
    comparisons: tuple[Comparison, ...]
    warm_start: Mapping[int, Mapping[str, Any]]
    missing: Mapping[str, str]

    @property
    def graded(self) -> bool:
        """Whether the task only grades, so that what is called accuracy is the mean reward."""
        return any(summary.graded for summary in self.arms.values())

    @property
    def floor(self) -> tuple[float, str]:
        """Accuracy of the best policy that does not solve the task, NaN if it is not known, and
        that policy in words."""
        first = next(iter(self.warm_start.values()))
        return math.nan if first["floor"] is None else first["floor"], first["floor_policy"]

    @property
    def warm_start_accuracy(self) -> float:
        """Accuracy of the warm start, or its mean reward."""
        return self.warm("reward" if self.graded else "accuracy")

    def warm(self, key: str) -> float:
        """Mean over seeds of a score of the warm start; NaN where it was not measured."""
        found = [scores[key] for scores in self.warm_start.values()]
        return float("nan") if None in found else float(np.mean(found))


def measure(study: Study, root: Path) -> tuple[TaskOutcome, ...]:
    """What each task came to; those of which no cell is done yet are left out."""
    outcomes = []
    for task in study.file.tasks:
        cells = [cell for cell in study.cells if cell.task == task]
        missing = {cell.folder: state(root / cell.folder) for cell in cells}
        missing = {folder: problem for folder, problem in missing.items() if problem}
        done = [cell for cell in cells if cell.folder not in missing]
        if not done:
            continue
        arms = {}
        for name in study.arms:
            found = tuple(outcome(root, cell) for cell in done if cell.arm == name)
            if found:
                arms[name] = Summary(found)
        warm_start = {
            cell.seed: _read(root / cell.folder / WARM_START / "evaluation.json", _Evaluated)
            for cell in done
        }
        compared = tuple(
            compare(name, arms[name], arm.baseline, arms[arm.baseline], warm_start)
            for name, arm in study.arms.items()
            if name in arms and arm.baseline in arms
        )
        outcomes.append(TaskOutcome(task, arms, compared, warm_start, missing))
    return tuple(outcomes)


def state(folder: Path) -> str:
    """What is wrong with a cell's folder, in words; empty if the cell is done."""
    if (folder / f"{folder.name}.made.json").exists():
        return ""
    for place in (folder, folder.parent / SHARED):
        if (place / "failed.json").exists():
            failed = _read(place / "failed.json", _Failed)
            return f"`{failed['command']}` failed: {failed['last']}"
    return "not run yet" if not folder.exists() else "not finished"


def outcome(root: Path, cell: Cell) -> Outcome:
    """Reads a cell that is done.

    Raises:
      T2GError: its score is not of the parameters that are there.
    """
    folder = root / cell.folder
    trained = folder / section_of(cell.method)
    evaluation = _read(trained / "evaluation.json", _Evaluated)
    summary = _read(trained / "complete.json")
    if summary.get("fingerprint") != evaluation.get("fingerprint"):
        raise T2GError(
            f"{trained / 'evaluation.json'} is of other parameters than those that are there; "
            f"run `t2g evaluate {folder}`"
        )
    graded = evaluation["accuracy"] is None
    tested = "test_reward" if graded else "test_accuracy"
    lines = read_metrics(trained, numbers=(tested, "tokens_generated"))
    tokens, points = 0, []
    for line in lines:
        if line.get(tested) is not None:  # looked at before the step's own tokens
            points.append((tokens, line[tested]))
        tokens += int(line.get("tokens_generated", 0))
    values = np.array(evaluation["rewards" if graded else "correct"], float)
    points.append((tokens, float(values.mean())))
    annotated = folder / ANNOTATE / "complete.json"
    return Outcome(
        seed=cell.seed,
        values=values,
        curve=Curve(*zip(*points, strict=True)),
        tokens=tokens,
        one_off=_read(annotated, _Generated)["tokens_generated"] if annotated.exists() else 0,
        floor=math.nan if evaluation["floor"] is None else evaluation["floor"],
        floor_policy=evaluation["floor_policy"],
        graded=graded,
    )


def compare(
    name: str,
    arm: Summary,
    baseline_name: str,
    baseline: Summary,
    warm_start: Mapping[int, Mapping[str, Any]],
) -> Comparison:
    """An arm beside its baseline; see `Comparison`."""
    goal, curve = baseline.accuracy, arm.curve
    measured = "reward" if baseline.graded else "accuracy"
    start = float(np.mean([warm_start[item.seed][measured] for item in baseline.outcomes]))
    same_seed = {item.seed: item for item in baseline.outcomes}
    by_seed = {
        item.seed: _share(
            item.curve.reaches(same_seed[item.seed].accuracy), same_seed[item.seed].tokens
        )
        for item in arm.outcomes
        if item.seed in same_seed
    }
    needed = baseline.curve.reaches(goal)
    return Comparison(
        arm=name,
        baseline=baseline_name,
        goal=goal,
        learned=baseline.interval[0] > start,
        tokens=curve.reaches(goal),
        one_off=arm.one_off,
        best=max(curve.accuracy),
        spent=baseline.tokens,
        needed=baseline.curve.tokens[-1] if needed is None else needed,
        by_seed=by_seed,
        graded=baseline.graded,
    )


def _share(tokens: float | None, spent: float) -> float | None:
    return None if tokens is None else tokens / spent


class _Evaluated(TypedDict):
    accuracy: float | None
    floor: float | None
    floor_policy: str
    correct: list[list[int]] | None


class _Generated(TypedDict):
    tokens_generated: int


class _Failed(TypedDict):
    command: str
    last: str


def _read(path: Path, shape: Any = dict) -> Any:
    return checked.read(path, shape, mend="delete the cell to have it made again")


def records(study: Study, root: Path) -> Sequence[Mapping[str, Any]]:
    """With what the cells that are done were made."""
    found = [root / cell.folder / f"{cell.arm}.made.json" for cell in study.cells]
    return [_read(path) for path in found if path.exists()]
