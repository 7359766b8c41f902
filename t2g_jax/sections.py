"""Frozen dataclasses as configuration: YAML in, command-line overrides on top, clear errors out.

Knows nothing of any particular option; `config.py` has those. Three steps, each by the library that
does it best: PyYAML reads the file, tyro the overrides, and pydantic checks the types and ranges.
"""

import contextlib
import copy
import dataclasses
import difflib
import functools
import hashlib
import io
import json
import os
import re
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, TypeVar

import pydantic
import tyro
import yaml

from t2g_jax.errors import T2GError


class ConfigError(T2GError):
    """A configuration that cannot be used: says which file, which key, and what would be right."""


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
    config = _validate(kind, _merge(_plain(default), _read_yaml(path)), str(path))
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
    return yaml.safe_dump(_plain(config), sort_keys=False, allow_unicode=True)


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
    before, after = values(old), values(new)

    def shown(found: Mapping[str, Any], key: str) -> str:
        return json.dumps(found[key], ensure_ascii=False) if key in found else "nothing"

    return [f"{key}: {shown(before, key)} → {shown(after, key)}" for key in diff(old, new)]


def print_options(config: Section) -> None:
    """Prints every override, what it means, and its value in this configuration."""
    with contextlib.suppress(SystemExit):
        _tyro(config, ["--help"])


# --- YAML ------------------------------------------------------------------------------------


class _Loader(yaml.SafeLoader):
    """YAML with `1e-5` as a number (YAML 1.2) and without repeated keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            if (key := key_node.value) in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} appears twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def _read_yaml(path: str | os.PathLike[str]) -> dict[str, Any]:
    try:
        with open(path, encoding="utf-8") as file:
            values = yaml.load(file, _Loader)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}, line {mark.line + 1}" if mark else str(path)
        problem = getattr(error, "problem", None) or str(error)
        raise ConfigError(f"{where}: not valid YAML: {problem}") from error
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
    return ".".join(str(part) for part in location if part not in ("int", "float"))


def _explain(kind: type[Section], error: Any) -> str:
    key, message = _dotted(error["loc"]), error["msg"]
    found = json.dumps(error["input"], default=str)
    found = found if len(found) <= 60 else found[:57] + "..."
    match error["type"]:
        case "unexpected_keyword_argument":
            return f"unknown key `{key}`{_did_you_mean(kind, key)}"
        case "value_error":
            message = message.removeprefix("Value error, ")
            return f"in `{key}`: {message}" if key else message
        case "dataclass_type":
            return f"`{key}` is {found}; must be a section of `key: value` lines"
        case "missing":
            return f"`{key}` is missing"
    message = message.replace("Input should be", "must be")
    return f"`{key}` is {found}; {message[0].lower()}{message[1:]}"


def _did_you_mean(kind: type[Section], key: str, prefix: str = "") -> str:
    known = _known_keys(kind)
    parent, _, name = key.rpartition(".")
    siblings = {k.rpartition(".")[2]: k for k in known if k.rpartition(".")[0] == parent}
    guesses = [siblings[near] for near in difflib.get_close_matches(name, siblings, n=1)]
    guesses = guesses or [k for k in known if k.rpartition(".")[2] == name][:3]
    guesses = guesses or difflib.get_close_matches(key, known, n=1, cutoff=0.8)
    if guesses:
        return f"; did you mean {' or '.join(f'`{prefix}{guess}`' for guess in guesses)}?"
    return f"; known: {', '.join(siblings)}" if siblings else ""


def _known_keys(kind: type[Section]) -> list[str]:
    """Dotted names of all sections and fields."""
    keys = []
    for name, annotation in typing.get_type_hints(kind).items():
        if name.startswith("__"):
            continue
        keys.append(name)
        if isinstance(annotation, type) and issubclass(annotation, Section):
            keys += [f"{name}.{key}" for key in _known_keys(annotation)]
    return keys


# --- Command line ----------------------------------------------------------------------------

# Words that mean the same on the command line as in YAML.
_YAML_WORDS = {"true": "True", "false": "False", "null": "None", "none": "None"}


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
    known = _known_keys(kind)
    groups = {key.rpartition(".")[0] for key in known}
    mappings = {k for k in known if k not in groups and isinstance(_get(values, k), dict)}
    words: list[str] = []
    entries: list[tuple[str, Any]] = []
    remaining = list(overrides)
    while remaining:
        word = remaining.pop(0)
        option, equals, value = word.partition("=")
        key = option.removeprefix("--").replace("-", "_")
        parent = key.rpartition(".")[0]
        if not option.startswith("--"):
            words.append(_YAML_WORDS.get(word, word))
        elif key in groups:
            example = next(k for k in known if k.startswith(f"{key}.") and k not in groups)
            raise ConfigError(
                f"command line: `{option}` is a section; set a field, e.g. `--{example}`"
            )
        elif key in mappings:
            raise ConfigError(
                f"command line: `{option}` has named entries; set one, as in `{option}.NAME VALUE`"
            )
        elif key in known:
            words += [f"--{key}"] + ([_YAML_WORDS.get(value, value)] if equals else [])
        elif parent in mappings:
            if not equals and not remaining:
                raise ConfigError(f"command line: `{option}` needs a value")
            entries.append((key, yaml.load(value if equals else remaining.pop(0), _Loader)))
        else:
            guess = _did_you_mean(kind, key, prefix="--")
            raise ConfigError(f"command line: unknown option `{option}`{guess}")
    values = _plain(_parse(config, words))
    for key, value in entries:
        parent, _, name = key.rpartition(".")
        _get(values, parent)[name] = value
    return values


def _get(values: dict[str, Any], key: str) -> Any:
    return functools.reduce(dict.__getitem__, key.split("."), values)


def _parse(config: AnySection, words: Sequence[str]) -> AnySection:
    output = io.StringIO()
    try:
        with contextlib.redirect_stderr(output), contextlib.redirect_stdout(output):
            return _tyro(config, words)
    except SystemExit as error:
        # tyro explains itself in a box: a title, a paragraph, a rule, hints.
        text = re.sub("[│╭╮╰╯]", " ", output.getvalue())
        paragraphs = re.split("[─-]{5,}", text)
        explanation = " ".join(paragraphs[min(1, len(paragraphs) - 1)].split())
        raise ConfigError(f"command line: {explanation}") from error
