"""One file of a finished run damaged in one way, and what the commands that read make of it.

    python tests/support/damage.py RUN --count 300 --seed 0     # RUN: a work folder; it is copied

A command may refuse, with status 2 and a line that names the file; say in a line that something is
amiss; or do exactly what it does with the whole folder. Nothing else: no traceback, and no other
result in silence.
"""

import argparse
import contextlib
import dataclasses
import hashlib
import io
import json
import os
import pathlib
import random
import re
import shutil
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from t2g_jax import cli
from t2g_jax.config import load_config
from t2g_jax.phases import reporting
from t2g_jax.run.workspace import Workspace

VALUES = (None, True, -1, 0, 7, 0.5, 1e30, 10**30, "many", "", [], {}, [[]], {"a": {"b": [None]}})
KINDS = ("flip", "flip", "cut", "empty", "folder", "missing", "deep", "value", "key", "lines")
COMMANDS = ("report", "evaluate", "run", "export", "generate")
_MARKS = (
    "Warning",
    "measured again",
    "was made from",
    "is not as it was",
    "changed:",
    "not complete",
)
_VOLATILE = re.compile(
    r"\d{4}-\d\d-\d\dT[\d:+]+|\d+(\.\d+)?(e-\d+)? ?(ms|s|min|h)\b( \d+ s)?|process \d+"
)


