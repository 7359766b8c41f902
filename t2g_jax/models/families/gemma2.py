"""Gemma 2: norms on both sides, soft-capped scores and logits, every other layer with a window.

arXiv 2408.00118.
"""

from typing import Any

from t2g_jax.models.config_keys import positive
from t2g_jax.models.families.base import LLAMA_NAMES, Family, windows

NAMES = LLAMA_NAMES | {
    "attention_out_norm": "post_attention_layernorm",
    "mlp_norm": "pre_feedforward_layernorm",
    "mlp_out_norm": "post_feedforward_layernorm",
}

READS = (
    *("attn_logit_softcapping", "final_logit_softcapping", "query_pre_attn_scalar"),
    "hidden_act",  # not read: hidden_activation is what counts
)


def particular(hf: Any) -> dict[str, Any]:
    def soft_cap(key: str) -> float:
        cap = getattr(hf, key)
        return 0.0 if cap is None else positive(key, cap)

    return {
        "qkv_bias": hf.attention_bias,
        "out_bias": hf.attention_bias,
        "activation": "gelu_tanh",
        "embedding_scale": hf.hidden_size**0.5,
        "post_norm": True,
        "norm_offset": 1.0,
        "attention_scale": positive("query_pre_attn_scalar", hf.query_pre_attn_scalar) ** -0.5,
        "attention_softcap": soft_cap("attn_logit_softcapping"),
        "final_softcap": soft_cap("final_logit_softcapping"),
        **windows(hf),
    }


FAMILY = Family(
    model_types=("gemma2",),
    names=NAMES,
    particular=particular,
    reads=READS,
    required={
        "hidden_activation": "gelu_pytorch_tanh",
        "use_bidirectional_attention": None,
        "sliding_window_pattern": 2,
    },
)
