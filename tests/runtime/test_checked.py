"""Lines that say whether they are as they were written: what was put in comes out, or an error."""

import json
import zlib

import pytest

from t2g_jax.errors import T2GError
from t2g_jax.runtime.checked import line, read_line

ENTRIES = [
    {},
    {"id": "é\n", "value": 1 / 3, "none": None, "nested": {"a": [1, -0.0, True]}},
    {"half a pair": "\ud800", "large": 2.5e300},
]


@pytest.mark.parametrize("entry", ENTRIES)
def test_entries_come_back(entry):
    assert repr(read_line(line(entry), where="file, line 1")) == repr(entry)


def test_a_line_is_json_for_other_programs():
    written = line({"id": "é", "n": 1})
    checksum = f"{zlib.crc32(json.dumps({'id': 'é', 'n': 1}).encode()):08x}"
    assert json.loads(written) == {"id": "é", "n": 1, "checksum": checksum}
    assert written.isascii()
    assert written.count(b"\n") == 1


@pytest.mark.parametrize("entry", ENTRIES)
def test_a_byte_that_changed_is_noticed(entry):
    written = line(entry)
    for place in range(len(written) - 1):
        damaged = bytearray(written)
        damaged[place] ^= 1
        with pytest.raises(T2GError, match=r"^f, line 7 is damaged \(.*\); delete it$"):
            read_line(bytes(damaged), where="f, line 7", mend="delete it")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), object(), b"bytes"])
def test_what_json_has_not_is_not_written(value):
    with pytest.raises((ValueError, TypeError), match="JSON"):
        line({"value": value})
