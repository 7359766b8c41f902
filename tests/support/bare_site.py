"""What `pip install t2g_jax` leaves, without an extra and without a network."""

import importlib.metadata
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterable
from pathlib import Path

from packaging.requirements import Requirement

SOURCE = ("pyproject.toml", "setup.py", "README.md", "LICENSE", "t2g_jax")


def make(root: Path, site: Path) -> Path:
    """Fills the folder `site` with this package, from a wheel of its sources, and links to the
    packages of this environment that the wheel requires.

    For `python -S`, which leaves the environment's own folder off the path.
    """
    wheel = _build(root, site.with_name(f"{site.name}-build"))
    zipfile.ZipFile(wheel).extractall(site)
    (package,) = importlib.metadata.distributions(path=[str(site)])
    for name in _closure(package.requires):
        for file in importlib.metadata.distribution(name).files:
            top = file.parts[0]
            link, place = site / top, Path(file.locate()).parents[len(file.parts) - 1] / top
            if top not in ("..", "__pycache__") and not link.exists():
                link.symlink_to(place)
    return site


def _build(root: Path, folder: Path) -> Path:
    """The wheel of a copy of the sources: building leaves files beside them."""
    for name in SOURCE:
        copy = shutil.copytree if (root / name).is_dir() else shutil.copy
        folder.mkdir(exist_ok=True)
        copy(root / name, folder / name)
    program = "from setuptools import build_meta; print(build_meta.build_wheel('.'))"
    subprocess.run([sys.executable, "-c", program], cwd=folder, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    return wheel


def _closure(requirements: Iterable[str]) -> set[str]:
    """The distributions that these need, and those that they need in turn, without extras."""
    names: set[str] = set()
    waiting = list(requirements)
    while waiting:
        requirement = Requirement(waiting.pop())
        wanted = not requirement.marker or requirement.marker.evaluate({"extra": ""})
        if wanted and requirement.name not in names:
            names.add(requirement.name)
            waiting += importlib.metadata.requires(requirement.name) or ()
    return names
