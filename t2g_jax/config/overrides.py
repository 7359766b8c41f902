"""The configuration on the command line: `--a.b value` changes it, and `--help` lists what can be.

Dotted words become nested dictionaries, as a YAML file has them, which `sections` checks. Which
options there are, and what they mean, the classes of the configuration say.
"""

import argparse
import ast
import functools
import inspect
import itertools
import json
import re
import textwrap
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pydantic

from t2g_jax.config import yaml_text
from t2g_jax.config.base import (
    DASHES,
    AnySection,
    Section,
    changed,
    did_you_mean,
    fields_of,
    is_mapping,
    is_section,
)
from t2g_jax.errors import ConfigError
from t2g_jax.printing import one_line

_NOTHING = ("null", "none", "None")
_JSON = (str, bool, int, float, list, dict, types.NoneType)


def override(config: AnySection, words: Sequence[str]) -> AnySection:
    """`config`, changed by words of a command line: `["--sft.steps", "20", "--seed=3"]`.

    Raises:
      ConfigError: option, and what is wrong with it; one line for each problem.
    """
    return changed(config, parse(type(config), words), source="command line")


def parse(kind: type[Section], words: Sequence[str]) -> dict[str, Any]:
    """What the words say, as a YAML file would: `{"sft": {"steps": 20}, "seed": 3}`.

    Raises:
      ConfigError: an option is unknown, has no value or is set twice, or a word has no option.
    """
    fields = dict(fields_of(kind))
    nested: dict[str, Any] = {}
    before: dict[str, str] = {}
    for option, *given in _options(words, fields):
        key, annotation = _resolve(kind, fields, option)
        several = typing.get_origin(annotation) is tuple
        if not given:
            raise _wrong(f"`{option}` needs a value")
        if len(given) > 1 and not several:
            raise _wrong(_stray(given[1], fields))
        now = " ".join([option, *given])
        for other, said in before.items():
            if f"{key}.".startswith(f"{other}.") or other.startswith(f"{key}."):
                raise _wrong(f"`{said}` and `{now}` set the same value; leave one out")
        before[key] = now
        inside = nested
        *parents, name = key.split(".")
        for parent in parents:
            inside = inside.setdefault(parent, {})
        inside[name] = (_several if several else _meant)(option, annotation, *given)
    return nested


def said(words: Sequence[str]) -> dict[str, list[str]]:
    """The words after each option by its key, before anything is checked."""
    found: dict[str, list[str]] = {}
    values: list[str] = []
    for word in words:
        if word.startswith("--"):
            option, equals, text = word.partition("=")
            values = found.setdefault(option.removeprefix("--").replace("-", "_"), [])
            values += [text] if equals else []
        else:
            values.append(word)
    return found


def print_options(config: Section) -> None:
    """Prints every override, what it means, and its value in this configuration."""
    listing = argparse.ArgumentParser(
        usage=argparse.SUPPRESS,
        add_help=False,
        formatter_class=functools.partial(
            argparse.RawDescriptionHelpFormatter, max_help_position=6
        ),
    )
    groups = {"": listing.add_argument_group("options")}
    meanings = {"": _meanings(type(config))}
    for key, annotation in fields_of(type(config)):
        parent, _, name = key.rpartition(".")
        if is_section(annotation):
            groups[key] = listing.add_argument_group(f"{key} options", inspect.getdoc(annotation))
            meanings[key] = _meanings(annotation)
            continue
        value = functools.reduce(getattr, key.split("."), config)
        meaning = f"{meanings[parent].get(name, '')} (default: {_said(value)})".strip()
        groups[parent].add_argument(
            f"--{key}.NAME" if is_mapping(annotation) else f"--{key}",
            metavar=_shape(annotation),
            help=meaning.replace("%", "%%"),
        )
    listing.print_help()


# --- What the words say ----------------------------------------------------------------------


def _options(words: Sequence[str], fields: Mapping[str, Any]) -> list[list[str]]:
    """Each option with the words that follow it."""
    options: list[list[str]] = []
    for word in words:
        if any("\ud800" <= c <= "\udfff" for c in word):
            raise _wrong(f"{word!a} is not UTF-8 text")
        if word.startswith("--"):
            option, equals, text = word.partition("=")
            options.append([option, text] if equals else [option])
        elif options:
            options[-1].append(word)
        else:
            raise _wrong(_stray(word, fields))
    return options


