"""Gemma 2: norms on both sides, soft-capped scores and logits, every other layer with a window.

arXiv 2408.00118.
"""

from typing import Any

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
    if not hf.query_pre_attn_scalar > 0:
        raise ValueError(f"query_pre_attn_scalar is {hf.query_pre_attn_scalar}; must be above 0")
    for key in ("attn_logit_softcapping", "final_logit_softcapping"):
        if (cap := getattr(hf, key)) is not None and not cap > 0:
            raise ValueError(f"{key} is {cap}; must be above 0, or null")
    return {
        "qkv_bias": hf.attention_bias,
        "out_bias": hf.attention_bias,
        "activation": "gelu_tanh",
        "embedding_scale": hf.hidden_size**0.5,
        "post_norm": True,
        "norm_offset": 1.0,
        "attention_scale": hf.query_pre_attn_scalar**-0.5,
        "attention_softcap": hf.attn_logit_softcapping or 0.0,
        "final_softcap": hf.final_logit_softcapping or 0.0,
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
