"""Llama 2, 3, 3.1, 3.2 (text), 3.3, and the many models of their shape. arXiv 2407.21783."""

from t2g_jax.models.families.base import Family

FAMILY = Family(
    model_types=("llama",),
    particular=lambda hf: {
        "qkv_bias": hf.attention_bias,
        "out_bias": hf.attention_bias,
        "mlp_bias": hf.mlp_bias,
    },
    required={"hidden_act": "silu"},
)
