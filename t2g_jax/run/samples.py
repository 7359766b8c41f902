"""Files of completions that a phase keeps for the report."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from t2g_jax.errors import T2GError
from t2g_jax.report.contents import Report, Sample
from t2g_jax.run.workspace import write_text
from t2g_jax.runtime import checked


def write_samples(folder: Path, step: int, samples: Sequence[Sample]) -> None:
    """Keeps the samples of a step; writing them again replaces them."""
    kept = Report(title="samples", samples=tuple(samples))
    line = checked.line(json.loads(kept.to_json()))
    write_text(folder / "samples" / f"{step:08d}.json", line.decode())


def drop_samples(folder: Path, step: int) -> None:
    """Deletes the samples of a step, from 0, and of later ones: what they show is made anew."""
    for file in (folder / "samples").glob("*.json"):
        if file.stem.isdecimal() and int(file.stem) >= step:
            file.unlink()


def read_samples(folder: Path) -> list[Sample]:
    """All samples of a phase, earliest step first.

    Raises:
      T2GError: a file is damaged.
    """
    samples: list[Sample] = []
    mend = "delete the file, and the report will do without"
    for file in sorted((folder / "samples").glob("*.json")):
        kept = json.dumps(checked.read(file, mend=mend))
        try:
            samples += Report.from_json(kept, source=str(file)).samples
        except ValueError as error:
            raise T2GError(f"{error}; {mend}") from error
    return samples
