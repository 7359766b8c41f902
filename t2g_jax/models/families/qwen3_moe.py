"""Qwen 3 with a mixture of experts in every layer, such as Qwen3-30B-A3B. arXiv 2505.09388."""

from typing import Any

from t2g_jax.models.families import qwen3
from t2g_jax.models.families.base import Family

_DENSE = {"mlp/gate", "mlp/up", "mlp/down"}


def particular(hf: Any) -> dict[str, Any]:
    if hf.num_experts < 1:
        raise ValueError(f"num_experts is {hf.num_experts}; must be a whole number above 0")
    return qwen3.particular(hf) | {
        "mlp_width": hf.moe_intermediate_size,
        "experts": hf.num_experts,
        "experts_per_token": hf.num_experts_per_tok,
        "normalize_experts": hf.norm_topk_prob,
        "window": hf.sliding_window,  # of every layer, if there is one
    }


FAMILY = Family(
    model_types=("qwen3_moe",),
    names={ours: theirs for ours, theirs in qwen3.FAMILY.names.items() if ours not in _DENSE}
    | {
        "mlp/router": "mlp.gate",
        "mlp/expert_gate": "mlp.experts.{expert}.gate_proj",
        "mlp/expert_up": "mlp.experts.{expert}.up_proj",
        "mlp/expert_down": "mlp.experts.{expert}.down_proj",
    },
    particular=particular,
    reads=(
        *("moe_intermediate_size", "norm_topk_prob"),
        *("num_experts", "num_local_experts", "num_experts_per_tok"),
    ),
    required={
        "hidden_act": "silu",
        "use_qk_norm": True,
        # A layer without experts would have other parameters than the rest.
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    },
)
