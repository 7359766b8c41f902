"""Mistral 7B and its successors: Llama, in the first version with a window. arXiv 2310.06825."""

from t2g_jax.models.families.base import Family

FAMILY = Family(model_types=("mistral",), required={"hidden_act": "silu"})
