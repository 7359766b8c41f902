"""Shapes that vary from step to step, rounded up so that few of them are compiled."""

from __future__ import annotations

import math
from collections.abc import Sequence, Sized

LENGTH_BUCKET = 16
"""Rows and prompts are as long as a multiple of this, and as `round_up` makes it: few lengths are
compiled."""


def round_up(count: int, multiple: int = 1) -> int:
    """`count` rounded up to a multiple, and to two binary digits above that.

    Shapes that vary from step to step are rounded so: there are two for each doubling, each is
    compiled once, and at most a third is wasted.

    >>> [round_up(n) for n in (3, 5, 9, 33, 60)]
    [3, 6, 12, 48, 64]
    """
    parts = -(-max(count, 1) // multiple)
    quantum = max(1 << ((parts - 1).bit_length() - 2), 1) if parts > 2 else 1
    return -(-parts // quantum) * quantum * multiple


def bucket(rows: Sequence[Sized], stretches: int = 1, *, most: int | None = None) -> int:
    """The length of the longest row, rounded up, and to a multiple of `stretches`.

    Args:
      most: no row is ever longer; nor is the result, but for the multiple. None: it is not known.
    """
    multiple = math.lcm(LENGTH_BUCKET, stretches)
    length = round_up(max(map(len, rows)), multiple)
    return length if most is None else min(length, -(-most // multiple) * multiple)
