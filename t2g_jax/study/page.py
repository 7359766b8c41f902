"""The page of results, in Markdown: tables, figures, and sentences that follow from the numbers.

The same cells give the same page, byte for byte.
"""

from __future__ import annotations

import collections
import functools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from t2g_jax.report import formatting
from t2g_jax.report.formatting import MISSING, count, percent
from t2g_jax.runtime.durable import write_text
from t2g_jax.study.figures import learning_curves
from t2g_jax.study.measures import Comparison, TaskOutcome, measure, records
from t2g_jax.study.plan import Study

AIM = 0.5
"""The study's question: is a baseline's final accuracy reached with this share of its tokens?"""


def write(study: Study, root: Path, page: Path) -> str:
    """Writes the page and its figures, in a folder beside it; returns what is said in short."""
    outcomes = measure(study, root)
    figures = page.with_suffix("")
    for task in outcomes:
        write_text(figures / f"{task.task}.svg", learning_curves(task, list(study.arms)))
    write_text(page, text(study, outcomes, records(study, root), figures.name))
    return "\n".join(_plain(verdict(c, task.task)) for task in outcomes for c in task.comparisons)


def text(
    study: Study,
    outcomes: Sequence[TaskOutcome],
    made: Sequence[Mapping[str, Any]],
    figures: str,
) -> str:
    """The page.

    Args:
      made: with what each cell that is done was made.
      figures: folder of the figures, seen from the page.
    """
    parts = [
        "# Results",
        f"Written by `t2g study {study.path}` from what its cells measured; not edited by hand.",
        "Each method of learning starts from the same warm start and generates the same number of "
        "tokens. The question: with how many of them does a method that reads feedback get as far "
        "as its baseline, which sees only the reward, gets with all of them?",
    ]
    if study.file.note:
        parts.append(study.file.note.strip())
    if not outcomes:
        return "\n\n".join((*parts, "No cell is done yet.", *_cells(study, outcomes, made))) + "\n"
    if any(task.comparisons for task in outcomes):
        parts += ["## In short", _short(outcomes), _count(outcomes)]
    for task in outcomes:
        parts += _task(task, figures, len(study.file.seeds))
    parts += ["## How it was measured", *_method(study), *_cells(study, outcomes, made)]
    return "\n\n".join(parts) + "\n"


def verdict(comparison: Comparison, task: str) -> str:
    """A comparison in a sentence that follows from its numbers."""
    c, said = comparison, functools.partial(format_score, graded=comparison.graded)
    goal = f"{c.baseline}'s final {said(c.goal)}"
    if not c.learned:
        return (
            f"**{task}, {c.arm}**: {c.baseline} ends at {said(c.goal)}, not clearly above the "
            f"warm start, so there is nothing to reach; {c.arm} gets to {said(c.best)}."
        )
    if c.tokens is None:
        return (
            f"**{task}, {c.arm}** does not reach {goal} within its tokens: at best {said(c.best)}."
        )
    aim = "at most half" if c.share <= AIM else "more than half"
    sentence = (
        f"**{task}, {c.arm}** reaches {goal} after {count(round(c.tokens))} tokens: "
        f"{c.share:.2f} × those of {c.baseline}, {aim}"
    )
    if c.one_off:
        sentence += f" ({c.share_with_one_off:.2f} × with those for its reward model)"
    return f"{sentence}."


def _short(outcomes: Sequence[TaskOutcome]) -> str:
    pairs = dict.fromkeys((c.arm, c.baseline) for task in outcomes for c in task.comparisons)
    rows = []
    for arm, baseline in pairs:
        row = [arm, f"{baseline}'s final accuracy"]
        for task in outcomes:
            found = [c for c in task.comparisons if (c.arm, c.baseline) == (arm, baseline)]
            row.append(_share(found[0]) if found else MISSING)
        rows.append(row)
    head = ["arm", "reaches", *(task.task for task in outcomes)]
    return "\n\n".join(
        (
            table(head, rows),
            "Tokens until it does, as a share of the baseline's; “no”: it does not.",
        )
    )


def _share(c: Comparison) -> str:
    if not c.learned:
        return f"({c.baseline} did not clearly learn)"
    return "no" if c.share is None else f"{c.share:.2f}"


def _count(outcomes: Sequence[TaskOutcome]) -> str:
    compared = [c for task in outcomes for c in task.comparisons if c.learned]
    there = [c for c in compared if c.share is not None]
    half = [c for c in there if c.share <= AIM]
    return (
        f"Of {len(compared)} comparisons with a baseline that clearly learned, the goal was "
        f"reached in {len(there)}, in {len(half)} with at most half of the baseline's tokens."
    )


