"""Frozen dataclasses as configuration: YAML in, command-line overrides on top, clear errors out.

Knows nothing of any particular option; `config.py` has those. `yaml_text` reads the file, a word of
the command line means what it would mean there, pydantic checks types and ranges, and tyro prints
the list of options.
"""

import contextlib
import copy
import dataclasses
import difflib
import functools
import hashlib
import json
import os
import re
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, TypeVar

import pydantic
import tyro

from t2g_jax import yaml_text
from t2g_jax.errors import ConfigError, T2GError
from t2g_jax.printing import one_line
from t2g_jax.runtime import files


@dataclasses.dataclass(frozen=True)
class Section:
    """Base of all configuration classes: unknown keys, "3" for a number, and NaN are refused.

    Fields may be numbers, strings, bools, Literals, tuples, `dict[str, number]`, or other sections;
    `Annotated` bounds and `__post_init__` say which values are allowed.
    """

    __pydantic_config__: ClassVar[pydantic.ConfigDict] = pydantic.ConfigDict(
        extra="forbid", strict=True, allow_inf_nan=False
    )


AnySection = TypeVar("AnySection", bound=Section)


def require(condition: bool, message: str) -> None:
    """For `__post_init__`: raises ConfigError with this message unless the condition holds."""
    if not condition:
        raise ConfigError(message)


def require_multiple(name: str, value: int, divisor_name: str, divisor: int) -> None:
    """For `__post_init__`: raises ConfigError unless `divisor` divides `value`."""
    require(
        value % divisor == 0,
        f"{name} ({value}) must be a multiple of {divisor_name} ({divisor})",
    )


def read(
    default: AnySection, path: str | os.PathLike[str], overrides: Sequence[str] = ()
) -> AnySection:
    """`default`, changed by a YAML file and then by `--a.b value` overrides.

    Raises:
      ConfigError: file, key or option, and what is wrong with it; one line for each problem.
    """
    kind = type(default)
    config = _validate(kind, _merge(_plain(default), read_yaml(path)), str(path))
    if not overrides:
        return config
    return _validate(kind, _apply_overrides(config, overrides), "command line")


def changed(
    config: AnySection, *layers: Mapping[str, Any], source: str | os.PathLike[str]
) -> AnySection:
    """`config`, changed by each layer in turn: mappings of sections, as a YAML file has them.

    Args:
      source: where the layers come from, for the message.

    Raises:
      ConfigError: source, key, and what is wrong with it; one line for each problem.
    """
    values = functools.reduce(_merge, layers, _plain(config))
    return _validate(type(config), values, str(source))


def to_yaml(config: Section) -> str:
    """Every value as YAML; `read` gives an equal configuration back."""
    return yaml_text.dump(_plain(config))


