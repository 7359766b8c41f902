"""Rows as examples: checked one by one, kept on disk, and those that cannot be used set aside.

A row has a `prompt`, and may have what else `COLUMNS` names; all other columns are metadata. A row
that is malformed is neither repaired nor dropped in silence: it is `Quarantined`, with the reason.
"""

from __future__ import annotations

import array
import collections
import hashlib
import json
import math
import operator
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from t2g_jax import user_code
from t2g_jax.tasks.base import Example
from t2g_jax.tasks.sources import Row

COLUMNS = ("id", "prompt", "answer", "feedback", "demonstration", "privileged_context")
"""What a row may have that means something: beside `Example`'s own fields

feedback: text that criticizes attempts at this prompt; shown before a second turn.
demonstration: a completion to learn from; supervised learning starts from it.
privileged_context: what the rows' own judge says before a second turn, never in the first.

These three are in the example's metadata, by their names."""
TEXTS = COLUMNS[3:]
ROLES = ("system", "user", "assistant", "tool")


@dataclass(frozen=True)
class Quarantined:
    """A row that is not used, and why."""

    source: str
    line: int
    reason: str


class Rows(Sequence[Example]):
    """Examples that are read from a temporary file when they are asked for."""

    def __init__(self, spool: Spool, indices: np.ndarray) -> None:
        self._spool, self._indices = spool, indices

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self._spool[i] for i in self._indices[index].tolist()]
        return self._spool[int(self._indices[operator.index(index)])]


class Spool:
    """Examples in a file that is gone with the process; in memory are 16 bytes of each.

    So a million rows need no memory to speak of, and a file that changes meanwhile changes nothing.
    `prompts` holds a hash of each prompt.
    """

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(prefix="t2g-rows-")
        self._starts = array.array("q", [0])
        self._prompts = array.array("Q")
        self._content = hashlib.sha256()
        self.columns: collections.Counter[str] = collections.Counter()
        """How many examples have an answer, and each kind of metadata."""
        self.read: set[str] = set()
        """The columns of all rows, by the names that the rows have for them."""

    def append(self, example: Example) -> None:
        """Adds an example at the end.

        Raises:
          Malformed: it cannot be written as JSON.
        """
        line = _encoded(example)
        self._file.write(line)
        self._starts.append(self._starts[-1] + len(line))
        self._prompts.append(_hashed(example.prompt))
        self._content.update(line)
        self.columns.update(example.metadata.keys() | ({"answer"} if example.answer else set()))

    def __len__(self) -> int:
        return len(self._prompts)

    def __getitem__(self, index: int) -> Example:
        self._file.flush()
        start, end = self._starts[index], self._starts[index + 1]
        return Example(*json.loads(os.pread(self._file.fileno(), end - start, start)))

    @property
    def prompts(self) -> np.ndarray:
        """[N] uint64, equal for equal prompts."""
        return np.array(self._prompts, np.uint64)

    def fingerprint(self) -> str:
        """16 hexadecimal digits that change when any example does."""
        return self._content.hexdigest()[:16]


def read_rows(
    rows: Iterable[Row],
    *,
    columns: Mapping[str, str],
    problem: Callable[[Example], str | None],
    names: dict[str, str] | None = None,
) -> tuple[Spool, list[Quarantined]]:
    """The examples of rows, and those rows that are none.

    Args:
      columns: what the rows call a column: its name here → its name there.
      problem: why an example cannot be used, if it cannot: for whoever is to score it.
      names: of sources in the ids of rows that have none of their own, of earlier calls; those of
        this call are added.
    """
    spool, bad = Spool(), list[Quarantined]()
    names = {} if names is None else names
    seen: dict[int, tuple[str, int]] = {}  # hash of an id → where it stands
    for row in rows:
        name = names.get(row.source) or names.setdefault(row.source, _name(row.source, names))
        spool.read.update(row.values or ())
        try:
            example = to_example(row, columns, default_id=f"{name}:{row.line}")
            if (why := problem(example)) is not None:
                raise Malformed(why)
            if (at := seen.get(key := _hashed(example.id))) is not None:
                raise Malformed(f"id {example.id!r} is that of {at[0]}, line {at[1]}, too")
            spool.append(example)
            seen[key] = (row.source, row.line)
        except Malformed as error:
            bad.append(Quarantined(row.source, row.line, str(error)))
    return spool, bad


def _name(source: str, taken: Mapping[str, str]) -> str:
    """The last part of a path, wherever the rest of it may be; a number where there are several."""
    name = source.rpartition("/")[2]
    alike = sum(other.rpartition("/")[2] == name for other in taken)
    return f"{name}#{alike + 1}" if alike else name


class Malformed(Exception):
    """Why a row is no example."""


