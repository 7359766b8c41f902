"""Frozen dataclasses as configuration: YAML in, clear errors out.

Knows nothing of any particular option; `sections` and `methods` have those. `yaml_text` reads the
file, pydantic checks types and ranges, and `overrides` takes what the command line says.
"""

import contextlib
import dataclasses
import difflib
import functools
import hashlib
import json
import math
import os
import re
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any, ClassVar, TypeVar

import pydantic

from t2g_jax.config import yaml_text
from t2g_jax.errors import ConfigError, T2GError, nearest
from t2g_jax.printing import one_line
from t2g_jax.runtime import files


@dataclasses.dataclass(frozen=True)
class Section:
    """Base of all configuration classes: unknown keys, "3" for a number, and NaN are refused.

    Fields may be numbers, strings, bools, Literals, tuples, other sections, or mappings whose keys
    are the user's own: `dict[str, float]`, or of anything, `Settings`.
    `Annotated` bounds and `__post_init__` say which values are allowed.
    """

    __pydantic_config__: ClassVar[pydantic.ConfigDict] = pydantic.ConfigDict(
        extra="forbid", strict=True, allow_inf_nan=False
    )


AnySection = TypeVar("AnySection", bound=Section)
# To read a class takes much longer than to use what was read.
_adapter: Callable[[Any], pydantic.TypeAdapter] = functools.cache(pydantic.TypeAdapter)
_type_hints: Callable[[Any], dict[str, Any]] = functools.cache(typing.get_type_hints)
DASHES = "\u2010\u2011\u2012\u2013\u2014\u2015\u2212\ufe58\ufe63\uff0d"
"""What word processors and web pages make of hyphens."""


def _recordable(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings, if they are what a record can hold, and no secret that it would give away."""
    for path, value in _items(settings):
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"`{path}` is {value}; must be a finite number")
        name = path.rpartition(".")[2]
        if isinstance(value, str) and _SECRET.search(name) and not _VARIABLE.fullmatch(value):
            variable = re.sub("[^A-Z]", "_", name.upper())
            raise ValueError(
                f"`{path}` would be kept in clear, in config.yaml, the report and the records; put "
                f"it into an environment variable, and write its name: ${{{variable}}}"
            )
    return settings


def _items(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """What is in mappings and lists, by dotted path."""
    if isinstance(value, dict | list):
        entries = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in entries:
            yield from _items(item, f"{path}.{key}".removeprefix("."))
    else:
        yield path, value


_SECRET = re.compile(
    "(?i)(^|[_-])(api[_-]?key|access[_-]?key|private[_-]?key|password|secret|credentials?|token"
    "|authorization)$"
)
"""How settings are named whose text nobody is to read."""
_VARIABLE = re.compile(r"\$\{([A-Za-z_]\w*)\}")

Settings = Annotated[dict[str, pydantic.JsonValue], pydantic.AfterValidator(_recordable)]
"""Named values that only the user's own code understands: whatever JSON can hold. Text of the form
`${NAME}` stands for an environment variable, see `with_environment`: secrets are not recorded."""


def with_environment(settings: Mapping[str, Any], key: str) -> dict[str, Any]:
    """`Settings` as the user's code gets them: with the values of environment variables.

    Args:
      key: of the settings in the config, for the message, such as "judge.settings".

    Raises:
      ConfigError: a variable is not set; it is named.
    """

    def resolve(value: Any, path: str) -> Any:
        if isinstance(value, dict):
            return {name: resolve(item, f"{path}.{name}") for name, item in value.items()}
        if isinstance(value, list):
            return [resolve(item, f"{path}.{i}") for i, item in enumerate(value)]
        variable = _VARIABLE.fullmatch(value) if isinstance(value, str) else None
        if variable is None:
            return value
        if variable[1] not in os.environ:
            raise ConfigError(
                f"{path} is {value}, but there is no environment variable {variable[1]}; set it: "
                f"export {variable[1]}=…"
            )
        return os.environ[variable[1]]

    return {name: resolve(item, f"{key}.{name}") for name, item in settings.items()}


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


def read(default: AnySection, path: str | os.PathLike[str]) -> AnySection:
    """`default`, changed by a YAML file.

    Raises:
      ConfigError: file, key, and what is wrong with it; one line for each problem.
    """
    return changed(default, read_yaml(path), source=path)


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
    return parse(type(config), values, str(source))


def parse(kind: type[AnySection], values: Mapping[str, Any], source: str) -> AnySection:
    """A section from values by key, as JSON has them; what they leave out has its default.

    Args:
      source: where they come from, for the message.

    Raises:
      ConfigError: source, key, and what is wrong with it; one line for each problem.
    """
    try:
        # By way of JSON, strict mode takes lists for tuples and 1 for 1.0, but not "1" or true.
        return _adapter(kind).validate_json(json.dumps(values, default=str))
    except pydantic.ValidationError as error:
        # A union reports once for each member: the last, the most general, is kept.
        problems = {_dotted(e["loc"]): _explain(kind, e) for e in error.errors()}
        raise ConfigError("\n".join(f"{source}: {p}" for p in problems.values())) from error


def to_yaml(config: Section) -> str:
    """Every value as YAML; `read` gives an equal configuration back."""
    return yaml_text.dump(_plain(config))


def config_hash(config: Section) -> str:
    """16 hexadecimal digits that change when any value of a configuration (or section) does."""
    canonical = json.dumps(_plain(config), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def values(config: Section) -> dict[str, Any]:
    """Every value by its dotted key; the entries of a mapping each have one."""
    return dict(_leaves(type(config), _plain(config)))


def diff(a: Section, b: Section) -> list[str]:
    """Dotted keys whose values differ, in the order of the fields."""
    old, new = values(a), values(b)
    keys = dict(_leaves(type(a), _merge(_plain(a), _plain(b))))
    return [key for key in keys if _shown(old, key) != _shown(new, key)]


def changes(old: Section, new: Section) -> list[str]:
    """What `diff` names, with the values: "sft.steps: 30 → 40"."""
    return _differences(values(old), values(new), diff(old, new))


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """As `changes`, of values by key."""
    keys = [k for k in dict(before) | dict(after) if _shown(before, k) != _shown(after, k)]
    return _differences(before, after, keys)


def _differences(
    before: Mapping[str, Any], after: Mapping[str, Any], keys: Sequence[str]
) -> list[str]:
    return [f"{key}: {_shown(before, key)} → {_shown(after, key)}" for key in keys]


def _shown(found: Mapping[str, Any], key: str) -> str:
    """A value as JSON, which tells 1 and true apart."""
    return json.dumps(found[key], ensure_ascii=False) if key in found else "nothing"


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
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def _merge(below: dict[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """`above` where it says something, `below` elsewhere, section by section."""
    merged = dict(below)
    for key, value in above.items():
        deeper = isinstance(value, dict) and isinstance(below.get(key), dict)
        merged[key] = _merge(below[key], value) if deeper else value
    return merged


def _leaves(
    kind: type[Section], values: Mapping[str, Any], prefix: str = ""
) -> Iterator[tuple[str, Any]]:
    hints = _hints(kind)
    for name, value in values.items():
        annotation = hints.get(name)  # None: of another class, which calls its section so, too
        if is_section(annotation):
            yield from _leaves(annotation, value, f"{prefix}{name}.")
        elif is_mapping(annotation):
            yield from ((f"{prefix}{name}.{entry}", item) for entry, item in value.items())
        else:
            yield prefix + name, value


# --- Fields ----------------------------------------------------------------------------------


def fields_of(kind: type[Section], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names of all sections and fields, with their annotations."""
    for name, annotation in _hints(kind).items():
        yield prefix + name, annotation
        if is_section(annotation):
            yield from fields_of(annotation, f"{prefix}{name}.")


def is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, Section)


