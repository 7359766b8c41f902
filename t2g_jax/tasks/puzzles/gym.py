"""One puzzle of reasoning-gym without the others.

Its packages import a hundred puzzles as soon as one is named, and with them SymPy and Matplotlib,
which takes longer than all else that a command needs before it begins.
"""

from __future__ import annotations

import importlib
import importlib.util
import itertools
import sys
import types
from typing import Any

_PACKAGE = "reasoning_gym"


def gym_module(name: str) -> Any:
    """A module of reasoning-gym, such as "graphs.shortest_path", and what itself imports.

    It is left out of `sys.modules`, so that whoever imports the library gets all of it.

    Raises:
      ModuleNotFoundError: the library is not installed, or has no such module.
    """
    whole = f"{_PACKAGE}.{name}"
    if _PACKAGE in sys.modules:  # somebody waited for it
        return importlib.import_module(whole)
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"No module named {_PACKAGE!r}", name=_PACKAGE)
    before = set(sys.modules)
    try:
        # Its packages as folders, their own code not run.
        for package in itertools.accumulate(whole.split(".")[:-1], "{}.{}".format):
            bare = types.ModuleType(package)
            parts = package.split(".")[1:]
            bare.__path__ = ["/".join([at, *parts]) for at in spec.submodule_search_locations]
            sys.modules[package] = bare
        importlib.import_module(f"{_PACKAGE}.coaching")  # a circle, to be entered from here
        return importlib.import_module(whole)
    finally:
        for added in set(sys.modules) - before:
            if added.partition(".")[0] == _PACKAGE:
                del sys.modules[added]
