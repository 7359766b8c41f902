"""What installed packages bring by name: tasks, judges and methods, as entry points.

    [project.entry-points."t2g_jax.tasks"]
    word-sorting = "word_sorting.task:make_task"

Nothing of a package is imported before a run names what it brings: one that is broken is in
nobody's way, and an error for who names it. Two that bring the same name are never chosen from.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Collection, Iterator
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from t2g_jax import user_code
from t2g_jax.errors import T2GError, nearest
from t2g_jax.printing import one_line

TASKS, JUDGES, METHODS = "t2g_jax.tasks", "t2g_jax.judges", "t2g_jax.methods"
"""Groups of entry points."""
_KIND = {TASKS: "task", JUDGES: "judge", METHODS: "method"}


def names(group: str) -> tuple[str, ...]:
    """What installed packages bring of a group, by name; whether it can be loaded nobody knows."""
    return tuple(sorted({entry.name for entry in _installed(group)}))


def find(group: str, name: str, *, key: str, ours: Collection[str] = ()) -> EntryPoint | None:
    """The entry point of a name; None if no package brings one.

    Args:
      key: of the config, for messages, such as "task.name".
      ours: names that are taken.

    Raises:
      T2GError: two packages bring the name, or one brings a name of ours.
    """
    found = sorted((e for e in _installed(group) if e.name == name), key=package_of)
    if found and name in ours:
        raise T2GError(
            f"{key}: {name!r} is t2g_jax's own, but a {_KIND[group]} of that name is brought by "
            f"{described(found[0])}, too: uninstall that, or have it renamed"
        )
    if found[1:]:
        raise T2GError(
            f"{key}: {name!r} is brought by {' and by '.join(map(described, found))}: uninstall "
            "one of them"
        )
    return found[0] if found else None


def load(entry: EntryPoint, *, key: str, takes: str) -> Callable[..., Any]:
    """What an entry point names; arguments as of `user_code.load`.

    Raises:
      T2GError: it cannot be loaded; the message says of which package it is.
    """
    where = f"{key}: {entry.name!r} is brought by {described(entry)}, which is broken"
    value = "".join(entry.value.partition("[")[0].split())  # without extras
    fix = f"update {package_of(entry)}, or uninstall it"
    if not user_code.is_name(value):
        raise T2GError(f"{where}: it must name 'package.module:function'; {fix}")
    try:
        return user_code.load(value, key=where, takes=takes, fix=fix)
    except T2GError as error:
        raise T2GError(str(error) if fix in str(error) else f"{error}; {fix}") from error


def factory(
    group: str, name: str, *, key: str, takes: str, ours: Collection[str]
) -> Callable[..., Any] | None:
    """What makes the task or judge of a name: a function of the user's, or what a package brings.

    Args:
      name: "package.module:function", or that of an entry point; or one of `ours`: None.

    Raises:
      T2GError: it is none of them, or cannot be loaded.
    """
    if user_code.is_name(name):
        return user_code.load(name, key=key, takes=takes)
    entry = find(group, name, key=key, ours=ours)
    if entry is None and name not in ours:
        raise T2GError(f"{key} is {name!r}; {choice(group, name, ours)}")
    return None if entry is None else load(entry, key=key, takes=takes)


def choice(group: str, name: object, ours: Collection[str]) -> str:
    """What can be named in place of a name that is not known: a part of a message."""
    brought = [n for n in names(group) if n not in ours]
    packages = f", those of installed packages ({', '.join(brought)})" if brought else ""
    listed = ", ".join(repr(n) for n in ours)
    return f"must be {listed}{packages}{nearest(name, (*ours, *brought))}"


def described(entry: EntryPoint) -> str:
    """An entry point and its package in words."""
    return one_line(f"the package {package_of(entry)} ({entry.name} = {entry.value})")


def package_of(entry: EntryPoint) -> str:
    """The name and version of the package that brings an entry point."""
    dist = getattr(entry, "dist", None)
    return "of unknown name" if dist is None else f"{dist.name} {dist.version}"


def _installed(group: str) -> Iterator[EntryPoint]:
    yield from _entry_points(group, tuple(_stamps()))


@functools.lru_cache(maxsize=16)
def _entry_points(group: str, stamps: tuple[tuple[str, int], ...]) -> tuple[EntryPoint, ...]:
    """To read what all packages say takes 20 ms, and configs are loaded often."""
    del stamps
    return tuple(entry_points(group=group))


def _stamps() -> Iterator[tuple[str, int]]:
    """The folders that packages are in, and when one was last added or removed."""
    for folder in sys.path:
        try:
            yield folder, os.stat(folder or os.curdir).st_mtime_ns
        except OSError:  # there is none, and may be one later
            yield folder, 0
