"""From texts and what a critique quotes of them to the token rewards of a batch."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from t2g_jax.numerics import check_count
from t2g_jax.spans.align import align, check_quotes, to_token_spans
from t2g_jax.spans.masks import Overlap, token_rewards
from t2g_jax.spans.quotes import Quote, Unaligned
from t2g_jax.spans.token_offsets import Offsets

Quotes = Sequence[Quote | str | tuple[str, float]]


def rewards(
    text: str | Sequence[str],
    quotes: Quotes | Sequence[Quotes],
    offsets: Offsets | Sequence[Offsets],
    length: int,
    *,
    start: int | Sequence[int] = 0,
    overlap: Overlap = "poor",
    fuzzy_threshold: float | None = 90.0,
    unaligned: list[Unaligned] | None = None,
) -> jax.Array:
    """Reward of each token of a completion from the phrases that a critique quotes of it.

    `align`, `to_token_spans` and `token_rewards` in a row, for one text or for a batch. Tokens that
    nothing is said of have reward 0, and so have quotes without a certain place.

    >>> from t2g_jax import spans
    >>> text, offsets = "The cat sat", [(0, 3), (3, 7), (7, 11)]
    >>> spans.rewards(text, [("cat sat", 1.0), ("The", -1.0)], offsets, length=4)
    Array([-1.,  1.,  1.,  0.], dtype=float32)
    >>> nowhere = []
    >>> quotes = [[("cat", 1.0)], [("dog", -1.0)]]
    >>> spans.rewards([text, text], quotes, [offsets, offsets], 4, start=1, unaligned=nowhere)
    Array([[0., 0., 1., 0.],
           [0., 0., 0., 0.]], dtype=float32)
    >>> print(f"{nowhere[0].quote.text}: {nowhere[0].reason}")
    dog: the phrase is not in the text, and is too short (< 8) to be matched fuzzily

    Args:
      text: the completion, or B of them.
      quotes: of each text, as `align` takes them: a list, or B lists.
      offsets: of each text's tokens, as from `spans.offsets`.
      length: T, tokens in a row of the result.
      start: where in its row a text's first token is, for instance after its prompt; one for all,
        or B of them.
      overlap: reward of a token in several spans, see `token_rewards`.
      fuzzy_threshold: see `align`.
      unaligned: a list that quotes without a certain place are added to, with the reasons.

    Returns:
      [T] float32, or [B, T]. Tokens beyond the end of a row are left out.

    Raises:
      ValueError: there are not as many quotes, offsets or starts as texts, or length is negative;
        or as `align` and `to_token_spans` raise.
      TypeError: text is neither a string nor a list of them, a text's quotes are no list, a quote
        is of none of the forms that `align` takes, or length or start is no integer.
    """
    check_count("length", length, least=0)
    check_quotes(quotes)
    if isinstance(text, str):
        alone: Any = ([text], [quotes], [offsets], length)
        options: Any = {"overlap": overlap, "fuzzy_threshold": fuzzy_threshold}
        return rewards(*alone, start=start, unaligned=unaligned, **options)[0]
    if not isinstance(text, Sequence):
        raise TypeError(f"text must be a string or a list of them, got {text!r}")
    begins: Any = start
    firsts = [begins] * len(text) if np.ndim(begins) == 0 else list(begins)
    for first in firsts:
        if not hasattr(first, "__index__"):
            raise TypeError(f"start must be an integer, or one for each text, got {start!r}")
    for name, given in (("quotes", quotes), ("offsets", offsets), ("start", firsts)):
        if len(given) != len(text):
            raise ValueError(
                f"text and {name} must be of as many rows, but text has {len(text)} and {name} has "
                f"{len(given)}"
            )
    rows = []
    said: str
    quoted: Any
    where: Any
    for said, quoted, where, first in zip(text, quotes, offsets, firsts, strict=True):
        alignment = align(said, quoted, fuzzy_threshold=fuzzy_threshold)
        found = to_token_spans(alignment.spans, where)
        rows.append([(first + s.start, first + s.end, s.reward) for s in found if s.start < s.end])
        if unaligned is not None:
            unaligned += alignment.unaligned
    # Powers of two, so that few shapes are compiled.
    most = 1 << max(0, max(map(len, rows), default=0) - 1).bit_length()
    table = np.zeros((3, len(rows), most), np.float32)
    for i, row in enumerate(rows):
        for j, span in enumerate(row):
            table[:, i, j] = span
    starts, ends = table[:2].astype(np.int32)
    return token_rewards(starts, ends, table[2], length, overlap=overlap)
