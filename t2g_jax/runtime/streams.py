"""Standard output and error that never end a run: what cannot be shown or read is let go."""

from __future__ import annotations

import errno
import io
import os
import sys
from typing import TextIO

_NOBODY_READS = (errno.EPIPE, errno.EIO)  # `| head` has seen enough; a terminal was closed


def prepare() -> None:
    """Makes the streams of this process patient.

    A character that the stream's encoding does not have is replaced (by `?`). Once nobody reads any
    more, what is written goes nowhere: a training does not end because `| head` did. A stream that
    the process was started without is made one that goes nowhere, before a file gets its number.
    Streams that somebody put in place of the process' own stay as they are.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
    sys.stdout = _patient(sys.stdout, sys.__stdout__, 1)
    sys.stderr = _patient(sys.stderr, sys.__stderr__, 2)


class _Patient(io.FileIO):
    """A file that takes what nobody reads."""

    def write(self, data) -> int:
        try:
            return super().write(data)
        except OSError as error:
            if error.errno not in _NOBODY_READS:
                raise
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)
            return len(memoryview(data).cast("B"))


def _patient(stream: TextIO | None, original: TextIO | None, number: int) -> TextIO:
    if stream is None:
        return open(os.devnull, "w", encoding="utf-8", errors="replace")
    if stream is not original or not isinstance(stream, io.TextIOWrapper):
        return stream
    if isinstance(getattr(stream.buffer, "raw", None), _Patient):
        return stream
    stream.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(_Patient(number, "w", closefd=False)),
        encoding=stream.encoding,
        errors="replace",
        line_buffering=stream.line_buffering or number == 2,
    )
