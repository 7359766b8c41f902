"""Critique spans: from quotes to tokens (host, `align`) and from tokens to arrays (`masks`)."""

from t2g_jax.spans.align import (
    Alignment,
    CharSpan,
    Quote,
    TokenSpan,
    Unaligned,
    align,
    to_token_spans,
)
from t2g_jax.spans.masks import span_mask, token_rewards

__all__ = [
    "Alignment",
    "CharSpan",
    "Quote",
    "TokenSpan",
    "Unaligned",
    "align",
    "span_mask",
    "to_token_spans",
    "token_rewards",
]