def is_mapping(annotation: Any) -> bool:
    return typing.get_origin(annotation) is dict


def _hints(kind: type[Section]) -> dict[str, Any]:
    hints = _type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


# --- Checks ----------------------------------------------------------------------------------


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
            if len(error["loc"]) <= len(sections) and key in dict(fields_of(kind)):
                nested = functools.reduce(
                    lambda a, b: f"{b}: {{{a}}}", reversed(sections), f"{name}: …"
                )
                return f"unknown key `{key}`; in a file it is `{nested}`"
            return f"unknown key `{key}`{did_you_mean(kind, key)}"
        case "value_error":
            message = message.removeprefix("Value error, ")
            return f"in `{key}`: {message}" if key else message
        case "dataclass_type":
            return f"`{key}` is {found}; must be a section of `key: value` lines"
        case "missing":
            return f"`{key}` is missing"
        case "literal_error" if isinstance(error["input"], str):
            choices = re.findall("'([^']*)'", error["ctx"]["expected"])
            message += nearest(error["input"], choices)
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
        digits = re.sub(f"[{DASHES}]", "-", given.strip()).replace("_", "")
        grouped = re.fullmatch(r"-?\d{1,3}(,\d{3})+", digits)
        digits = digits.replace(",", "" if grouped else ".")
        with contextlib.suppress(ValueError):
            number = yaml_text.scalar(digits)
            if type(number) in (int, float) and (wanted == "float" or type(number) is int):
                return f"; write {digits}"
    return ""


_BOOLS = dict.fromkeys(("yes", "y", "on", "true"), "true")
_BOOLS |= dict.fromkeys(("no", "n", "off", "false"), "false")


def did_you_mean(kind: type[Section], key: str, prefix: str = "") -> str:
    """ "; did you mean …?", with the known keys that are nearest to one that is not."""
    known = [name for name, _ in fields_of(kind)]
    parent, _, name = key.rpartition(".")
    siblings = {k.rpartition(".")[2]: k for k in known if k.rpartition(".")[0] == parent}
    guesses = [siblings[near] for near in difflib.get_close_matches(name.lower(), siblings, n=1)]
    guesses = guesses or [k for k in known if k.rpartition(".")[2] == name][:3]
    guesses = guesses or difflib.get_close_matches(key, known, n=1, cutoff=0.8)
    if guesses:
        return f"; did you mean {' or '.join(f'`{prefix}{guess}`' for guess in guesses)}?"
    return f"; known: {', '.join(siblings)}" if siblings else ""
