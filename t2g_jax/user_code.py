"""Code that a user names in a config, `"package.module:attribute"`: found, called, its errors told.

The module is installed, or lies beside the config or in the folder that the command is started in;
of a run that has begun, where it lay then (see `folders_note`).
What goes wrong in it is one line with the file and line of the user's own code, as a traceback of
ours would say less.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import json
import os
import re
import reprlib
import sys
import threading
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

from t2g_jax.errors import T2GError, nearest
from t2g_jax.printing import one_line
from t2g_jax.runtime import files

_NAME = re.compile(r"\w+(\.\w+)*:\w+(\.\w+)*")
ENDS = (Exception, SystemExit, asyncio.CancelledError)
"""How a user's code may end by itself; Ctrl-C and SIGTERM are not of its making."""
_MOST_SAID = 500
"""Characters of an error's own text that are shown."""


def is_name(text: object) -> bool:
    """Whether a text has the form `package.module:attribute`."""
    return isinstance(text, str) and _NAME.fullmatch(text) is not None


FOLDERS_NOTE = "folders.json"
_folders: list[str] = []


def look_in(folder: str | os.PathLike[str]) -> None:
    """Modules and files in this folder can be named from now on; what is installed comes first.

    If it is that of a run, so can those in the folders of its `folders_note`.

    Raises:
      T2GError: that is damaged.
    """
    path = os.path.abspath(folder)
    note = os.path.join(path, FOLDERS_NOTE)
    noted = files.read_json(note, list[str], mend="delete it") if os.path.exists(note) else []
    for place in (path, *noted):
        if place not in _folders:
            _folders.append(place)
        if place not in sys.path:
            sys.path.append(place)


def folders_note() -> str:
    """What a run keeps as `FOLDERS_NOTE` beside its config.yaml: where it looks for modules and
    files, so that it finds them from wherever it is opened on this machine."""
    return json.dumps(list(dict.fromkeys((*_folders, os.getcwd()))), indent=1) + "\n"


def folders() -> tuple[str, ...]:
    """Those of `look_in`."""
    return tuple(_folders)


def find_path(path: str | os.PathLike[str]) -> str:
    """A file or folder that a config names: as it is, else beside the config, if it is there."""
    path = os.fspath(path)
    beside = (os.path.join(folder, path) for folder in _folders)
    return next((place for place in (path, *beside) if os.path.exists(place)), path)


def load(name: str, *, key: str, takes: str, fix: str | None = None) -> Callable[..., Any]:
    """What `package.module:attribute` names.

    Args:
      name: the name, see `is_name`.
      key: of the config, for messages, such as "judge.name".
      takes: its arguments in words, for messages, such as "(task, level)".
      fix: what to do if there is no such module. None: what helps with a file of the user's.

    Raises:
      T2GError: there is no such module or attribute, importing it fails, or it cannot be called.
    """
    module_name, _, path = name.partition(":")
    if "" not in sys.path:  # `t2g` is started from a folder of its own
        look_in(os.getcwd())
    importlib.invalidate_caches()  # a file that was written just now
    try:
        module = found = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and (module_name == error.name or module_name.startswith(f"{error.name}.")):
            fix = fix or (
                "install it, or put it beside the config or in the folder that t2g is started in "
                f"(this is {os.getcwd()})"
            )
            raise T2GError(f"{key}: there is no module {error.name!r}: {fix}") from error
        fail(f"{key}: {module_name} cannot be imported", error)
    except ENDS as error:  # `sys.exit` at its top level, too
        fail(f"{key}: {module_name} cannot be imported", error)
    for part in path.split("."):
        if not hasattr(found, part):
            where = getattr(module, "__file__", None) or "built in"
            raise T2GError(
                f"{key}: {module_name} ({where}) has no {path!r}{nearest(part, dir(found))}"
            )
        found = getattr(found, part)
    if not callable(found):
        raise T2GError(f"{key}: {name} is {shown(found)}; name a function of {takes}")
    return found


def call(what: str, function: Callable[..., Any], /, *args: Any, **keywords: Any) -> Any:
    """What a user's function returns; an `async` one is awaited.

    Args:
      what: the call in words, the subject of the message.

    Raises:
      T2GError: it raised; the message says what, and where in the user's file.
    """
    try:
        result = function(*args, **keywords)
        return _awaited(result) if inspect.iscoroutine(result) else result
    except T2GError:
        raise
    except ENDS as error:  # `sys.exit`, too: a user's function does not end the run
        fail(what, error)


def fail(what: str, error: BaseException) -> NoReturn:
    """Raises the error about a user's own code, with where it is.

    Raises:
      T2GError: always.
    """
    said = f"{type(error).__name__}: {_text(error)}".removesuffix(": ")
    raise T2GError(
        f"{what}: {one_line(said, _MOST_SAID)} ({where(error)}); T2G_DEBUG=1 shows the traceback"
    ) from error


def where(error: BaseException) -> str:
    """The file and line that an error came from: the last that is not of an installed library."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}, line {error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    theirs = [f for f in frames if not f.filename.startswith("<") and not _is_library(f.filename)]
    frame = (theirs or list(frames))[-1]
    return f"{frame.filename}, line {frame.lineno}"


def defined(function: Any) -> str:
    """The file and line where a user's function stands, `" (file, line n)"`; empty if unknown."""
    function = inspect.unwrap(getattr(function, "__func__", function))
    code = getattr(function, "__code__", None)
    return "" if code is None else f" ({code.co_filename}, line {code.co_firstlineno})"


def shown(value: object) -> str:
    """A value in a message: its type, and the beginning of its repr."""
    return one_line(f"{type(value).__name__} {_repr(value)[:60]}".rstrip())


def _is_library(path: str) -> bool:
    ours = os.path.dirname(os.path.abspath(__file__)) + os.sep
    return path.startswith((ours, os.path.dirname(os.__file__) + os.sep)) or (
        f"{os.sep}site-packages{os.sep}" in path
    )


def _awaited(coroutine: Any) -> Any:
    """The result of a coroutine, in a thread of its own: this one may have a loop already."""
    outcome: list[Any] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            outcome.append(asyncio.run(coroutine))
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return outcome[0]


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # whose __str__ is broken
        return ""


def _repr(value: object) -> str:
    try:
        return reprlib.repr(value)
    except Exception:  # which is broken, too
        return ""
