"""YAML as this project reads it: the core schema of YAML 1.2, and nothing that could surprise.

    values = load(text, source="mine.yaml")
    text = dump(values)                         # load(dump(values)) == values

PyYAML splits the text into events; what they mean is decided here, as PyYAML's own loader reads
YAML 1.1, where `0042` is 34, `12:30` is 750, `on` is true and `1e-4` is text. Going from event to
event also bounds what a file can cost, which no loader of a whole document does: one in which
aliases of aliases stand for a billion values, or that contains itself, is refused where it does so.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any, NoReturn

import yaml

from t2g_jax.errors import ConfigError

MOST_BYTES = 1 << 20
MOST_LEVELS = 50
MOST_VALUES = 100_000
"""Values in a file, those that aliases repeat included."""
MOST_DIGITS = 300
"""Of an integer: the next ones are more than a float can be."""

_NULL = re.compile("(?:~|null|Null|NULL)?")
_BOOL = re.compile("true|True|TRUE|false|False|FALSE")
_INT = re.compile("[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)")
# What YAML allows in a file (its production c-printable).
_FORBIDDEN = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_CORE = "tag:yaml.org,2002:"


def load(text: str | bytes, *, source: str) -> Any:
    """The value that a YAML text describes; None if there is nothing in it.

    Keys are text, and no mapping has one twice. Of extensions it knows merge keys (`<<: *others`).

    Args:
      text: one document; bytes are UTF-8.
      source: where it comes from, for the message.

    Raises:
      ConfigError: it is not YAML, or more than this reads; one line, with source and line.
    """
    return _Reader(source).read(text)


def scalar(text: str) -> Any:
    """What a word means that stands in YAML without quotes: None, bool, int, float, or text.

    Raises:
      ValueError: a number that cannot be held.
    """
    if _NULL.fullmatch(text):
        return None
    if _BOOL.fullmatch(text):
        return text.lower() == "true"
    if _INT.fullmatch(text):
        if len(text) > MOST_DIGITS:
            raise ValueError(f"an integer of {len(text)} digits is too long")
        return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))
    if _FLOAT.fullmatch(text):
        value = float(text)
        if value == 0 and re.search("[1-9]", re.split("[eE]", text)[0]):
            raise ValueError(f"{_short(text)} is too small for a float, which would be 0")
        if math.isinf(value):
            raise ValueError(f"{_short(text)} is too large for a float")
        return value
    if _NOT_FINITE.fullmatch(text):
        return float(text.lower().replace(".", ""))
    return text


def dump(values: Any) -> str:
    """Dicts, lists and scalars as YAML, which `load` reads as what they were."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=math.inf)


