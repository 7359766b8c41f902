"""Critique spans: from quotes to tokens (host, `align`), from tokens to arrays (`masks`), and from
the tokens of one tokenizer to those of another (host, `carry`)."""

from t2g_jax.spans.align import (
    Alignment,
    CharSpan,
    Quote,
    TokenSpan,
    Unaligned,
    align,
    to_token_spans,
)
from t2g_jax.spans.carry import carry_spans, carry_values
from t2g_jax.spans.masks import span_mask, token_rewards

__all__ = [
    "Alignment",
    "CharSpan",
    "Quote",
    "TokenSpan",
    "Unaligned",
    "align",
    "carry_spans",
    "carry_values",
    "span_mask",
    "to_token_spans",
    "token_rewards",
]
