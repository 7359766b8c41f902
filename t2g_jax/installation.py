"""How this package is installed: what adds an extra to it, and which source it is."""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import pathlib
import subprocess
from types import ModuleType

from t2g_jax.errors import T2GError

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


def import_extra(package: str, *, extra: str, needed_by: str) -> ModuleType:
    """A package that only an extra installs.

    Raises:
      T2GError: it is missing; the extra is named, and what needs it.
    """
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name != package:
            raise
        raise T2GError(f"{needed_by} needs the package {package}: {pip_install(extra)}") from error


@functools.cache
def commit() -> str | None:
    """The commit of the package's source, "+ changes" if it was changed since; None if unknown."""

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", *words], cwd=_CHECKOUT, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        if pathlib.Path(git("rev-parse", "--show-toplevel")).resolve() != _CHECKOUT.resolve():
            return None  # installed into a folder of another repository
        found = git("rev-parse", "--short=12", "HEAD")
        # What is made from the source, pages and runs, may have been written since.
        changed = git("status", "--porcelain", "--untracked-files=no", "--", "t2g_jax")
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{found} + changes" if changed else found