def to_example(row: Row, columns: Mapping[str, str], *, default_id: str) -> Example:
    """A row as an example; an id or answer that is a number is in its metadata, too, as it was.

    Raises:
      Malformed: it is none.
    """
    if row.values is None:
        raise Malformed(row.problem)
    values = row.values
    for ours, theirs in columns.items():
        if theirs not in row.values and ours == "prompt":
            raise Malformed(f"there is no column `{theirs}`, which is to be `{ours}`")
        if ours in row.values and ours not in columns.values():
            raise Malformed(
                f"there is a column `{ours}`, but `{theirs}` is to be it; leave one out"
            )
    if columns:
        moved = {ours: values.get(theirs) for ours, theirs in columns.items()}
        taken = set(columns.values())
        values = {name: value for name, value in values.items() if name not in taken} | moved
    values = {name: value for name, value in values.items() if value is not None}
    if "prompt" not in values:
        have = ", ".join(sorted(row.values)) or "none"
        raise Malformed(f"no `prompt` (columns: {have}); task.settings.columns says which it is")
    identity, answer = values.pop("id", default_id), values.pop("answer", "")
    prompt = checked_prompt(values.pop("prompt"))
    metadata = {name: _text(name, v) if name in TEXTS else v for name, v in values.items()}
    given = {"id": identity, "answer": answer}
    numbers = {name: value for name, value in given.items() if not isinstance(value, str)}
    return Example(_id(identity), prompt, _answer(answer), metadata | numbers)


def checked_prompt(prompt: Any) -> Any:
    """A prompt: text, or chat messages of `role` and `content`, the last of them not the model's.

    Raises:
      Malformed: it is neither, or empty.
    """
    if isinstance(prompt, str):
        if not prompt.strip():
            raise Malformed("`prompt` is empty")
        return prompt
    if not isinstance(prompt, list | tuple):
        raise Malformed(f"`prompt` is {user_code.shown(prompt)}; must be text or messages")
    if not prompt:
        raise Malformed("`prompt` has no messages")
    messages = []
    for i, message in enumerate(prompt):
        if not isinstance(message, Mapping):
            raise Malformed(f"message {i + 1} of `prompt` is {user_code.shown(message)}")
        given = {key: value for key, value in message.items() if value is not None}
        if given.keys() != {"role", "content"}:
            keys = ", ".join(map(str, given)) or "nothing"
            raise Malformed(f"message {i + 1} of `prompt` has {keys}; must be role and content")
        if given["role"] not in ROLES:
            raise Malformed(
                f"message {i + 1} of `prompt` has the role {given['role']!r}; must be one of "
                f"{', '.join(ROLES)}"
            )
        if not isinstance(given["content"], str):
            content = user_code.shown(given["content"])
            raise Malformed(f"the content of message {i + 1} of `prompt` is {content}, not text")
        messages.append({"role": given["role"], "content": given["content"]})
    if messages[-1]["role"] == "assistant":
        raise Malformed("the last message of `prompt` is the assistant's; end with the user's")
    if not any(message["content"].strip() for message in messages):
        raise Malformed("`prompt` is empty")
    return messages


def _encoded(example: Example) -> bytes:
    try:
        fields = [example.id, example.prompt, example.answer, example.metadata]
        return _ENCODER.encode(fields).encode("utf-8")
    except UnicodeEncodeError as error:
        raise Malformed("text with half of a surrogate pair; repair it as UTF-8") from error
    except (TypeError, ValueError, RecursionError) as error:
        for name, value in example.metadata.items():
            try:
                _ENCODER.encode({name: value})
            except (TypeError, ValueError, RecursionError) as problem:
                raise Malformed(f"the column `{name}` cannot be JSON: {problem}") from error
        raise


_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False)


def _id(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise Malformed(f"`id` is {user_code.shown(value)}; must be text or a whole number")
    return str(value)


def _answer(value: Any) -> str:
    """Text, or a number as it is written."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Malformed(f"`answer` is {user_code.shown(value)}; must be text or a number")
    if not math.isfinite(value):
        raise Malformed(f"`answer` is {value}; must be finite, or null where there is none")
    whole = isinstance(value, float) and value.is_integer() and abs(value) < 1e15
    return str(int(value) if whole else value)


def _text(name: str, value: Any) -> str:
    """Text; a demonstration may be the message of the assistant, as a dataset of chats has it."""
    if name == "demonstration" and isinstance(value, list) and len(value) == 1:
        (message,) = value
        if isinstance(message, Mapping) and message.get("role") == "assistant":
            value = message.get("content")
    if not isinstance(value, str):
        raise Malformed(f"`{name}` is {user_code.shown(value)}; must be text")
    if not value.strip():
        raise Malformed(f"`{name}` is empty; leave it out, or null")
    return value


def _hashed(value: Any) -> int:
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little")