def config_hash(config: Section) -> str:
    """16 hexadecimal digits that change when any value of a configuration (or section) does."""
    canonical = json.dumps(_plain(config), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def values(config: Section) -> dict[str, Any]:
    """Every value, by its dotted key."""
    return dict(_leaves(_plain(config)))


def diff(a: Section, b: Section) -> list[str]:
    """Dotted keys whose values differ, in the order of the fields."""
    left, right, absent = _plain(a), _plain(b), object()
    old, new = dict(_leaves(left)), dict(_leaves(right))
    keys = dict(_leaves(_merge(left, right)))
    return [key for key in keys if old.get(key, absent) != new.get(key, absent)]


def changes(old: Section, new: Section) -> list[str]:
    """What `diff` names, with the values: "sft.steps: 30 → 40"."""
    return differences(values(old), values(new), diff(old, new))


def differences(
    before: Mapping[str, Any], after: Mapping[str, Any], keys: Sequence[str] | None = None
) -> list[str]:
    """As `changes`, of values by key; of these keys, or of all."""
    if keys is None:
        keys = [key for key in dict(before) | dict(after) if before.get(key) != after.get(key)]

    def shown(found: Mapping[str, Any], key: str) -> str:
        return json.dumps(found[key], ensure_ascii=False) if key in found else "nothing"

    return [f"{key}: {shown(before, key)} → {shown(after, key)}" for key in keys]


def print_options(config: Section) -> None:
    """Prints every override, what it means, and its value in this configuration."""
    with contextlib.suppress(SystemExit):
        _tyro(_visible(config), ["--help"])


def _visible(value: Any) -> Any:
    """A configuration (or value) whose text can be printed, see `t2g_jax.printing`."""
    if isinstance(value, Section):
        values = {f.name: _visible(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return dataclasses.replace(value, **values)
    if isinstance(value, tuple):
        return tuple(map(_visible, value))
    if isinstance(value, dict):
        return {_visible(key): _visible(item) for key, item in value.items()}
    return one_line(value) if isinstance(value, str) else value


# --- YAML ------------------------------------------------------------------------------------


def read_yaml(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What a YAML file says, by key, before any check of the keys.

    Raises:
      ConfigError: it cannot be read, is not YAML, or has no `key: value` lines.
    """
    try:
        text = files.read_bytes(path, most=yaml_text.MOST_BYTES + 1)
    except T2GError as error:
        raise ConfigError(str(error)) from error
    values = yaml_text.load(text, source=str(path))
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected `key: value` lines at the top, e.g. `seed: 0`")
    return values


def _plain(value: Any) -> Any:
    """Dataclasses as dicts and tuples as lists: what YAML and JSON can hold."""
    if isinstance(value, Section):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    return [_plain(item) for item in value] if isinstance(value, tuple) else copy.copy(value)


def _merge(below: dict[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """`above` where it says something, `below` elsewhere, section by section."""
    merged = dict(below)
    for key, value in above.items():
        deeper = isinstance(value, dict) and isinstance(below.get(key), dict)
        merged[key] = _merge(below[key], value) if deeper else value
    return merged


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


# --- Checks ----------------------------------------------------------------------------------


def _validate(kind: type[AnySection], values: Mapping[str, Any], source: str) -> AnySection:
    try:
        # By way of JSON, strict mode takes lists for tuples and 1 for 1.0, but not "1" or true.
        return pydantic.TypeAdapter(kind).validate_json(json.dumps(values, default=str))
    except pydantic.ValidationError as error:
        # A union reports once for each member: the last, the most general, is kept.
        problems = {_dotted(e["loc"]): _explain(kind, e) for e in error.errors()}
        raise ConfigError("\n".join(f"{source}: {p}" for p in problems.values())) from error


def _dotted(location: Sequence[int | str]) -> str:
    """`("sft", "steps")` → `"sft.steps"`, without the names that pydantic adds inside unions."""
    return ".".join(str(part) for part in location if part not in ("bool", "int", "float", "str"))


def _explain(kind: type[Section], error: Any) -> str:
    key, message = one_line(_dotted(error["loc"])), error["msg"]
    found = json.dumps(error["input"], default=str)
    found = found if len(found) <= 60 else found[:57] + "..."
    match error["type"]:
        case "unexpected_keyword_argument":
            *sections, name = key.split(".")
            if len(error["loc"]) <= len(sections) and key in dict(_fields(kind)):
                nested = functools.reduce(
                    lambda a, b: f"{b}: {{{a}}}", reversed(sections), f"{name}: …"
                )
                return f"unknown key `{key}`; in a file it is `{nested}`"
            return f"unknown key `{key}`{_did_you_mean(kind, key)}"
        case "value_error":
            message = message.removeprefix("Value error, ")
            return f"in `{key}`: {message}" if key else message
        case "dataclass_type":
            return f"`{key}` is {found}; must be a section of `key: value` lines"
        case "missing":
            return f"`{key}` is missing"
    message = message.replace("Input should be", "must be")
    return f"`{key}` is {found}; {message[0].lower()}{message[1:]}{_instead(error)}"


def _instead(error: Any) -> str:
    """How a value is written that was meant for another type, if that can be told."""
    given, wanted = error["input"], error["type"].partition("_")[0]
    if wanted == "string" and not isinstance(given, dict | list):
        return "; put it in quotes"
    if not isinstance(given, str):
        return ""
    if wanted == "bool" and (word := given.strip().lower()) in _BOOLS:
        return f"; write {_BOOLS[word]}"
    if wanted in ("int", "float"):
        digits = re.sub(f"[{_DASHES}]", "-", given.strip()).replace("_", "")
        grouped = re.fullmatch(r"-?\d{1,3}(,\d{3})+", digits)
        digits = digits.replace(",", "" if grouped else ".")
        with contextlib.suppress(ValueError):
            number = yaml_text.scalar(digits)
            if type(number) in (int, float) and (wanted == "float" or type(number) is int):
                return f"; write {digits}"
    return ""


_BOOLS = dict.fromkeys(("yes", "y", "on", "true"), "true")
_BOOLS |= dict.fromkeys(("no", "n", "off", "false"), "false")


def _did_you_mean(kind: type[Section], key: str, prefix: str = "") -> str:
    known = [name for name, _ in _fields(kind)]
    parent, _, name = key.rpartition(".")
    siblings = {k.rpartition(".")[2]: k for k in known if k.rpartition(".")[0] == parent}
    guesses = [siblings[near] for near in difflib.get_close_matches(name.lower(), siblings, n=1)]
    guesses = guesses or [k for k in known if k.rpartition(".")[2] == name][:3]
    guesses = guesses or difflib.get_close_matches(key, known, n=1, cutoff=0.8)
    if guesses:
        return f"; did you mean {' or '.join(f'`{prefix}{guess}`' for guess in guesses)}?"
    return f"; known: {', '.join(siblings)}" if siblings else ""


# --- Command line ----------------------------------------------------------------------------

_NOTHING = ("null", "none", "None")
_DASHES = "\u2010\u2011\u2012\u2013\u2014\u2015\u2212\ufe58\ufe63\uff0d"
"""What word processors and web pages make of hyphens."""


def _tyro(config: AnySection, words: Sequence[str]) -> AnySection:
    return tyro.cli(
        type(config),
        default=config,
        args=list(words),
        prog="t2g COMMAND CONFIG",
        use_underscores=True,
        config=(tyro.conf.FlagConversionOff,),
    )


def _apply_overrides(config: Section, overrides: Sequence[str]) -> dict[str, Any]:
    kind, values = type(config), _plain(config)
    fields = dict(_fields(kind))
    words = list(overrides)
    before: dict[str, str] = {}
    if strange := [word for word in words if any("\ud800" <= c <= "\udfff" for c in word)]:
        raise ConfigError(f"command line: {strange[0]!a} is not UTF-8 text")
    while words:
        option, equals, text = (word := words.pop(0)).partition("=")
        if not word.startswith("--"):
            raise ConfigError(f"command line: {_stray(word, fields)}")
        key = option.removeprefix("--").replace("-", "_")
        parent, _, name = key.rpartition(".")
        if parent in fields and _is_mapping(fields[parent]) and name:
            annotation = typing.get_args(fields[parent])[1]
        elif key in fields:
            annotation = _field(key, option, fields)
        else:
            guess = _did_you_mean(kind, key, prefix="--")
            raise ConfigError(f"command line: unknown option `{option}`{guess}")
        given = [text] if equals else []
        several = typing.get_origin(annotation) is tuple
        while words and not words[0].startswith("--") and (several or not given):
            given.append(words.pop(0))
        if not given:
            raise ConfigError(f"command line: `{option}` needs a value")
        now = " ".join([option, *given])
        if key in before:
            raise ConfigError(
                f"command line: `{before[key]}` and `{now}` set the same value; leave one out"
            )
        before[key] = now
        inside = _get(values, parent) if parent else values
        inside[name] = (
            _several(option, annotation, given) if several else _meant(option, annotation, *given)
        )
    return values


def _field(key: str, option: str, fields: Mapping[str, Any]) -> Any:
    """The annotation of a field that can be set, not of a section."""
    if _is_section(fields[key]):
        example = next(
            k for k, v in fields.items() if k.startswith(f"{key}.") and not _is_section(v)
        )
        raise ConfigError(f"command line: `{option}` is a section; set a field, e.g. `--{example}`")
    if _is_mapping(fields[key]):
        raise ConfigError(
            f"command line: `{option}` has named entries; set one, as in `{option}.NAME VALUE`"
        )
    return fields[key]


def _meant(option: str, annotation: Any, text: str) -> Any:
    """What a word means for a field: what it means in YAML, but text needs no quotes there."""
    kinds = set(_kinds(annotation))
    if type(None) in kinds and text in _NOTHING:
        return None
    if str in kinds and not kinds & {bool, int, float}:
        return text
    try:
        if text[:1] in ("'", '"'):  # for a field that may be text or a number
            return yaml_text.load(text, source=f"command line: `{option}`")
        return yaml_text.scalar(text)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"command line: `{option}`: {error}") from error


def _several(option: str, annotation: Any, words: Sequence[str]) -> list[Any]:
    marks = r"[\s,;\[\](){}'\"]"
    if any(re.search(marks, word) for word in words):
        apart = " ".join(filter(None, re.split(marks, " ".join(words))))
        raise ConfigError(
            f"command line: the values of `{option}` are separated by blanks alone: "
            f"`{option} {apart}`"
        )
    one_of: Any = typing.Union[tuple(a for a in typing.get_args(annotation) if a is not ...)]  # noqa: UP007
    return [_meant(option, one_of, word) for word in words]


def _stray(word: str, fields: Mapping[str, Any]) -> str:
    """What is wrong with a word that belongs to no option."""
    name = word.partition("=")[0].lstrip("-" + _DASHES)
    if word[:1] and word[0] in "-" + _DASHES and name[:1].isalpha():
        return f"`{word}`: options begin with two hyphens, `--{name}`"
    if name.replace("-", "_") in fields:
        return f"`{word}`: options begin with two hyphens, `--{name}`"
    return f"`{word}` belongs to no option; overrides look like `--seed 1`"


def _fields(kind: type[Section], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names of all sections and fields, with their annotations."""
    for name, annotation in typing.get_type_hints(kind).items():
        if name.startswith("__"):
            continue
        yield prefix + name, annotation
        if _is_section(annotation):
            yield from _fields(annotation, f"{prefix}{name}.")


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, Section)


def _is_mapping(annotation: Any) -> bool:
    return typing.get_origin(annotation) is dict


def _kinds(annotation: Any) -> Iterator[type]:
    """The types that a value may have: those of a union, and of a Literal's values."""
    if typing.get_origin(annotation) is typing.Literal:
        yield from map(type, typing.get_args(annotation))
    elif isinstance(annotation, type):
        yield annotation
    else:
        for inside in typing.get_args(annotation):
            yield from _kinds(inside)


def _get(values: dict[str, Any], key: str) -> Any:
    return functools.reduce(dict.__getitem__, key.split("."), values)
