"""Names that have changed: the old ones work for one release, and say what to write instead."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Mapping
from typing import Any

OLD_VALUES: Mapping[str, Mapping[str, str]] = {"advantage": {"centred": "centered"}}
"""Words of the config that have changed: the name of the option → old word → new word."""


def keep_old_names(module: str, names: Mapping[str, str]) -> None:
    """Lets a module answer to the old names of what it has, with a DeprecationWarning.

    Sets the module's `__getattr__`, rather than being assigned to it, so that type checkers go on
    finding misspelled names.

    >>> import sys, types
    >>> from t2g_jax.deprecation import keep_old_names
    >>> sys.modules["mine"] = mine = types.ModuleType("mine")
    >>> mine.new = 1
    >>> keep_old_names("mine", {"old": "new"})
    >>> import warnings
    >>> with warnings.catch_warnings(record=True) as said:
    ...     warnings.simplefilter("always")
    ...     mine.old
    1
    >>> print(said[0].message)
    mine.old is now called new; the old name goes with the next release

    Args:
      module: the `__name__` of the module that calls this.
      names: old name → new name.
    """

    def __getattr__(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        warnings.warn(
            f"{module}.{name} is now called {names[name]}; the old name goes with the next release",
            DeprecationWarning,
            stacklevel=2,
        )
        return getattr(sys.modules[module], names[name])

    vars(sys.modules[module]).update(__getattr__=__getattr__, _old_names=names)


def new_value(key: str, value: Any) -> Any:
    """What the value of an option is called now, as records of earlier runs are read.

    >>> from t2g_jax.deprecation import new_value
    >>> new_value("grpo.advantage", "centred")
    'centered'

    Args:
      key: the option, with or without the sections that it is in.
    """
    renamed = OLD_VALUES.get(key.rpartition(".")[2], {})
    return renamed.get(value, value) if isinstance(value, str) else value


def accept_old_value(key: str, value: Any) -> Any:
    """`new_value`, with a FutureWarning, which those see who write configs and no Python.

    >>> import warnings
    >>> from t2g_jax.deprecation import accept_old_value
    >>> with warnings.catch_warnings(record=True) as said:
    ...     warnings.simplefilter("always")
    ...     accept_old_value("advantage", "centred")
    'centered'
    >>> print(said[0].message)
    advantage: 'centred' is now called 'centered'; the old word goes with the next release
    """
    new = new_value(key, value)
    if new != value:
        warnings.warn(
            f"{key}: {value!r} is now called {new!r}; the old word goes with the next release",
            FutureWarning,
            stacklevel=2,
        )
    return new
