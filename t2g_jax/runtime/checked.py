"""Objects in JSON that say whether they are as they were written, in lines and in files.

    file.write(line({"id": "7", "reward": 0.5}))
    entry = read_line(line, where="journal.jsonl, line 3", mend="delete the line")

They are objects for any program; their last key, "checksum", is the CRC-32 of the others, as eight
hexadecimal digits. What tells of time and place is not in it: two runs that do the same write the
same.
"""

from __future__ import annotations

import json
import os
import re
import zlib
from collections.abc import Mapping
from typing import Any

from t2g_jax.runtime import files

KEY = "checksum"
_VARYING = re.compile(r"seconds(_\w+)?|\w+_per_second(_\w+)?|environment")
"""Keys of what differs from run to run: how long it took, and where it was made."""


def sealed(entry: Mapping[str, Any]) -> dict[str, Any]:
    """The object with its checksum. Raises as `line`."""
    return {**entry, KEY: checksum(entry)}


def line(entry: Mapping[str, Any]) -> bytes:
    """An entry as ASCII, with its checksum and a newline.

    Raises:
      ValueError, TypeError: JSON has not what is in it.
    """
    return (_text(sealed(entry)) + "\n").encode("ascii")


def read_line(line: bytes, *, where: str, mend: str = "") -> dict[str, Any]:
    """The entry that a line holds, without its checksum.

    Args:
      where: file and line, for the message.
      mend: what a user can do about a line that was changed.

    Raises:
      T2GError: it is no JSON object, or not as it was written.
    """
    return _opened(files.parse_json(line, dict, where=where, mend=mend), where, mend)


def read(path: str | os.PathLike[str], shape: Any = dict, *, mend: str = "") -> dict[str, Any]:
    """The object of a file, without its checksum; one that has none is somebody's own.

    Args:
      shape, mend: as of `files.read_json`.

    Raises:
      T2GError: it cannot be read, is something else, or is not as it was written.
    """
    found = files.read_json(path, shape, mend=mend)
    return _opened(found, path, mend) if KEY in found else found


def checksum(value: Any) -> str:
    """Checksum of something JSON-able, times aside."""
    return f"{zlib.crc32(_text(_timeless(value)).encode('ascii')):08x}"


def _opened(entry: dict[str, Any], where: str | os.PathLike[str], mend: str) -> dict[str, Any]:
    found = entry.pop(KEY, None)
    if found != (expected := checksum(entry)):
        said = "it has no checksum" if found is None else f"its checksum is not {expected}"
        raise files.damaged(where, said, mend)
    return entry


def _text(value: Any) -> str:
    return json.dumps(value, allow_nan=False)


def _timeless(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _timeless(v) for k, v in value.items() if not _VARYING.fullmatch(k)}
    return [_timeless(item) for item in value] if isinstance(value, list | tuple) else value
