"""Runs that are killed again and again, and whether what they leave equals a run that never was.

A child process is a copy of this one, which has imported what it needs but not started JAX: so a
start costs a second and not five. It ends itself by SIGKILL at its n-th change of a file, or some
time after it; `cli.main` in it is what `t2g` runs.
"""

import dataclasses
import json
import os
import pathlib
import random
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence

import jax
import numpy as np
import orbax.checkpoint as ocp
import tiny

from t2g_jax import cli
from t2g_jax.data.dataset import load_dataset
from t2g_jax.phases import pipeline  # noqa: F401  so that children have it

WEIGHTS = {
    "tokenizer": 0.04,
    "sft/": 0.14,
    "annotate/": 0.2,
    "reward_model/": 0.14,
    "text2grad/": 0.18,
    "rltf_sd/": 0.18,
    "evaluation.json": 0.08,
    "report.html": 0.04,
}
"""How the kills are spread over the phases of tests/configs/kills.yaml, by what they write."""

CHANGES = ("os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate", "os.link")


@dataclasses.dataclass(frozen=True)
class Kill:
    """Where a run was killed: the phase, and the last change of a file before."""

    phase: str
    after: str


def run(
    arguments: Sequence[str], log: pathlib.Path, *, kill: tuple[str, int, float] | None = None
) -> int:
    """`t2g` in a child process; its exit status, −9 if it was killed.

    Args:
      log: where its output goes; `<log>.changes` has a line for each change of a file.
      kill: (text, n, seconds): SIGKILL so long after the n-th change of a file, counted from the
        first that has this text in its path, or at the end; None: never.
    """
    child = os.fork()
    if child == 0:
        status = 70
        try:
            output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(output, 1), os.dup2(output, 2)
            _note_changes(pathlib.Path(arguments[-1]), log.with_suffix(".changes"), kill)
            status = cli.main(arguments)
            if kill is not None:
                os.kill(os.getpid(), signal.SIGKILL)
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            sys.stdout.flush(), sys.stderr.flush()
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _note_changes(workdir: pathlib.Path, notes: pathlib.Path, kill) -> None:
    """Writes down each change of a file below `workdir` before it is made."""
    root, count = str(workdir.resolve()) + os.sep, 0
    file = os.open(notes, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)

    def note(event, arguments):
        nonlocal count
        written = event == "open" and isinstance(arguments[2], int) and arguments[2] & 3
        if not (written or event in CHANGES) or not isinstance(arguments[0], str | os.PathLike):
            return
        path = os.path.abspath(arguments[0])
        if not path.startswith(root):
            return
        os.write(file, f"{event} {path.removeprefix(root)}\n".encode())
        count += kill is not None and (count > 0 or kill[0] in path)
        if kill is not None and count == kill[1]:
            count += 1
            if kill[2] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            threading.Timer(kill[2], os.kill, (os.getpid(), signal.SIGKILL)).start()

    sys.addaudithook(note)


def killed(
    arguments: Sequence[str], log: pathlib.Path, *, kills: int, seed: int, changes: Sequence[str]
) -> Iterator[Kill]:
    """Starts a run until it was killed so many times, then once more, to its end.

    Args:
      arguments: of `t2g`, the work directory the last of them.
      changes: of files in a run that is not killed; says how much happens in each phase.

    Raises:
      RuntimeError: it ended in another way.
    """
    rng, workdir = random.Random(seed), pathlib.Path(arguments[-1])
    phases = list(WEIGHTS)
    quota = {name: max(1, round(kills * share)) for name, share in WEIGHTS.items()}
    shares = {
        name: max(2, sum(name in line for line in changes) // count)
        for name, count in quota.items()
    }
    for made in range(kills):
        now = phase(workdir)
        coming = phases[phases.index(now) :]
        for done in set(phases).difference(coming):  # killed later than was meant
            quota[now] += quota[done]
            quota[done] = 0
        left = [name for name in coming if quota[name] > 0]
        where = left[0] if left else phases[-1]
        quota[where] -= 1
        # Half of them at the change itself, half at any moment after.
        delay = rng.choice((0.0, rng.uniform(0.0, 0.5)))
        status = run(arguments, log, kill=(where, rng.randint(1, shares[where]), delay))
        if status != -signal.SIGKILL:
            raise RuntimeError(f"after {made} kills it ended with {status}:\n{tail(log)}")
        last = log.with_suffix(".changes").read_text().splitlines()[-1]
        yield Kill(phase(workdir), last)
    status = run(arguments, log)
    if status != 0:
        raise RuntimeError(f"after {kills} kills it ended with {status}:\n{tail(log)}")


def tail(log: pathlib.Path) -> str:
    return "\n".join(log.read_text().splitlines()[-40:])


def phase(workdir: pathlib.Path) -> str:
    """The phase that is next in a work directory, as in WEIGHTS."""
    made = {name: [workdir / name / "complete.json"] for name in WEIGHTS if name.endswith("/")}
    made["tokenizer"] = [workdir / "tokenizer"]
    made["evaluation.json"] = [
        workdir / name / "evaluation.json" for name in ("sft", "text2grad", "rltf_sd")
    ]
    for name in WEIGHTS:
        if not all(path.exists() for path in made.get(name, [])):
            return name
    return "report.html"


def differences(a: pathlib.Path, b: pathlib.Path) -> list[str]:
    """What differs between two work directories, times apart; a line each. Starts JAX."""
    found = [f"only one has {name}" for name in sorted(_names(a) ^ _names(b))]
    for name in sorted(_names(a) & _names(b)):
        left, right = a / name, b / name
        if left.is_dir():
            same = _same_state(left, right)
        elif name.endswith(".jsonl"):
            same = tiny.lines(left) == tiny.lines(right)
        elif name.endswith(".json"):
            same = tiny.contents(left) == tiny.contents(right)
        elif name.startswith("annotate/dataset/"):
            same = True  # read below
        else:
            same = name in ("report.html", "run.lock") or left.read_bytes() == right.read_bytes()
        if not same:
            found.append(f"{name} differs")
    for split in ("train", "held_out"):
        ours, theirs = (list(load_dataset(root / "annotate/dataset", split)) for root in (a, b))
        if ours != theirs:
            found.append(f"the split {split} differs")
    return found


def _names(root: pathlib.Path) -> set[str]:
    """Files, and checkpoints as wholes."""
    steps = {path for path in root.glob("*/checkpoints/*") if path.is_dir()}
    files = {path for path in root.rglob("*") if path.is_file()}
    kept = {path for path in files if not steps.intersection(path.parents)} | steps
    return {str(path.relative_to(root)) for path in kept}


def _same_state(a: pathlib.Path, b: pathlib.Path) -> bool:
    """Whether two checkpoints are equal bit for bit, and their meta."""
    if any(_json(a / name) != _json(b / name) for name in ("meta/metadata", "checksums/metadata")):
        return False
    ours, theirs = (ocp.PyTreeCheckpointer().restore(path / "state") for path in (a, b))
    if jax.tree.structure(ours) != jax.tree.structure(theirs):
        return False
    return all(
        np.asarray(x).tobytes() == np.asarray(y).tobytes()
        for x, y in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True)
    )


def _json(path: pathlib.Path):
    return json.loads(path.read_text())


def elapsed(began: float) -> str:
    return f"{time.monotonic() - began:.0f} s"
