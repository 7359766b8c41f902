"""Critique spans: from quotes to tokens (host, `align`), from tokens to arrays (`masks`), and from
the tokens of one tokenizer to those of another (host, `transfer`)."""

from t2g_jax.deprecation import keep_old_names
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
from t2g_jax.spans.transfer import transfer_spans, transfer_values

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
    "transfer_spans",
    "transfer_values",
]

keep_old_names(__name__, {"carry_spans": "transfer_spans", "carry_values": "transfer_values"})
