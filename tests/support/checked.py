"""Lines of a journal that are as they were written, whatever they say."""

import json
import zlib


def line(entry: str | dict) -> str:
    """A JSON object, as text or a dict without a "checksum", with the right one and a newline."""
    text = entry if isinstance(entry, str) else json.dumps(entry)
    comma = "" if text == "{}" else ", "
    return f'{text[:-1]}{comma}"checksum": "{zlib.crc32(text.encode()):08x}"}}\n'
