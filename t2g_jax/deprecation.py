"""Names that have changed: the old ones work for one release, and say what to write instead."""

import sys
import warnings
from collections.abc import Mapping
from typing import Any


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
