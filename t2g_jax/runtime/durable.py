"""Files and folders that appear whole or not at all, and stay when the machine goes away."""

from __future__ import annotations

import os
from pathlib import Path


def write_text(path: Path, text: str) -> None:
    """Writes all of the file, on disk when this returns, or leaves it as it was.

    It is written beside itself first, as `<name>.incomplete`; a killed process leaves that behind
    and the next one replaces it. The folder is made if it is missing.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    building = path.with_name(path.name + ".incomplete")
    with open(building, "w", encoding="utf-8", newline="") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(building, path)
    sync(path.parent)


def appear(building: str | os.PathLike[str], path: str | os.PathLike[str]) -> None:
    """Renames a file or folder that is complete, once all that is in it is on disk.

    Raises:
      OSError: `path` is there and is not empty.
    """
    for folder, _, files in os.walk(building):
        for name in files:
            sync(os.path.join(folder, name))
        sync(folder)
    if os.path.isfile(building):
        sync(building)
    os.rename(building, path)
    sync(Path(path).parent)


def sync(path: str | os.PathLike[str]) -> None:
    """Forces a file, or the names in a folder, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
