"""Qwen 3: Llama with normalized queries and keys. arXiv 2505.09388."""

from typing import Any

from t2g_jax.models.families.base import LLAMA_NAMES, QUERY_KEY_NORM, Family, windows


def particular(hf: Any) -> dict[str, Any]:
    return {
        "query_key_norm": "head",
        "qkv_bias": hf.attention_bias,
        "out_bias": hf.attention_bias,
    }


FAMILY = Family(
    model_types=("qwen3",),
    names=LLAMA_NAMES | QUERY_KEY_NORM,
    particular=lambda hf: particular(hf) | windows(hf),
    required={"hidden_act": "silu", "use_qk_norm": True},
)
