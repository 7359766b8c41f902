"""Folders as they are published: config.json with its keys of the time, tensors by their names.

What `transformers` makes and saves today (tests/support/hf_models.py) has every key and new
spellings. Only sizes are small here.
"""

import json
import pathlib
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hf_models import our_logits, their_logits
from safetensors.numpy import save_file

from t2g_jax.models import families, huggingface

torch = pytest.importorskip("torch", reason="pip install torch, to compare with `transformers`")
transformers = pytest.importorskip("transformers")

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 128,
}
QWEN: dict[str, Any] = SIZES | {
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "hidden_act": "silu",
    "max_window_layers": 28,
    "rms_norm_eps": 1e-06,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_sliding_window": False,
}
PUBLISHED: dict[str, dict[str, Any]] = {
    "Llama-3.2-1B": SIZES
    | {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "bos_token_id": 128000,
        "eos_token_id": [128001, 128008, 128009],
        "head_dim": 16,
        "hidden_act": "silu",
        "max_position_embeddings": 131072,
        "model_type": "llama",
        "pretraining_tp": 1,
        "rms_norm_eps": 1e-05,
        "rope_scaling": {
            "factor": 32.0,
            "high_freq_factor": 4.0,
            "low_freq_factor": 1.0,
            "original_max_position_embeddings": 32,  # 8192
            "rope_type": "llama3",
        },
        "rope_theta": 500.0,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.45.0.dev0",
    },
    "Qwen2.5-7B-Instruct": QWEN
    | {
        "architectures": ["Qwen2ForCausalLM"],
        "max_position_embeddings": 32768,
        "model_type": "qwen2",
        "rope_scaling": {"factor": 4.0, "original_max_position_embeddings": 16, "type": "yarn"},
        "rope_theta": 100.0,
        "sliding_window": 8,  # which is not used
        "transformers_version": "4.43.1",
    },
    "Qwen3-30B-A3B": QWEN
    | {
        "architectures": ["Qwen3MoeForCausalLM"],
        "attention_bias": False,
        "decoder_sparse_step": 1,
        "head_dim": 16,
        "max_position_embeddings": 40960,
        "mlp_only_layers": [],
        "model_type": "qwen3_moe",
        "moe_intermediate_size": 24,
        "norm_topk_prob": True,
        "num_experts": 6,
        "num_experts_per_tok": 2,
        "rope_scaling": None,
        "rope_theta": 1000000.0,
        "sliding_window": None,
        "transformers_version": "4.51.0",
    },
    "gemma-3-4b-it": {  # most keys have defaults
        "architectures": ["Gemma3ForConditionalGeneration"],
        "eos_token_id": [1, 106],
        "mm_tokens_per_image": 4,
        "model_type": "gemma3",
        "text_config": {
            "hidden_size": 16,
            "intermediate_size": 48,
            "model_type": "gemma3_text",
            "num_hidden_layers": 7,
            "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
            "sliding_window": 8,
        },
        "torch_dtype": "bfloat16",
        "transformers_version": "4.50.0.dev0",
        "vision_config": {
            "hidden_size": 16,
            "image_size": 28,
            "intermediate_size": 16,
            "model_type": "siglip_vision_model",
            "num_attention_heads": 2,
            "num_hidden_layers": 1,
            "patch_size": 14,
            "vision_use_head": False,
        },
    },
    "Olmo-3-7B": SIZES
    | {
        "architectures": ["Olmo3ForCausalLM"],
        "attention_bias": False,
        "eos_token_id": 100257,
        "hidden_act": "silu",
        "layer_types": ["sliding_attention"] * 3 + ["full_attention"],
        "max_position_embeddings": 65536,
        "model_type": "olmo3",
        "rms_norm_eps": 1e-06,
        "rope_scaling": {
            "attention_factor": 1.2079441541679836,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "factor": 8.0,
            "original_max_position_embeddings": 16,  # 8192
            "rope_type": "yarn",
        },
        "rope_theta": 100.0,
        "sliding_window": 8,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.57.0",
    },
}


def published(name: str, folder: pathlib.Path):
    """Writes a folder; returns its model of `transformers`."""
    (folder / "config.json").write_text(json.dumps(PUBLISHED[name], indent=2))
    config = transformers.AutoConfig.from_pretrained(folder, attn_implementation="eager")
    model = transformers.AutoModelForCausalLM.from_config(config).float().eval()
    generator = torch.Generator().manual_seed(1)
    tensors = {}
    with torch.no_grad():
        for full, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            noise = 0.2 * noise + parameter if parameter.ndim == 1 else 0.3 * noise
            parameter.copy_(noise.bfloat16())  # so that nothing is lost in the file
            tensors |= as_published(full, parameter.numpy().astype(ml_dtypes.bfloat16))
    model.tie_weights()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return model


def as_published(name: str, value: np.ndarray) -> dict[str, np.ndarray]:
    """A tensor of today's `transformers` as it is in the files."""
    if name.endswith(".experts.gate_up_proj"):
        gate, up = np.split(value, 2, axis=1)
        parts = {"gate_proj": gate, "up_proj": up}
    elif name.endswith(".experts.down_proj"):
        parts = {"down_proj": value}
    else:
        for new in ("vision_tower.", "multi_modal_projector."):
            name = name.replace(f"model.{new}", new)
        return {name.replace("model.language_model.", "language_model.model."): value}
    experts = name.rpartition(".")[0]
    return {
        f"{experts}.{i}.{part}.weight": np.ascontiguousarray(weight)
        for part, weights in parts.items()
        for i, weight in enumerate(weights)
    }


@pytest.mark.parametrize("name", PUBLISHED)
def test_what_is_published_gives_the_logits_of_transformers(name, tmp_path):
    theirs = published(name, tmp_path)
    _, config = families.describe(tmp_path)
    params = huggingface.load(tmp_path, config)
    text = np.random.default_rng(0).integers(3, 128, 40)
    rows = text[None], np.arange(40)[None], np.ones((1, 40), int)
    ours = np.asarray(our_logits(params, *rows, config=config))[0]
    expected = their_logits(theirs, text)
    assert expected.std() > 0.1  # something to compare
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-4)