@dataclasses.dataclass(frozen=True)
class Damage:
    """file: within the folder; kind: see `KINDS`; seed: of what is left to chance."""

    file: str
    kind: str
    seed: int

    def apply(self, folder: pathlib.Path) -> bool:
        """Does it; False if the file cannot be damaged so, or says the same afterwards."""
        path, rng = folder / self.file, random.Random(self.seed)
        before = path.read_bytes()
        after = _damaged(before, self.kind, path.suffix, rng)
        if after == before:
            return False
        path.unlink()  # it may be a link to the whole one
        if self.kind == "folder":
            path.mkdir()
        elif self.kind != "missing":
            path.write_bytes(after)
        return True


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What came of a command: its status, what it said and made; `error` is of a traceback."""

    status: int | None
    said: str
    made: Any
    error: str = ""


def damages(folder: pathlib.Path, seed: int) -> Iterator[Damage]:
    """Endless; each kind of file comes as often as any other, however many there are."""
    rng = random.Random(seed)
    groups: dict[str, list[str]] = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        file = path.relative_to(folder).as_posix()
        if path.name not in ("run.lock", "read.json", "report.html"):
            groups.setdefault(re.sub(r"[0-9a-f]{8,}|\d+|^\w+/", "#", file), []).append(file)
    while True:
        file = rng.choice(groups[rng.choice(sorted(groups))])
        yield Damage(file, rng.choice(KINDS), rng.randrange(2**32))


def run(command: str, folder: pathlib.Path) -> Outcome:
    """A command on a work folder, in this process."""
    exported = folder.with_name("exported")
    shutil.rmtree(exported, ignore_errors=True)
    words = {"export": ["--to", str(exported)], "generate": ["--json", "--prompt", "0 1"]}
    out, err = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = cli.main([command, str(folder), *words.get(command, ())])
        made = _made(command, folder, exported) if status == 0 else None
    except (Exception, SystemExit):
        return Outcome(None, err.getvalue(), None, traceback.format_exc())
    return Outcome(status, _VOLATILE.sub("#", err.getvalue() + out.getvalue()), made)


def problem(damage: Damage, folder: pathlib.Path, whole: Outcome, found: Outcome) -> str:
    """What is wrong with an outcome, by that of the command on the whole folder; or nothing."""
    if found.error:
        return found.error
    if found.status == 0:
        marked = any(found.said.count(mark) > whole.said.count(mark) for mark in _MARKS)
        if (found.made, found.said) == (whole.made, whole.said) or marked:
            return ""
        return f"another result in silence:\n{_difference(whole, found)}"
    if found.status != 2:
        return f"status {found.status}: {found.said}"
    last = found.said[found.said.rfind("t2g: ") :].strip()
    if "\n" in last and not damage.file.endswith("config.yaml"):
        return f"more than a line: {last}"
    path = folder / damage.file
    names = [str(p) for p in (path, *path.parents) if p.is_relative_to(folder) and p != folder]
    named = any(name in last for name in names) or (str(folder) in last and path.name in last)
    return "" if named else f"the file is not named: {last}"


class Folder:
    """A copy of a run that is damaged again and again. What is in checkpoints is linked."""

    def __init__(self, source: pathlib.Path, place: pathlib.Path):
        self.path, self._source = place / "run", source
        self.restore()

    def restore(self) -> pathlib.Path:
        shutil.rmtree(self.path, ignore_errors=True)

        def copy(source: str, to: str) -> None:
            os.link(source, to) if "/checkpoints/" in source else shutil.copy2(source, to)

        shutil.copytree(self._source, self.path, copy_function=copy)
        return self.path


def _damaged(text: bytes, kind: str, suffix: str, rng: random.Random) -> bytes | None:
    match kind:
        case "flip":
            at = rng.randrange(len(text) or 1)
            return (
                text[:at] + bytes([text[at] ^ 1 << rng.randrange(8)]) + text[at + 1 :]
                if text
                else text
            )
        case "cut":
            return text[: rng.randrange(len(text) or 1)]
        case "empty":
            return b""
        case "deep":
            return b"[" * 100_000
        case "lines":
            lines = text.splitlines(keepends=True)
            at = rng.randrange(len(lines) or 1)
            return b"".join(lines[:at] + lines[at : at + 1] * rng.choice((0, 2)) + lines[at + 1 :])
        case "value" | "key":
            lines = text.splitlines() if suffix == ".jsonl" else [text]
            at = rng.randrange(len(lines) or 1)
            try:
                value = json.loads(lines[at])
            except (ValueError, IndexError):
                return text
            lines[at] = json.dumps(_changed(value, kind, rng)).encode()
            return b"\n".join([*lines, b""])
        case _:
            return None


def _changed(value: Any, kind: str, rng: random.Random) -> Any:
    """JSON with one value changed, or one key taken out."""
    if isinstance(value, Mapping | list) and value and (kind == "key" or rng.random() < 0.9):
        keys = list(value) if isinstance(value, Mapping) else list(range(len(value)))
        at = rng.choice(keys)
        copy = dict(value) if isinstance(value, Mapping) else list(value)
        inside = isinstance(value[at], Mapping | list) and value[at]
        if kind == "key" and not (inside and rng.random() < 0.5):
            del copy[at]
        else:
            copy[at] = _changed(value[at], kind, rng)
        return copy
    return rng.choice(VALUES)


def _made(command: str, folder: pathlib.Path, exported: pathlib.Path) -> Any:
    if command == "export":
        return {
            file.name: hashlib.sha256(file.read_bytes()).hexdigest()
            for file in sorted(exported.rglob("*"))
            if file.is_file() and file.name != "README.md"
        }
    if command != "report":
        return None
    report = reporting.contents(Workspace(folder, load_config(folder / "config.yaml")))
    untimed = tuple(dataclasses.replace(row, seconds=0.0) for row in report.results)
    return repr(
        dataclasses.replace(
            report, created="", title="", phases=(), config_yaml="", environment={}, results=untimed
        )
    )


def _difference(whole: Outcome, found: Outcome) -> str:
    for a, b in ((whole.said, found.said), (str(whole.made), str(found.made))):
        if a != b:
            at = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), 0)
            return f"…{a[max(at - 80, 0) : at + 120]!r}\nbecame\n…{b[max(at - 80, 0) : at + 120]!r}"
    return ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=pathlib.Path)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--commands", nargs="+", default=list(COMMANDS), choices=COMMANDS)
    known = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Folder(known.run, pathlib.Path(place))
        whole = {command: run(command, folder.restore()) for command in known.commands}
        assert all(outcome.status == 0 for outcome in whole.values()), whole
        rng, found = random.Random(known.seed), 0
        source: Callable[[], Damage] = damages(folder.path, known.seed).__next__
        for n in range(known.count):
            damage = source()
            while not damage.apply(folder.restore()):
                damage = source()
            command = rng.choice(known.commands)
            outcome = run(command, folder.path)
            if wrong := problem(damage, folder.path, whole[command], outcome):
                found += 1
                print(f"{n}: {command}, {damage}: {wrong}\n", flush=True)
        print(f"{found} of {known.count}")
        sys.exit(found > 0)


if __name__ == "__main__":
    main()
