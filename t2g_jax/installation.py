"""How this package is installed, for messages that ask for one of its extras."""

from __future__ import annotations

import importlib.metadata
import pathlib

_NAME = "t2g_jax"
_CHECKOUT = pathlib.Path(__file__).parents[1]


def pip_install(extra: str) -> str:
    """The command that adds an extra to the package that runs.

    pip only adds what is missing to a package that is installed, wherever it came from. A checkout
    that was put on the path is not; there the command names its folder.
    """
    try:
        importlib.metadata.distribution(_NAME)
    except importlib.metadata.PackageNotFoundError:
        if (_CHECKOUT / "pyproject.toml").is_file():
            return f"pip install -e '{_CHECKOUT}[{extra}]'"
    return f"pip install '{_NAME}[{extra}]'"