def _task(task: TaskOutcome, figures: str, seeds: int) -> list[str]:
    floor, policy = task.floor
    said = functools.partial(format_score, graded=task.graded)
    what = "final mean reward" if task.graded else "final accuracy"
    head = ["arm", what, "95 % interval", "each seed", "tokens", "cells"]
    rows = [
        [
            name,
            said(summary.accuracy),
            formatting.interval(summary.interval, unit=not task.graded),
            ", ".join(
                said(outcome.accuracy) if task.graded else f"{100 * outcome.accuracy:.1f}"
                for outcome in summary.outcomes
            ),
            count(round(summary.tokens)),
            f"{len(summary.outcomes)} of {seeds}",
        ]
        for name, summary in task.arms.items()
    ]
    second = task.warm("second_turn")
    after = "" if math.isnan(second) else f", {said(second)} after one critique"
    start = said(task.warm_start_accuracy)
    warm = f"{start} on average" if task.graded else f"{start} of first attempts right"
    known = "" if math.isnan(floor) else f"Floor: {percent(floor)}, a policy that {policy}. "
    parts = [
        f"## {task.task}",
        f"{known}Warm start: {warm}{after}.",
        table(head, rows),
        f"![Learning curves of {task.task}]({figures}/{task.task}.svg)",
        "Lines: mean over seeds; bands: from the worst seed to the best.",
    ]
    if task.comparisons:
        parts += [
            tabulate_tokens(task.comparisons),
            "\n".join(f"- {verdict(comparison, task.task)}" for comparison in task.comparisons),
        ]
    return parts


def format_score(value: float, *, graded: bool) -> str:
    """An accuracy, or a mean reward, as it is written."""
    return formatting.score(value, unit=not graded)


def tabulate_tokens(comparisons: Sequence[Comparison]) -> str:
    """The table of how many tokens it took; nothing is said of a baseline that did not learn."""
    head = [
        "arm",
        "reaches the final accuracy of",
        "after tokens",
        "share of the baseline's",
        "… with annotation",
        "… of those it needed itself",
        "share, each seed alone",
    ]
    rows = []
    for c in comparisons:
        own = (c.share, c.share_with_one_off, c.share_of_needed)
        shares = ["no" if share is None else f"{share:.2f}" for share in own]
        if not c.one_off:
            shares[1] = MISSING
        after = "never" if c.tokens is None else count(round(c.tokens))
        if not c.learned:
            after, shares = MISSING, [MISSING] * len(shares)
        rows.append(
            [
                c.arm,
                f"{c.baseline}, {format_score(c.goal, graded=c.graded)}",
                after,
                *shares,
                ", ".join("no" if s is None else f"{s:.2f}" for s in c.by_seed.values()),
            ]
        )
    return table(head, rows)


def _method(study: Study) -> list[str]:
    return [
        "- **Tokens** are those of all completions sampled in training, second attempts included. "
        "What is sampled to look at the test accuracy does not count. “With annotation” adds what "
        "was sampled once, from the warm start, for the reward model to learn from.\n"
        "- **Accuracy**: a share of first attempts at the test puzzles, sampled as in training, "
        "without feedback. Learning curves have one sample a puzzle, final accuracies several.\n"
        "- **95 % interval**: of the mean over seeds, for seeds and puzzles both drawn at random "
        "(two-way clustering, Satterthwaite degrees of freedom, Wilson's form: "
        "`t2g_jax.report.statistics.crossed_interval`).\n"
        "- **Reached**: where the mean learning curve, linear between its points, first is as high "
        "as the baseline's final accuracy. “Of those it needed itself” divides by the tokens after "
        "which the baseline's own curve first was there. Each seed alone: its curve against the "
        "same seed of the baseline.\n"
        "- **Floor**: the best policy that does not solve the puzzle, on the same test puzzles.",
    ]


def _cells(
    study: Study, outcomes: Sequence[TaskOutcome], made: Sequence[Mapping[str, Any]]
) -> list[str]:
    missing = {folder: what for task in outcomes for folder, what in task.missing.items()}
    file = study.file
    rows = [
        ["study", f"`{study.path}`, hash `{study.hash}`"],
        ["cells", f"{len(made)} of {len(study.cells)} done"],
        ["seeds", ", ".join(map(str, file.seeds))],
        ["tokens a cell", ", ".join(_budgets(study))],
        ["commit", _distinct(item["commit"] or "unknown" for item in made)],
        [
            "versions",
            _distinct(
                ", ".join(f"{name} {version}" for name, version in item["versions"].items())
                for item in made
            ),
        ],
        ["devices", _distinct(item["platform"] for item in made)],
        ["finished", _period(made)],
    ]
    parts = ["## What was run", table(["", ""], rows)]
    if missing:
        parts.append("Not done:")
        parts.append("\n".join(f"- `{folder}`: {what}" for folder, what in missing.items()))
    return parts


def _budgets(study: Study) -> list[str]:
    budgets = {}
    for cell in study.cells:
        section = getattr(cell.config, study.arms[cell.arm].section)
        budgets[cell.task] = section.token_budget
    return [f"{task} {tokens}" for task, tokens in budgets.items()]


def _distinct(values) -> str:
    """The values in the order of the cells, with how often each occurs if they differ."""
    counts = collections.Counter(values)
    if len(counts) == 1:
        return next(iter(counts))
    return "; ".join(f"{value} ({number} cells)" for value, number in counts.items()) or MISSING


def _period(made: Sequence[Mapping[str, Any]]) -> str:
    dates = sorted(item["finished"][:10] for item in made)
    if not dates:
        return MISSING
    return dates[0] if dates[0] == dates[-1] else f"{dates[0]} to {dates[-1]}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first two columns to the left, numbers to the right."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)


def _plain(text: str) -> str:
    return text.replace("**", "")