class _Dumper(yaml.SafeDumper):
    """Text that could be taken for something else is in double quotes."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    plain = re.fullmatch(r"[A-Za-z0-9_./](?:[\w./ +-]*[\w./+-])?", text, re.ASCII)
    try:
        plain = plain and scalar(text) == text
    except ValueError:
        plain = None
    # The dumper goes by YAML 1.1, and would quote some of the others in its own way.
    return dumper.represent_scalar(f"{_CORE}str", text, style=None if plain else '"')


_Dumper.add_representer(str, _represent_text)


class _Reader:
    """One pass over the events of a document."""

    def __init__(self, source: str):
        self.source = source
        self._anchors: dict[str, tuple[Any, int, int]] = {}  # value, how large, how deep
        self._open: set[str] = set()
        self._left = MOST_VALUES
        self._level = self._deepest = 0

    def read(self, text: str | bytes) -> Any:
        if len(text) > MOST_BYTES:
            raise ConfigError(f"{self.source}: larger than {MOST_BYTES >> 20} MiB; no such file is")
        if isinstance(text, bytes):
            text = self._decoded(text)
        if forbidden := _FORBIDDEN.search(text):
            self._refuse(
                text.count("\n", 0, forbidden.start()),
                f"not valid YAML: the character U+{ord(forbidden[0]):04X} may not stand there",
            )
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        try:
            self._events = yaml.parse(text, loader)
            return self._document()
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
            problem = getattr(error, "problem", None) or str(error).splitlines()[0]
            last = text.rstrip().count("\n")  # the end of a text has a line of its own
            self._refuse(mark and min(mark.line, last), f"not valid YAML: {problem}", error)

    def _decoded(self, data: bytes) -> str:
        try:
            return data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            line = data.count(b"\n", 0, error.start)
            self._refuse(line, "not UTF-8 text; save it as UTF-8", error)

    def _refuse(self, at: Any, problem: str, cause: BaseException | None = None) -> NoReturn:
        line = at.start_mark.line if isinstance(at, yaml.Event) else at
        where = self.source if line is None else f"{self.source}, line {line + 1}"
        raise ConfigError(f"{where}: {problem}") from cause

    def _document(self) -> Any:
        value, seen = None, False
        for event in self._events:
            if isinstance(event, yaml.DocumentStartEvent):
                if seen:
                    self._refuse(event, "a second document begins; one file holds one")
                seen = True
                value = self._value(next(self._events))
        return value

    def _value(self, event: Any) -> Any:
        if isinstance(event, yaml.AliasEvent):
            return self._alias(event)
        anchor, before, above = event.anchor, self._left, self._deepest
        self._count(event, 1)
        self._deepest = self._level
        if anchor in self._open:
            self._refuse(event, f"the anchor &{anchor} is inside another of its name")
        if anchor is not None:
            self._open.add(anchor)
        value = self._scalar(event) if isinstance(event, yaml.ScalarEvent) else self._inside(event)
        if anchor is not None:
            self._open.remove(anchor)
            self._anchors[anchor] = value, before - self._left, self._deepest - self._level
        self._deepest = max(above, self._deepest)
        return value

    def _alias(self, event: Any) -> Any:
        if event.anchor in self._open:
            self._refuse(event, f"*{event.anchor} stands inside the value that it stands for")
        if event.anchor not in self._anchors:
            self._refuse(event, f"not valid YAML: *{event.anchor} has no &{event.anchor} before it")
        value, size, depth = self._anchors[event.anchor]
        self._count(event, size)
        self._reach(event, self._level + depth)
        return value

    def _count(self, event: Any, values: int) -> None:
        self._left -= values
        if self._left < 0:
            self._refuse(event, f"more than {MOST_VALUES:,} values, with what aliases (*) repeat")

    def _reach(self, event: Any, level: int) -> None:
        self._deepest = max(level, self._deepest)
        if level > MOST_LEVELS:
            self._refuse(event, f"nested more than {MOST_LEVELS} levels deep")

    def _inside(self, event: Any) -> Any:
        self._level += 1
        self._reach(event, self._level)
        read: Callable[[Any], Any]
        if isinstance(event, yaml.MappingStartEvent):
            kind, read = "map", self._mapping
        else:
            kind, read = "seq", self._sequence
        if event.tag not in (None, "!", _CORE + kind):
            self._refuse(event, f"the tag {_shown(event.tag)} is not known; leave it out")
        value = read(event)
        self._level -= 1
        return value

    def _sequence(self, _: Any) -> list[Any]:
        values = []
        while not isinstance(event := next(self._events), yaml.SequenceEndEvent):
            values.append(self._value(event))
        return values

    def _mapping(self, _: Any) -> dict[str, Any]:
        values: dict[str, Any] = {}
        merged: dict[str, Any] | None = None
        while not isinstance(event := next(self._events), yaml.MappingEndEvent):
            if isinstance(event, yaml.ScalarEvent) and event.value == "<<" and not event.style:
                self._count(event, 1)
                if merged is not None:
                    self._refuse(event, "`<<` appears twice; give one a list: `<<: [*a, *b]`")
                merged = self._merged(next(self._events))
                continue
            if isinstance(event, yaml.CollectionStartEvent):
                self._refuse(event, "a key is a list or a section; keys are text")
            key = self._value(event)
            if not isinstance(key, str):
                written = getattr(event, "value", key)
                self._refuse(
                    event,
                    f"the key {_short(str(written))} is no text; put it in quotes if it is a name",
                )
            if key in values:
                self._refuse(event, f"not valid YAML: the key {_short(key)!r} appears twice")
            values[key] = self._value(next(self._events))
        return (merged or {}) | values

    def _merged(self, event: Any) -> dict[str, Any]:
        value = self._value(event)
        layers = value if isinstance(value, list) else [value]
        if not all(isinstance(layer, dict) for layer in layers):
            self._refuse(event, "`<<` merges sections; give it one, as in `<<: *others`")
        merged: dict[str, Any] = {}
        for layer in layers:  # earlier ones win
            merged = layer | merged
        return merged

    def _scalar(self, event: Any) -> Any:
        kind = None if event.tag in (None, "!") else event.tag.removeprefix(_CORE)
        if kind is None and (event.style or event.tag == "!"):
            return event.value
        if kind == "str":
            return event.value
        if kind not in (None, *_KINDS):
            self._refuse(event, f"the tag {_shown(event.tag)} is not known; leave it out")
        try:
            value = scalar(event.value)
        except ValueError as error:
            self._refuse(event, str(error), error)
        if kind is None or type(value) is _KINDS[kind]:
            return value
        if kind == "float" and type(value) is int:
            return float(value)
        self._refuse(event, f"{_short(event.value)!r} is not what its tag !!{kind} says")


_KINDS: dict[str, type] = {"null": type(None), "bool": bool, "int": int, "float": float}


def _shown(tag: str) -> str:
    return _short(tag.replace(_CORE, "!!"))


def _short(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:37]}..."
