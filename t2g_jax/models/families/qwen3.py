"""Qwen 3: Llama with normalised queries and keys. arXiv 2505.09388."""

from t2g_jax.models.families.base import LLAMA_NAMES, QUERY_KEY_NORM, Family

FAMILY = Family(
    model_types=("qwen3",),
    names=LLAMA_NAMES | QUERY_KEY_NORM,
    particular=lambda hf: {
        "query_key_norm": "head",
        "qkv_bias": hf.attention_bias,
        "out_bias": hf.attention_bias,
    },
    required={"hidden_act": "silu"},
)
