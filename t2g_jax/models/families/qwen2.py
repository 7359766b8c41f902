"""Qwen 2 and 2.5: Llama with biases on queries, keys and values. arXiv 2412.15115."""

from t2g_jax.models.families.base import Family, windows

FAMILY = Family(
    model_types=("qwen2",),
    particular=lambda hf: {"qkv_bias": True, **windows(hf)},
    required={"hidden_act": "silu"},
)
