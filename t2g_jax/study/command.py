"""`t2g study`: runs the cells that are missing, then writes the page of results."""

from __future__ import annotations

from pathlib import Path

from t2g_jax.errors import T2GError
from t2g_jax.printing import tell
from t2g_jax.runtime.files import expanded
from t2g_jax.study import figures, page, runner
from t2g_jax.study.plan import Study


def run(study: Study, root: Path, *, at_once: int | None = None, report_only: bool = False) -> None:
    """Runs a study.

    Args:
      root: where cells are kept.
      at_once: processes at the same time. None: see `runner.default_jobs`.
      report_only: only write the page, from the cells that are done.

    Raises:
      T2GError: matplotlib is missing, folders of cells were made with other settings, the study
        runs already, or a cell failed; the page is written in the last case, too.
    """
    figures.require_matplotlib()  # sooner here than after the last cell
    jobs = runner.jobs_of(study, root)
    runner.check(jobs)
    failed = []
    if not report_only:
        at_once = min(at_once or runner.default_jobs(), len(jobs))
        waiting = sum(not job.is_done for job in jobs)
        _say(f"{study.file.name}: {len(jobs)} jobs, {waiting} to do, {at_once} at a time")
        done = runner.run(jobs, root, at_once=at_once, say=_say)
        failed = [name for name, well in done.items() if not well]
    results = expanded(study.file.results)
    _say(page.write(study, root, results))
    _say(f"Results: {results}")
    if failed:
        raise T2GError(
            f"{len(failed)} of {len(jobs)} jobs are not done, the first: {root / failed[0]}; the "
            "same command tries them again"
        )


def _say(line: str) -> None:
    if line:
        tell(line)
