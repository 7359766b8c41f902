"""From one tokenization of a text to another, through the characters that they share.

Policy, reference, reward model and judge may have different tokenizers. What is said of the tokens
of one is transferred to those of another.
"""

from collections.abc import Sequence

import numpy as np

from t2g_jax.spans.align import to_token_spans
from t2g_jax.spans.quotes import CharSpan, TokenSpan
from t2g_jax.spans.token_offsets import Offsets


def transfer_values(
    values: np.ndarray, source: Offsets, target: Offsets, *, silent: float | np.ndarray = 0.0
) -> np.ndarray:
    """Values of tokens, such as span rewards, for the tokens of another tokenizer.

    v'ⱼ = mean of v(c) over the characters c of token j,  v(c) = mean of vᵢ over the tokens i of c

    So a constant stays that constant, the mean over characters stays, and what is transferred to
    smaller tokens and back is as it was. A token without text, such as an end token, gets the mean
    of the source's at its place. Where both tokenizations are the same, nothing changes.

    >>> from t2g_jax import spans
    >>> words, letters = [(0, 2), (2, 3)], [(0, 1), (1, 2), (2, 3)]
    >>> spans.transfer_values([1.0, -1.0], words, letters)
    array([ 1.,  1., -1.], dtype=float32)

    Args:
      values: [n] or [n, ...] of the source's tokens; probabilities [n, 3] stay probabilities.
      source, target: n and m offsets in the same text, as of `ChatTokenizer.offsets`.
      silent: value of a target token that has nothing in common with any of the source.

    Returns:
      [m] or [m, ...] float32.

    Raises:
      ValueError: there is not one value for each token of the source.
    """
    values = np.asarray(values, np.float64)
    source, target = [(a, b) for a, b in source], [(a, b) for a, b in target]
    if len(values) != len(source):
        raise ValueError(f"values has shape {values.shape}, but source has {len(source)} tokens")
    if source == target:
        return values.astype(np.float32)
    length = max((end for _, end in [*source, *target]), default=0)
    count = np.zeros(length)
    total = np.zeros((length, *values.shape[1:]))
    quiet: dict[int, list[np.ndarray]] = {}
    for value, (start, end) in zip(values, source, strict=True):
        count[start:end] += 1
        total[start:end] += value
        if start == end:
            quiet.setdefault(start, []).append(value)
    covered = count > 0
    total[covered] /= count[covered].reshape(-1, *[1] * (values.ndim - 1))

    transferred = np.empty((len(target), *values.shape[1:]), np.float32)
    for j, (start, end) in enumerate(target):
        found = quiet.get(start, []) if start == end else total[start:end][covered[start:end]]
        transferred[j] = np.mean(found, axis=0) if len(found) else silent
    return transferred


def transfer_spans(
    spans: Sequence[TokenSpan], text: str, source: Offsets, target: Offsets
) -> tuple[TokenSpan, ...]:
    """Spans of tokens for the tokens of another tokenizer.

    A token belongs to a span if they share a character that is no white space at the span's ends:
    as `to_token_spans` has it for quotes.

    >>> from t2g_jax import spans
    >>> words, letters = [(0, 2), (2, 3)], [(0, 1), (1, 2), (2, 3)]
    >>> spans.transfer_spans([spans.TokenSpan(0, 1, reward=-1.0)], "abc", words, letters)
    (TokenSpan(start=0, end=2, reward=-1.0),)

    Args:
      spans: S spans of the source's tokens.
      text: what the offsets refer to.
      source, target: offsets of the two tokenizations.

    Returns:
      S spans of the target's tokens, in order. One that covers no text is empty, start == end.

    Raises:
      ValueError: a span is not one of tokens of the source.
    """
    transferred = []
    for span in spans:
        if not 0 <= span.start <= span.end <= len(source):
            raise ValueError(f"{span} is no span of {len(source)} tokens")
        tokens = [(a, b) for a, b in source[span.start : span.end] if a < b]
        start, end = min((a for a, _ in tokens), default=0), max((b for _, b in tokens), default=0)
        phrase = text[start:end]
        if not phrase:
            transferred.append(TokenSpan(0, 0, span.reward))
            continue
        quoted = CharSpan(start, end, span.reward, phrase, "exact", 100.0)
        transferred += to_token_spans([quoted], target)
    return tuple(transferred)
