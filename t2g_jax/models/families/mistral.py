"""Mistral 7B and its successors: Llama, in the first version with a window. arXiv 2310.06825."""

from t2g_jax.models.families.base import Family

FAMILY = Family(
    model_types=("mistral",),
    particular=lambda hf: {"window": hf.sliding_window},  # of every layer, if there is one
    required={"hidden_act": "silu"},
)
