"""Critique spans: from quotes to tokens, from tokens to arrays, and between tokenizers.

On the host `align` finds what a critique quotes, `offsets` where tokens are, `to_token_spans` the
tokens of a quote, and `transfer_spans` and `transfer_values` what is said of the tokens of one
tokenizer for those of another. On the device `span_mask` and `token_rewards` make arrays of spans.
`rewards` does all of it for a batch.
"""

from t2g_jax.deprecation import keep_old_names
from t2g_jax.spans.align import align, to_token_spans
from t2g_jax.spans.batch import rewards
from t2g_jax.spans.masks import span_mask, token_rewards
from t2g_jax.spans.quotes import Alignment, CharSpan, Quote, TokenSpan, Unaligned
from t2g_jax.spans.token_offsets import offsets
from t2g_jax.spans.transfer import transfer_spans, transfer_values

__all__ = [
    "Alignment",
    "CharSpan",
    "Quote",
    "TokenSpan",
    "Unaligned",
    "align",
    "offsets",
    "rewards",
    "span_mask",
    "to_token_spans",
    "token_rewards",
    "transfer_spans",
    "transfer_values",
]

keep_old_names(__name__, {"carry_spans": "transfer_spans", "carry_values": "transfer_values"})
