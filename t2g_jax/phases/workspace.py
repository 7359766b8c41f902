"""The folder of a run: who wrote what where, and what is complete."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import jax

from t2g_jax.config import Config, config_hash, diff, load_config, to_yaml
from t2g_jax.errors import T2GError

SFT, ANNOTATE, REWARD_MODEL = "sft", "annotate", "reward_model"


class Workspace:
    """Paths of a work directory, and a record of each complete phase.

        workdir/config.yaml             the config that the run began with
        workdir/tokenizer/              Hugging Face format
        workdir/<phase>/checkpoints/    state of a training phase
        workdir/<phase>/metrics.jsonl
        workdir/<phase>/samples/        completions for the report, if the method keeps any
        workdir/<phase>/complete.json   there when the phase is done: its summary
        workdir/annotate/dataset/       TFDS dataset; journal.jsonl and quarantine.jsonl beside it
        workdir/<phase>/evaluation.json
        workdir/report.html

    Of the processes of a run the first writes; checkpoints are written by all.

    Args:
      root: the work directory; made if missing.
      config: of this run; must be that of the run that lives here already, if there is one.

    Raises:
      T2GError: another config was used here before; the keys that differ are named.
    """

    def __init__(self, root: str | os.PathLike[str], config: Config):
        self.root = Path(root)
        self.config = config
        snapshot = self.root / "config.yaml"
        if snapshot.exists():
            changed = diff(load_config(snapshot), config)
            if changed:
                raise T2GError(
                    f"{self.root} holds a run with another config ({', '.join(changed)} differ); "
                    f"use another --workdir, or delete this one"
                )
        else:
            write_text(snapshot, to_yaml(config))

    @property
    def tokenizer(self) -> Path:
        return self.root / "tokenizer"

    @property
    def dataset(self) -> Path:
        return self.phase(ANNOTATE) / "dataset"

    @property
    def report(self) -> Path:
        return self.root / "report.html"

    def phase(self, name: str) -> Path:
        """Folder of a phase; a policy phase has the name of its method."""
        return self.root / name.replace("-", "_")

    def checkpoints(self, name: str) -> Path:
        return self.phase(name) / "checkpoints"

    def is_complete(self, name: str) -> bool:
        return (self.phase(name) / "complete.json").exists()

    def complete(self, name: str, summary: dict[str, Any]) -> dict[str, Any]:
        """Records that a phase is done; the summary is what reports read."""
        summary = summary | {"phase": name, "config": config_hash(self.config)}
        write_json(self.phase(name) / "complete.json", summary)
        return summary

    def summary(self, name: str) -> dict[str, Any]:
        """What `complete` recorded.

        Raises:
          T2GError: the phase is not complete; its command is named.
        """
        path = self.phase(name) / "complete.json"
        if not path.exists():
            raise T2GError(f"{path} is missing: first run `{command(name)} CONFIG`")
        return json.loads(path.read_text("utf-8"))


def command(name: str) -> str:
    """The command that makes a phase's artifacts."""
    fixed = {SFT: "t2g sft", ANNOTATE: "t2g annotate", REWARD_MODEL: "t2g train-rm"}
    return fixed.get(name, f"t2g train-policy --method {name}")


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes all of the file or none of it; makes the folder if it is missing."""
    if jax.process_index() != 0:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".incomplete")
    temporary.write_text(text, "utf-8")
    os.replace(temporary, path)
