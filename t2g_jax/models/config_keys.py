"""What a key of config.json is for: it is read, it is of no consequence, or it is refused by name.

The list is of what is allowed: a key that is nowhere on it may be what the computation of a model
depends on, as multipliers of other architectures are, and would be dropped in silence.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from transformers import GenerationConfig

_READ = frozenset(
    """
    vocab_size hidden_size num_hidden_layers num_attention_heads num_key_value_heads head_dim
    intermediate_size rms_norm_eps tie_word_embeddings max_position_embeddings
    rope_parameters rope_scaling rope_theta partial_rotary_factor original_max_position_embeddings
    """.split()
)
"""By all families; some read more."""
_NOT_EVERYWHERE = frozenset(
    """
    sliding_window use_sliding_window max_window_layers layer_types
    attention_bias qkv_bias mlp_bias
    """.split()
)
"""Families without windows or biases do not read these, nor do their models in `transformers`."""
_ABOUT = frozenset(
    """
    _attn_implementation _attn_implementation_autoset _attn_implementation_internal _commit_hash
    _experts_implementation _experts_implementation_internal _name_or_path architectures
    attn_implementation auto_map bf16 cache_implementation chunk_size_feed_forward dtype
    dual_chunk_attention_config finetuning_task fp16 fp32 gradient_checkpointing id2label
    is_llama_config keys_to_ignore_at_inference label2id max_sequence_length model_max_length
    model_type name_or_path num_labels output_attentions output_hidden_states prefix
    pretraining_tp problem_type return_dict seq_length sliding_window_size
    task_specific_params tokenizer_class tokenizer_model_max_length torch_dtype torchscript
    transformers.js_config transformers_version unsloth_fixed unsloth_version use_bfloat16
    use_cache use_flash_attention use_flash_attn use_return_dict
    """.split()
)
"""Names, versions, and how an engine goes about it: the logits are the same.

dual_chunk_attention_config: of Qwen 2.5 1M, whose attention `transformers` never splits in chunks.
"""
_OF_TRAINING = frozenset(
    """
    attention_dropout attention_probs_dropout_prob attn_pdrop embd_pdrop hidden_dropout
    hidden_dropout_prob initializer_factor initializer_range loss_type output_router_logits
    resid_pdrop router_aux_loss_coef router_jitter_noise
    """.split()
)
"""Settings of the training that made the model; training here has its own."""
_OF_ONE_THAT_SEES = frozenset(
    """
    boi_token_index eoi_token_index image_token_index mm_tokens_per_image processor_class
    text_config vision_config
    """.split()
)
_NEUTRAL: dict[str, Any] = {
    "embedding_multiplier": 1,
    "is_causal": True,
    "logit_scale": 1,
    "logits_scaling": 1,
    "n_group": 1,
    "residual_multiplier": 1,
    "rotary_pct": 1,
    "routed_scaling_factor": 1,
    "scoring_func": "softmax",
    "topk_group": 1,
}
"""Keys of other architectures, with the value that changes nothing."""
SMALLEST, LARGEST = 1e-18, 1e18


def unknown(
    found: Mapping[str, Any],
    defaults: Mapping[str, Any],
    *,
    known: Collection[str],
    sees: bool = False,
) -> Iterator[str]:
    """Keys of a config.json that may change what is computed, and that nothing here reads.

    What is null, false, 0 or empty is off, and what its class in `transformers` has by default is
    what it computes anyway.

    Args:
      found: the file, or its "text_config".
      defaults: of the configuration's class in `transformers`.
      known: what the family reads beside what all do.
      sees: whether it is all of the configuration of a model that sees.
    """
    allowed = _READ | _NOT_EVERYWHERE | _ABOUT | _OF_TRAINING | GenerationConfig().to_dict().keys()
    allowed |= _OF_ONE_THAT_SEES if sees else frozenset()
    for key, value in found.items():
        if key in allowed or key in known or key.endswith("_token_id"):
            continue
        off = value == _NEUTRAL[key] if key in _NEUTRAL else not value
        if not off and not (key in defaults and defaults[key] == value):
            yield key


def positive(key: str, value: Any) -> float:
    """A number above 0 that a model computes with, of a size whose square float32 has, too.

    Raises:
      ValueError: it is none.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise ValueError(f"{key} is {value!r}; must be a number above 0")
    if not SMALLEST <= value <= LARGEST:
        size = "small" if value < SMALLEST else "large"
        raise ValueError(
            f"{key} is {shown(value)}, too {size} for float32; must be from {SMALLEST:g} to "
            f"{LARGEST:g}"
        )
    return float(value)


def compression(found: Mapping[str, Any]) -> str | None:
    """How a config.json says that weights are compressed, if it does."""
    for key in ("quantization_config", "compression_config", "quantization"):
        about = found.get(key)
        if not about:
            continue
        about = about if isinstance(about, Mapping) else {}
        loaded = [
            n for n in (4, 8) if about.get(f"load_in_{n}bit") or about.get(f"_load_in_{n}bit")
        ]
        bits = about.get("bits") or (loaded[0] if loaded else None)
        method = about.get("quant_method") or (key == "quantization" and "MLX")
        how = [str(method)] * bool(method) + [f"{bits} bits"] * bool(bits)
        return f"{key} ({', '.join(how)})" if how else key
    return None


def shown(value: Any) -> str:
    """A value as it is in the file, if it is not too long."""
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."
