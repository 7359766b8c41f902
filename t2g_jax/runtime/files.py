"""Paths and files as users and earlier commands left them: what is wrong is said in one line.

    path = expanded("~/runs/a")
    score = read_json(path / "evaluation.json", Evaluation, mend="delete it, and evaluate again")

Every file that this project reads of its own, or of a user's, is read here, so that none of them
ends in a traceback: it may be missing, a folder, cut short, not text, or hold something else than
was written. Writing is in `durable`.
"""

from __future__ import annotations

import functools
import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pydantic

from t2g_jax.errors import T2GError

MOST_DIGITS = 40
"""Digits of an integer in JSON. Tokenizers write 10³⁰ for no limit; longer ones have no use."""


def expanded(path: str | os.PathLike[str]) -> Path:
    """A path as a user gives it: `~` is the home folder, `~name` that of another user.

    Shells leave it as it is in `--workdir=~/runs/a`, and always in a configuration.

    Raises:
      T2GError: there is no such home.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise T2GError(f"{path}: there is no such home folder; write the whole path") from error


def read_bytes(path: str | os.PathLike[str], *, most: int = -1, mend: str = "") -> bytes:
    """The contents of a file, or the first `most` bytes.

    Raises:
      T2GError: it cannot be read; the message names it, says why, and then `mend`.
    """
    try:
        with open(path, "rb") as file:
            return file.read(most)
    except OSError as error:
        raise unreadable(path, error, mend) from error


def read_text(path: str | os.PathLike[str], *, mend: str = "") -> str:
    """The contents of a UTF-8 file, see `read_bytes`."""
    try:
        return read_bytes(path, mend=mend).decode("utf-8")
    except UnicodeDecodeError as error:
        raise damaged(path, "it is not UTF-8 text", mend) from error


def read_json(path: str | os.PathLike[str], shape: Any = Any, *, mend: str = "") -> Any:
    """What a JSON file holds, as strict JSON has it: finite numbers, and integers of a sane length.

    Args:
      shape: a type that pydantic knows, such as a TypedDict, that the value must be of; keys that
        it does not name are let through.
      mend: what a user can do about a file that is damaged.

    Raises:
      T2GError: it cannot be read, or is something else; file and key are named.
    """
    return parse_json(read_bytes(path, mend=mend), shape, where=path, mend=mend)


def parse_json(
    text: str | bytes, shape: Any = Any, *, where: str | os.PathLike[str], mend: str = ""
) -> Any:
    """As `read_json`, of a text that was read already; `where` it was, for the message."""
    try:
        value = _DECODER.decode(text if isinstance(text, str) else text.decode("utf-8"))
        if shape is not Any:
            _checker(shape).validate_python(value, strict=True)
    except pydantic.ValidationError as error:
        problem = error.errors(include_url=False)[0]
        at = ".".join(str(part) for part in problem["loc"])
        said = problem["msg"][0].lower() + problem["msg"][1:]
        what = f"`{at}`: {said}" if at else said
        raise damaged(where, what, mend) from error
    except UnicodeDecodeError as error:
        raise damaged(where, "it is not UTF-8 text", mend) from error
    except RecursionError as error:
        raise damaged(where, "it is nested too deep", mend) from error
    except ValueError as error:
        raise damaged(where, str(error), mend) from error
    return value


def read_jsonl(
    path: str | os.PathLike[str], shape: Any = dict, *, mend: str = ""
) -> Iterator[tuple[int, Any]]:
    """The lines of a JSON-lines file with their numbers, from 1; one cut short is left out.

    Raises:
      T2GError: as `read_json`; the line is named.
    """
    try:
        with open(path, "rb") as file:
            for number, line in enumerate(file, start=1):
                if line.endswith(b"\n"):
                    yield (
                        number,
                        parse_json(line, shape, where=f"{path}, line {number}", mend=mend),
                    )
    except OSError as error:
        raise unreadable(path, error, mend) from error


def unreadable(path: str | os.PathLike[str], error: OSError, mend: str = "") -> T2GError:
    """The error about a file that cannot be opened."""
    return T2GError(f"{path}: cannot be read: {error.strerror}{f'; {mend}' if mend else ''}")


def damaged(where: str | os.PathLike[str], problem: str, mend: str = "") -> T2GError:
    """The error about a file, or a line, that holds something else than was written."""
    return T2GError(f"{where} is damaged ({problem}){f'; {mend}' if mend else ''}")


@functools.cache
def _checker(shape: Any) -> pydantic.TypeAdapter[Any]:
    return pydantic.TypeAdapter(shape)


def _integer(digits: str) -> int:
    if len(digits) > MOST_DIGITS:
        raise ValueError(f"an integer of {len(digits)} digits")
    return int(digits)


def _float(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"{text[:40]} is too large")
    return value


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")


_DECODER = json.JSONDecoder(parse_int=_integer, parse_float=_float, parse_constant=_no_constant)
