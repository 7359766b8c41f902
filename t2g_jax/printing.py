"""What may be shown on a terminal: text of models, judges, data and files can neither steer nor
style it, nor pass for a line of ours.

Everything that is printed and was not written by this package goes through `visible` or `one_line`;
what is printed with rich also through `rich.text.Text`, which reads no markup.
"""

from __future__ import annotations

import re
import sys
import traceback
from types import TracebackType

_UNSAFE = re.compile(
    "["
    "\x00-\x08\x0b-\x1f\x7f-\x9f"  # C0 and C1 controls: escape sequences start with one
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # what reorders its surroundings
    "\u2028\u2029"  # line ends that do not look like one
    "\u00ad\u180e\u200b\u2060-\u2064\u206a-\u206f\ufeff\ufff9-\ufffb"  # what shows nothing at all
    "\U000e0000-\U000e007f"  # tags: invisible letters
    "\ud800-\udfff"  # halves of characters: no stream can encode them
    "]"
)


def visible(text: object) -> str:
    """Text as it can be printed: controls are shown, not obeyed; \\n and \\t stay.

    A C0 control becomes its picture (ESC: ␛), anything else its number (<U+202E>). Joiners within
    emoji and letters are left alone.
    """
    return _UNSAFE.sub(_shown, str(text))


def one_line(text: object, limit: int | None = None) -> str:
    """`visible` text on one line, of at most `limit` characters: ends of lines are shown, too."""
    line = visible(text).replace("\n", "␊").replace("\t", " ")
    return line if limit is None or len(line) <= limit else f"{line[: max(limit - 1, 0)]}…"


def tell(text: object, end: str = "\n") -> None:
    """Prints text of any origin to stderr, at once."""
    print(visible(text), end=end, file=sys.stderr, flush=True)


def show_error(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """A traceback, for `sys.excepthook`: what an error says may come from anywhere."""
    tell("".join(traceback.format_exception(kind, error, trace)), end="")


def _shown(found: re.Match[str]) -> str:
    code = ord(found[0])
    return chr(0x2400 + code) if code < 0x20 else f"<U+{code:04X}>"