def _resolve(kind: type[Section], fields: Mapping[str, Any], option: str) -> tuple[str, Any]:
    """The key that an option sets, and the annotation of its value."""
    key = option.removeprefix("--").replace("-", "_")
    if key in fields and is_section(fields[key]):
        example = next(
            k for k, v in fields.items() if k.startswith(f"{key}.") and not is_section(v)
        )
        raise _wrong(f"`{option}` is a section; set a field, e.g. `--{example}`")
    if key in fields and is_mapping(fields[key]):
        raise _wrong(f"`{option}` has named entries; set one, as in `{option}.NAME VALUE`")
    if key in fields:
        return key, fields[key]
    for name, annotation in fields.items():
        if is_mapping(annotation) and key.startswith(f"{name}.") and all(key.split(".")):
            return key, typing.get_args(annotation)[1]
    raise _wrong(f"unknown option `{option}`{did_you_mean(kind, key, prefix='--')}")


def _meant(option: str, annotation: Any, text: str) -> Any:
    """What a word means for a field: what it means in YAML, but text needs no quotes there."""
    kinds = {m if isinstance(m, type) else type(m) for m in _members(annotation)}
    if types.NoneType in kinds and text in _NOTHING:
        return None
    if str in kinds and not kinds & {bool, int, float}:
        return text
    quoted = text[:1] in ("'", '"')  # for a field that may be text or a number
    try:
        if quoted or (list in kinds and text[:1] in ("[", "{")):
            return yaml_text.load(text, source=f"command line: `{option}`")
        return yaml_text.scalar(text)
    except ConfigError:
        raise
    except ValueError as error:
        raise _wrong(f"`{option}`: {error}") from error


def _several(option: str, annotation: Any, *words: str) -> list[Any]:
    marks = r"[\s,;\[\](){}'\"]"
    if any(re.search(marks, word) for word in words):
        apart = " ".join(filter(None, re.split(marks, " ".join(words))))
        raise _wrong(f"the values of `{option}` are separated by blanks alone: `{option} {apart}`")
    one_of: Any = typing.Union[tuple(a for a in typing.get_args(annotation) if a is not ...)]  # noqa: UP007
    return [_meant(option, one_of, word) for word in words]


def _stray(word: str, fields: Mapping[str, Any]) -> str:
    """What is wrong with a word that belongs to no option."""
    name = word.partition("=")[0].lstrip("-" + DASHES)
    dashed = word[:1] and word[0] in "-" + DASHES and name[:1].isalpha()
    if dashed or name.replace("-", "_") in fields:
        return f"`{word}`: options begin with two hyphens, `--{name}`"
    return f"`{word}` belongs to no option; overrides look like `--seed 1`"


def _wrong(problem: str) -> ConfigError:
    return ConfigError(f"command line: {problem}")


def _members(annotation: Any) -> Iterator[Any]:
    """What a value may be: the types of a union, and the values of a Literal."""
    if annotation in (Any, pydantic.JsonValue):
        yield from _JSON
    elif typing.get_origin(annotation) is typing.Literal:
        yield from typing.get_args(annotation)
    elif isinstance(annotation, type):
        yield annotation
    else:
        for inside in typing.get_args(annotation):
            yield from _members(inside)


# --- What can be said ------------------------------------------------------------------------


def _meanings(kind: type[Section]) -> dict[str, str]:
    """The text below each field of a class, by the name of the field."""
    found: dict[str, str] = {}
    definition: Any
    for base in reversed(kind.__mro__[: kind.__mro__.index(Section)]):
        try:
            (definition,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        except (OSError, TypeError):  # made at run time, of fields that have classes of their own
            continue
        for field, text in itertools.pairwise(definition.body):
            match field, text:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(ast.Constant(str(meaning))):
                    found[name] = " ".join(meaning.split())
    return found


def _shape(annotation: Any) -> str:
    """What stands for a value in the list of options: INT, or the words to choose from."""
    arguments = typing.get_args(annotation)
    if is_mapping(annotation):
        return _shape(arguments[1])
    if typing.get_origin(annotation) is tuple:
        shapes = " ".join(_shape(inside) for inside in arguments if inside is not ...)
        return f"{shapes} [...]" if ... in arguments else shapes
    members = list(_members(annotation))
    if list in members:
        return "VALUE"
    words = ["None"] * (types.NoneType in members) + ["true", "false"] * (bool in members)
    words += [member for member in members if isinstance(member, str)]
    names = [m.__name__.upper() for m in members if m in (str, int, float)]
    return "|".join([*([f"{{{','.join(words)}}}"] if words else []), *names])


def _said(value: Any) -> str:
    """A value in the words that would set it."""
    if isinstance(value, tuple):
        return " ".join(map(_said, value))
    if value is None or isinstance(value, str):
        return one_line(value)
    return one_line(json.dumps(value, ensure_ascii=False))
