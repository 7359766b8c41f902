"""Packages with entry points, as pip installs them: a module, and its metadata beside it."""

import contextlib
import importlib
import pathlib
import re
import sys
import textwrap

METHOD = '''
import dataclasses
from t2g_jax.config import RolloutConfig

@dataclasses.dataclass(frozen=True)
class Settings(RolloutConfig):
    """What {name} is told."""

    severity: float = 1.0
    """How severe it is."""

class Mine:
    name = "{name}"
    section = Settings

    def collect(self, state, step):
        raise RuntimeError("not today")
'''
"""A module with a method, as small as one can be that is never run."""


def install(
    site: pathlib.Path, package: str, code: str | None, version: str = "1.0", **entry_points: str
) -> None:
    """Makes a package in a folder that is, or will be, in `sys.path`.

    Args:
      code: of its one module, of the same name; None: it is missing.
      entry_points: "name = module:attribute" lines by group, tasks, judges or methods.
    """
    site.mkdir(exist_ok=True)
    if code is not None:
        (site / f"{package}.py").write_text(textwrap.dedent(code))
    about = site / f"{package}-{version}.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
    groups = (f"[t2g_jax.{group}]\n{lines}\n" for group, lines in entry_points.items())
    (about / "entry_points.txt").write_text("\n".join(groups))


@contextlib.contextmanager
def forgotten_afterwards():
    """What is imported within is not there after it."""
    before = set(sys.modules)
    try:
        yield
    finally:
        for name in set(sys.modules) - before:
            if not re.match(r"(t2g_jax|jax|flax|optax|numpy|orbax)\b", name):
                del sys.modules[name]
        importlib.invalidate_caches()
