"""Methods from outside: which of them a config speaks of, and a config class with their sections.

A method's class has a `name`, "filtered-sft", and a `section`, the class of what the config says of
it under `filtered_sft`. It is named in `plugins`, or an installed package brings it by its name, as
an entry point (see `plugins`). What is not spoken of is not imported.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import os
import re
import types
import typing
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from t2g_jax import plugins, user_code
from t2g_jax.config import overrides
from t2g_jax.config.base import Section, parse
from t2g_jax.errors import ConfigError, T2GError
from t2g_jax.printing import one_line

TAKES = "a method's class"
_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
FOLDERS = ("quarantine", "tensorboard", "wandb")
"""What the folder of a run has that is no section of its config."""


@dataclasses.dataclass(frozen=True)
class WithMethods(Section):
    """A config that may have sections of methods from outside."""

    outside: typing.ClassVar[Mapping[str, Any]] = types.MappingProxyType({})
    """The classes of these methods, by name."""


AnyConfig = TypeVar("AnyConfig", bound=WithMethods)


def class_of_run(
    base: type[AnyConfig],
    values: Mapping[str, Any],
    words: Sequence[str],
    *,
    of_method: type[Section],
    more: Collection[str] = (),
    folder: str | os.PathLike[str] | None = None,
    source: str,
) -> type[AnyConfig]:
    """The config class that has sections for all methods that a file and a command line speak of.

    Args:
      base: has those of our own.
      values, words: what they say, before it is checked.
      of_method: the class that sections of methods come from.
      more: names of methods that are to be known, too.
      folder: of a run, if the file is its config.yaml: methods that have worked there are known.
      source: name of the file, for messages.

    Raises:
      T2GError: a method cannot be loaded or is none, or two have the same name.
    """
    said = overrides.said(words)
    chosen = _texts(said.get("methods", values.get("methods", _default(base, "methods"))))
    spoken_of = {section_of(name) for name in (*chosen, *more)}
    spoken_of |= {str(key) for key in values} | {key.partition(".")[0] for key in said}
    if folder is not None:
        spoken_of |= {entry.name for entry in os.scandir(folder) if entry.is_dir()}
    ours = tuple(known_methods(base, of_method))
    brought: dict[str, tuple[str, type]] = {}  # by whom, and the class
    for by, where, method, name in itertools.chain(
        _named_in_plugins(values, said, source), _of_packages(spoken_of, ours, source)
    ):
        checked = _checked(method, where, base, of_method, name)
        before, same = brought.setdefault(checked.name, (by, checked))
        if same is not checked:
            raise ConfigError(
                f"{where}: the method {checked.name!r} is brought by {before} and by {by}: "
                "leave one out, or give it another name"
            )
    _refuse_unknown(chosen, (*ours, *brought), "command line" if "methods" in said else source)
    kind: Any = base
    return typing.cast(
        type[AnyConfig], extended(kind, tuple(method for _, method in brought.values()))
    )


def _named_in_plugins(
    values: Mapping[str, Any], said: Mapping[str, Any], source: str
) -> Iterator[tuple[str, str, Any, str | None]]:
    """Methods under `plugins`: by whom each is brought, where that is said, and its class."""
    where = f"{'command line' if 'plugins' in said else source}: plugins"
    for value in _texts(said.get("plugins", values.get("plugins", ()))):
        if user_code.is_name(value):  # else it is refused with all that the file says
            yield value, f"{where}: {value}", user_code.load(value, key=where, takes=TAKES), None


def _of_packages(
    spoken_of: Collection[str], ours: Sequence[str], source: str
) -> Iterator[tuple[str, str, Any, str | None]]:
    """Likewise those of installed packages that are spoken of, and the names they must have."""
    key = f"{source}: methods"
    for name in plugins.names(plugins.METHODS):
        if section_of(name) in spoken_of:
            entry = plugins.find(plugins.METHODS, name, key=key, ours=ours)
            where = f"{source}: the method {name} of {plugins.package_of(entry)}"
            method = plugins.load(entry, key=key, takes=TAKES)
            yield plugins.described(entry), where, method, name


def _refuse_unknown(chosen: Iterable[str], known: Collection[str], at: str) -> None:
    for i, name in enumerate(chosen):
        if _NAME.fullmatch(name) and name not in known:
            raise ConfigError(
                f"{at}: `methods.{i}` is {json.dumps(one_line(name, 60), ensure_ascii=False)}; "
                f"{plugins.choice(plugins.METHODS, name, known)} (one of your own: name its class "
                "in `plugins`, or install the package that brings it)"
            )


@functools.cache
def extended(base: Any, methods: tuple[Any, ...]) -> Any:
    """A config class with the sections of more methods: the same for the same ones."""
    if not methods:
        return base
    fields = [
        (section_of(method.name), method.section, dataclasses.field(default=method.section()))
        for method in methods
    ]
    (literal, _) = typing.get_args(typing.get_type_hints(base)["methods"])
    names = (*typing.get_args(literal), *(method.name for method in methods))
    chosen = dataclasses.field(default=_default(base, "methods"))
    outside = {**base.outside, **{method.name: method for method in methods}}
    return dataclasses.make_dataclass(
        base.__name__,
        [("methods", tuple[typing.Literal[names], ...], chosen), *fields],  # type: ignore[valid-type]
        bases=(base,),
        frozen=True,
        namespace={
            "outside": types.MappingProxyType(outside),
            "__doc__": base.__doc__,
            "__module__": base.__module__,
        },
    )


def alike(a: AnyConfig, b: AnyConfig) -> tuple[AnyConfig, AnyConfig]:
    """Two configs, each with the sections of methods that only the other knows, as by default."""
    return _knowing(a, b.outside), _knowing(b, a.outside)


def known_methods(kind: type, of_method: type[Section]) -> Iterator[str]:
    """The methods that a config class has sections of, by name."""
    for field in dataclasses.fields(kind):
        if isinstance(field.type, type) and issubclass(field.type, of_method):
            yield field.name.replace("_", "-")


def installed(base: type[WithMethods], of_method: type[Section]) -> tuple[list[str], list[str]]:
    """The methods that installed packages bring: those that can be used, and what is wrong with
    the others, a line for each."""
    usable, problems = [], []
    for name in plugins.names(plugins.METHODS):
        try:
            class_of_run(base, {}, (), of_method=of_method, more=[name], source="--help")
        except T2GError as error:
            problems.append(str(error))
        else:
            usable.append(name)
    return usable, problems


def section_of(phase: str) -> str:
    """The section of the config that a phase or method reads, and its folder: "rltf_sd"."""
    return phase.replace("-", "_")


def _knowing(config: AnyConfig, methods: Mapping[str, type]) -> AnyConfig:
    more = tuple(method for name, method in methods.items() if name not in config.outside)
    if not more:
        return config
    values: Any = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
    kind: Any = type(config)
    return typing.cast(AnyConfig, extended(kind, more)(**values))


def _checked(
    method: Any, where: str, base: type, of_method: type[Section], name: str | None
) -> Any:
    """A method's class, if it is one.

    Raises:
      ConfigError: it is none; the message says what it lacks.
    """

    def require(condition: bool, problem: str) -> None:
        if not condition:
            raise ConfigError(f"{where} {problem}{user_code.defined(method)}")

    require(isinstance(method, type), "is no class; a method is one, see docs/plugins.md")
    its, section = getattr(method, "name", None), getattr(method, "section", None)
    require(
        isinstance(its, str) and _NAME.fullmatch(its) is not None,
        f"has the name {user_code.shown(its)}; say name = 'my-method': small letters, digits and "
        "hyphens",
    )
    require(name in (None, its), f"has the name {its!r}; the entry point must have it, too")
    taken = section_of(its)
    require(
        not hasattr(base, taken)
        and taken not in (*FOLDERS, *(field.name for field in dataclasses.fields(base))),
        f"has the name {its!r}, which is t2g_jax's own; give it another",
    )
    require(
        isinstance(section, type) and issubclass(section, of_method),
        f"has the section {user_code.shown(section)}; say section = …, a subclass of "
        f"t2g_jax.config.{of_method.__name__}",
    )
    require(
        "__dataclass_params__" in vars(section),
        f"has the section {section.__name__}, whose fields are not read: put "
        "@dataclasses.dataclass(frozen=True) above it",
    )
    require(callable(getattr(method, "collect", None)), "has no method collect(state, step)")
    what = f"{where}: its section {section.__name__} cannot be used"
    user_code.call(what, parse, section, {}, f"{where}: its section {section.__name__}")
    return method


def _default(kind: type, name: str) -> Any:
    (field,) = (field for field in dataclasses.fields(kind) if field.name == name)
    return field.default


def _texts(values: Any) -> Iterable[str]:
    """Those of a list of texts; what else it says is refused elsewhere."""
    return [v for v in values if isinstance(v, str)] if isinstance(values, list | tuple) else ()
