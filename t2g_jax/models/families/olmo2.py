"""OLMo 2: norms on what attention and MLP write, and on all queries and keys. arXiv 2501.00656."""

from t2g_jax.models.families.base import LLAMA_NAMES, QUERY_KEY_NORM, Family

_READ = {"attention_norm", "mlp_norm"}

FAMILY = Family(
    model_types=("olmo2",),
    names={ours: theirs for ours, theirs in LLAMA_NAMES.items() if ours not in _READ}
    | {
        "attention_out_norm": "post_attention_layernorm",
        "mlp_out_norm": "post_feedforward_layernorm",
    }
    | QUERY_KEY_NORM,
    particular=lambda hf: {
        "pre_norm": False,
        "post_norm": True,
        "query_key_norm": "all",
        "qkv_bias": hf.attention_bias,
        "out_bias": hf.attention_bias,
    },
    required={"hidden_act": "silu"},
)
