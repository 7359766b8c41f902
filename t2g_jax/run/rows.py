"""What a run keeps of a task's rows: which ones they are, and those that cannot be used."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from t2g_jax.errors import T2GError
from t2g_jax.runtime import durable, files
from t2g_jax.tasks.base import Task

ROWS = "rows.json"
QUARANTINE = "quarantine/rows.jsonl"


def require_rows(workdir: Path, task: Task, *, record: bool = False) -> None:
    """Checks that a task's rows are those that the run in a work directory began with.

    Args:
      record: write down which they are, if nothing is there yet, and those that cannot be used.

    Raises:
      T2GError: they are others.
    """
    now = getattr(task, "fingerprint", None)
    if not isinstance(now, str):  # a task without rows
        return
    file = workdir / ROWS
    if file.exists():
        before = files.read_json(file, dict[str, str], mend="put it back, or begin anew")
        if before.get("fingerprint") != now:
            raise T2GError(
                f"the rows of the task (task.settings) are not those that the run in {workdir} "
                "began with: put them back, or give a --workdir of its own"
            )
    elif record:
        durable.write_text(file, json.dumps({"fingerprint": now}) + "\n")
    bad = getattr(task, "quarantine", ())
    if record and bad:
        lines = (json.dumps(dataclasses.asdict(row), ensure_ascii=False) for row in bad)
        text = "".join(f"{line}\n" for line in lines)
        file = workdir / QUARANTINE
        if not file.exists() or file.read_text("utf-8") != text:
            durable.write_text(file, text)
