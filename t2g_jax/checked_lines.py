"""Lines of JSON that say whether they are as they were written.

    file.write(line({"id": "7", "reward": 0.5}))
    entry = read_line(line, where="journal.jsonl, line 3", mend="delete the line")

A line is a JSON object for any program; its last key, "checksum", is the CRC-32 of the others, as
eight hexadecimal digits.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from typing import Any

from t2g_jax import files

_KEY = "checksum"


def line(entry: Mapping[str, Any]) -> bytes:
    """An entry as ASCII, with its checksum and a newline.

    Raises:
      ValueError, TypeError: JSON has not what is in it.
    """
    return (_text({**entry, _KEY: _checksum(entry)}) + "\n").encode("ascii")


def read_line(line: bytes, *, where: str, mend: str = "") -> dict[str, Any]:
    """The entry that a line holds, without its checksum.

    Args:
      where: file and line, for the message.
      mend: what a user can do about a line that was changed.

    Raises:
      T2GError: it is no JSON object, or not as it was written.
    """
    entry = files.parse_json(line, dict, where=where, mend=mend)
    found = entry.pop(_KEY, None)
    if found != (expected := _checksum(entry)):
        said = "it has no checksum" if found is None else f"its checksum is not {expected}"
        raise files.damaged(where, said, mend)
    return entry


def _checksum(entry: Mapping[str, Any]) -> str:
    return f"{zlib.crc32(_text(entry).encode('ascii')):08x}"


def _text(entry: Mapping[str, Any]) -> str:
    return json.dumps(dict(entry), allow_nan=False)
