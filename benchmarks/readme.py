"""python -m benchmarks.readme [--seeds 0 1 2] [FOLDERS]

Makes what README.md says of the quickstart: runs it once for each seed, writes the table between
the README's markers, and takes the picture of the report. All from the same runs:

    python -m benchmarks.readme --seeds 0 1 2 3 4

makes runs/readme/seed0 and so on, each a run like any other: what is finished is not run again, and
what was stopped goes on. FOLDERS are finished work folders to take as they are, in place of seeds.
The picture is of a part of the first one's report, and takes a Chromium or Chrome (CHROME names
another); with none, it stays as it is.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from benchmarks.measure import Section, replaced
from t2g_jax.config import Config, load_config
from t2g_jax.phases import reporting
from t2g_jax.report.contents import Report
from t2g_jax.report.formatting import percent
from t2g_jax.report.html import write
from t2g_jax.report.statistics import crossed_interval
from t2g_jax.run.workspace import Workspace

ROOT = pathlib.Path(__file__).resolve().parent.parent
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
WIDTH, HEIGHT = 1000, 1900
"""Size of the picture, in pixels."""


class Run(NamedTuple):
    """A finished run: its configuration, its evaluations by phase, and where it was made."""

    config: Config
    scores: dict[str, dict[str, Any]]
    environment: dict[str, str]


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.readme",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folders", nargs="*", type=pathlib.Path, metavar="FOLDERS")
    parser.add_argument("--seeds", nargs="+", type=int, metavar="SEED", help="(0 1 2)")
    parser.add_argument("--config", type=pathlib.Path, default=ROOT / "configs/quickstart.yaml")
    parser.add_argument("--workdir", type=pathlib.Path, default=pathlib.Path("runs/readme"))
    parser.add_argument("--page", type=pathlib.Path, default=ROOT / "README.md")
    parser.add_argument("--picture", type=pathlib.Path, default=ROOT / "docs/report.png")
    known = parser.parse_args()
    if known.folders and known.seeds:
        parser.error("give seeds to run, or folders that are finished")
    folders = known.folders
    for seed in () if folders else known.seeds or (0, 1, 2):
        folders.append(known.workdir / f"seed{seed}")
        train(known.config, seed, folders[-1])
    runs = [read(folder) for folder in folders]
    known.page.write_text(
        replaced(known.page.read_text("utf-8"), "quickstart", table(runs)), "utf-8"
    )
    print(f"{known.page}: the table of {len(runs)} runs")
    print(photograph(excerpt(folders[0], runs[0].config), known.picture))


def train(config: pathlib.Path, seed: int, folder: pathlib.Path) -> None:
    """Runs a configuration, unless that is done; a run that was stopped goes on."""
    if all((folder / name).exists() for name in ("report.html", "config.yaml")):
        print(f"{folder}: finished before")
        return
    words = ["run", config, "--seed", seed, "--workdir", folder]
    command = [sys.executable, "-m", "t2g_jax", *map(str, words)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), *sys.path]))}
    if status := subprocess.run(command, env=environment, check=False).returncode:
        sys.exit(f"{folder}: ended with {status}; the same command goes on from here")


def read(folder: pathlib.Path) -> Run:
    try:
        config = load_config(folder / "config.yaml")
        phases = ("sft", *config.methods)
        scores = {
            phase: json.loads((folder / phase.replace("-", "_") / "evaluation.json").read_text())
            for phase in phases
        }
        summaries = {phase: Workspace(folder, config).summary(phase) for phase in phases}
        return Run(config, scores, reporting.environment(config.seed, summaries))
    except OSError as error:
        sys.exit(f"{folder} is no finished run: {error.filename}: {error.strerror}")


def table(runs: Sequence[Run]) -> str:
    """The text between the README's markers."""
    config, first, environment = runs[0]
    changed = [
        name
        for name in ("task", "model", "methods", "evaluate")
        if any(getattr(run.config, name) != getattr(config, name) for run in runs)
    ]
    changed += [
        name
        for name in ("commit", "jax")
        if any(run.environment[name] != environment[name] for run in runs)
    ]
    if changed:
        sys.exit(f"the runs differ in more than their seed, in {', '.join(changed)}")
    rows = [[str(run.config.seed), *_cells(run.scores)] for run in runs]
    if len(runs) > 1:
        everything = {
            phase: {
                "accuracy": float(np.mean([run.scores[phase]["accuracy"] for run in runs])),
                "second_turn": float(np.mean([run.scores[phase]["second_turn"] for run in runs])),
                "interval": crossed_interval([run.scores[phase]["correct"] for run in runs]),
            }
            for phase in first
        }
        rows.append(["**mean**", *_cells(everything)])
    prompts, samples = np.shape(first["sft"]["correct"])
    text = (
        f"On {prompts} test puzzles with {samples} samples each, one attempt without feedback. In "
        f"brackets are 95 % intervals{', in the last row over seeds, too' if rows[1:] else ''}. A "
        f"policy that {first['sft']['floor_policy']} gets {percent(first['sft']['floor'])}."
    )
    made = (
        f"Made at commit {environment['commit']}, with jax {environment['jax']}, by `python -m "
        f"benchmarks.readme --seeds {' '.join(str(run.config.seed) for run in runs)}`."
    )
    header = ["seed", "warm start", "and after one critique", *config.methods]
    # Without the heading of a section: it stands in the middle of one.
    _, _, body = Section("", text, header, rows).markdown().partition("\n\n")
    return f"{body}\n\n{made}"


def _cells(scores: dict[str, dict[str, Any]]) -> list[str]:
    start = scores["sft"]
    cells = [percent(start["accuracy"]), percent(start["second_turn"])]
    for phase, score in scores.items():
        if phase != "sft":
            low, high = (f"{100 * bound:.0f}" for bound in score["interval"])
            cells.append(f"{percent(score['accuracy'])} ({low}–{high})")
    return cells


def excerpt(folder: pathlib.Path, config: Config) -> Report:
    """What of a run's report fits into a picture: the table, two curves, and a conversation."""
    report = reporting.contents(Workspace(folder, config))
    learned = [c for c in report.curves if c.metric == reporting.CURVES["test_accuracy"]]
    repaired = [s for s in report.samples if s.retries and not s.correct and s.retries[-1].correct]
    return Report(
        title=report.title,
        subtitle=report.subtitle,
        created=report.created,
        results=report.results,
        curves=tuple(learned),
        samples=tuple((repaired or report.samples)[:1]),
    )


def photograph(report: Report, picture: pathlib.Path) -> str:
    """Takes the picture of a report's page; returns what became of it in words."""
    browser = os.environ.get("CHROME") or next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        return f"{picture}: as it was; there is no Chromium here to take another one"
    with tempfile.TemporaryDirectory() as folder:
        page, taken = write(report, f"{folder}/page.html"), pathlib.Path(folder) / "picture.png"
        flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        flags += [f"--user-data-dir={folder}/profile", "--virtual-time-budget=2000"]
        flags += [f"--window-size={WIDTH},{HEIGHT}", f"--screenshot={taken}"]
        subprocess.run(
            [browser, *flags, page.as_uri()],
            capture_output=True,
            check=False,
            timeout=300,
        )
        if not taken.exists():
            sys.exit(f"{browser} took no picture")
        picture.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(taken, picture)
    return f"{picture}: of the report, {report.subtitle}"


if __name__ == "__main__":
    main()
