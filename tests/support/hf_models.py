"""Small random models of each family, made by `transformers` and saved as users have them."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import jax
import numpy as np

from t2g_jax.models import heads
from t2g_jax.models.decoder import Decoder

SMALL: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "initializer_range": 0.15,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 1000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 32,
}
MIXED = ["sliding_attention", "full_attention", "sliding_attention"]

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama2": ("Llama", {"num_key_value_heads": 4}),
    "llama3": ("Llama", {"rope_parameters": LLAMA3, "tie_word_embeddings": True}),
    "llama-biases": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "llama-linear": (
        "Llama",
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}},
    ),
    "mistral": ("Mistral", {"sliding_window": 6}),
    "mistral-new": ("Mistral", {"sliding_window": None}),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen2-window": (
        "Qwen2",
        {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1},
    ),
    "qwen3": ("Qwen3", {"rope_parameters": YARN}),
    "qwen3-moe": (
        "Qwen3Moe",
        {
            "num_experts": 6,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 24,
            "norm_topk_prob": True,
            "mlp_only_layers": [],
        },
    ),
    "gemma2": (
        "Gemma2",
        {
            "sliding_window": 6,
            "layer_types": MIXED,
            "query_pre_attn_scalar": 12,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 3.0,
        },
    ),
    "gemma3": (
        "Gemma3Text",
        {"sliding_window": 6, "layer_types": MIXED, "query_pre_attn_scalar": 12},
    ),
    "olmo2": ("Olmo2", {}),
    "olmo3": (
        "Olmo3",
        {
            "sliding_window": 6,
            "layer_types": MIXED,
            "rope_parameters": {
                "full_attention": YARN,
                "sliding_attention": {"rope_type": "default", "rope_theta": 1000.0},
            },
        },
    ),
}
"""Class of the configuration, and what differs from `SMALL`."""


def make(variant: str, folder: Path, *, dtype: str = "float32", **changes: Any):
    """Saves the model of a variant; returns it, for its logits.

    Biases and the scales of norms are random too, which `transformers` begins with 0 or 1.
    """
    import torch
    import transformers

    kind, particular = VARIANTS[variant]
    config = getattr(transformers, f"{kind}Config")(**SMALL | particular | changes)
    if kind == "Olmo2":
        config.head_dim = 8
    config._attn_implementation = "eager"
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
            elif "experts" in name or "mlp.gate.weight" in name:
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    model = model.to(getattr(torch, dtype))
    model.save_pretrained(folder)
    return model.float()


@functools.partial(jax.jit, static_argnames="config")
def our_logits(params, tokens, positions, segment_ids, *, config):
    hidden, _ = Decoder(config).apply({"params": params["decoder"]}, tokens, positions, segment_ids)
    return heads.capped(hidden @ heads.lm_kernel(params), config)


def their_logits(model, tokens):
    import torch

    with torch.no_grad():
        return model(torch.tensor(np.asarray(tokens)[None])).logits[0].numpy()
