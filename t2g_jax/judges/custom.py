"""The judge that a config names: the task's own program, or a user's, found by its import path."""

from __future__ import annotations

import difflib
import importlib
import os
import sys
import traceback
from typing import Any

from t2g_jax.errors import T2GError
from t2g_jax.printing import one_line
from t2g_jax.tasks.base import MAX_DETAILS, CritiqueLevel, Judge, Task, plain_text, shown

OWN_JUDGE = "task"
"""Name of the task's own program: it costs nothing."""


def make_judge(name: str, task: Task, level: CritiqueLevel) -> Judge:
    """The judge of a name.

    Args:
      name: "task", the task's own program; or "package.module:factory", where `factory(task,
        level)` returns a judge. The module is installed, or lies in the folder that the command is
        started in.
      task, level: what it judges, and how much it is to say.

    Raises:
      T2GError: there is no such module or factory, it raises, or what it returns cannot judge.
    """
    if name == OWN_JUDGE:
        return task.judge(level)
    judge, critique = _call(name, _find(name), task, level)
    if not callable(critique):
        raise T2GError(
            f"judge.name: {name} returned {shown(judge)}; return an object with "
            "critique(example, completion)"
        )
    return judge


def _find(name: str) -> Any:
    module_name, _, path = name.partition(":")
    here = os.getcwd()
    if here not in sys.path and "" not in sys.path:  # `t2g` is started from a folder of its own
        sys.path.append(here)
    try:
        found = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and (module_name == error.name or module_name.startswith(f"{error.name}.")):
            raise T2GError(
                f"judge.name: there is no module {error.name!r}: install it, or start t2g in the "
                f"folder that holds it (this is {here})"
            ) from error
        raise _broken(f"judge.name: {module_name} cannot be imported", error) from error
    except Exception as error:
        raise _broken(f"judge.name: {module_name} cannot be imported", error) from error
    for part in path.split("."):
        if not hasattr(found, part):
            near = difflib.get_close_matches(part, dir(found), n=1)
            guess = f"; did you mean {near[0]!r}?" if near else ""
            raise T2GError(f"judge.name: {module_name} has no {path!r}{guess}")
        found = getattr(found, part)
    if not callable(found):
        raise T2GError(f"judge.name: {name} is {shown(found)}; name a function of (task, level)")
    return found


def _call(name: str, factory: Any, task: Task, level: CritiqueLevel) -> tuple[Any, Any]:
    """What the factory makes, and how it is asked for critiques."""
    try:
        judge = factory(task, level)
        return judge, getattr(judge, "critique", None)
    except T2GError:
        raise
    except Exception as error:
        raise _broken(f"judge.name: {name}(task, level) failed", error) from error


def _broken(what: str, error: Exception) -> T2GError:
    """An error in the user's own code: where it is, as his traceback is shown only on demand."""
    if isinstance(error, SyntaxError):
        where = f"{error.filename}, line {error.lineno}"
    else:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{frame.filename}, line {frame.lineno}"
    said = one_line(plain_text(error, MAX_DETAILS))
    return T2GError(
        f"{what}: {type(error).__name__}: {said} ({where}); T2G_DEBUG=1 shows the traceback"
    )
