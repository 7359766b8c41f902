"""One set of weights for both sides: our parameters, and a `transformers` Llama with the same."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import torch
import transformers

from t2g_jax.models import heads
from t2g_jax.models.decoder import DecoderConfig

Llama = transformers.LlamaForCausalLM


def shape(*, small: bool, **changes: Any) -> DecoderConfig:
    """4 layers × 256, vocabulary 4,096; `small`: just enough to run."""
    heads, sizes = {"heads": 4, "kv_heads": 2, "head_width": 64}, {"width": 256, "mlp_width": 768}
    chosen: dict[str, Any] = {"vocab_size": 4096, "layers": 4, **heads, **sizes}
    if small:
        heads, sizes = {"heads": 2, "kv_heads": 1, "head_width": 8}, {"width": 16, "mlp_width": 24}
        chosen = {"vocab_size": 64, "layers": 1, **heads, **sizes}
    return DecoderConfig(**(chosen | changes))


def twins(config: DecoderConfig, *, seed: int = 0, with_heads: tuple[str, ...] = ()):
    """Parameters and the Llama, which computes what the decoder does."""
    params = heads.init_params(config, jax.random.key(seed), heads=with_heads)
    return params, llama(config, params)


def llama(config: DecoderConfig, params: heads.Params) -> Llama:
    """A Llama of torch with the weights of `params`, in its fastest attention on a CPU."""
    model = Llama(
        transformers.LlamaConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.width,
            intermediate_size=config.mlp_width,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            num_key_value_heads=config.kv_heads,
            head_dim=config.head_width,
            rms_norm_eps=config.norm_epsilon,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
            max_position_embeddings=4096,
            tie_word_embeddings=config.tie_embeddings,
            attn_implementation="sdpa",
            bos_token_id=None,
            eos_token_id=None,
            pad_token_id=0,
        )
    )
    with torch.no_grad():
        model.load_state_dict(_state(config, jax.device_get(params)), strict=False)
    return model


def _state(config: DecoderConfig, params: heads.Params) -> dict[str, torch.Tensor]:
    decoder, layers = params["decoder"], params["decoder"]["layers"]
    state = {
        "model.embed_tokens.weight": decoder["embed"]["embedding"],
        "model.norm.weight": decoder["final_norm"]["scale"],
        "lm_head.weight": np.asarray(heads.lm_kernel(params)).T,
    }
    for i in range(config.layers):
        attention, mlp = layers["attention"], layers["mlp"]
        for theirs, ours in (("q", "query"), ("k", "key"), ("v", "value")):
            kernel = attention[ours]["kernel"][i].reshape(config.width, -1)
            state[f"model.layers.{i}.self_attn.{theirs}_proj.weight"] = kernel.T
        out = attention["out"]["kernel"][i].reshape(-1, config.width)
        state[f"model.layers.{i}.self_attn.o_proj.weight"] = out.T
        for name in ("gate", "up", "down"):
            state[f"model.layers.{i}.mlp.{name}_proj.weight"] = mlp[name]["kernel"][i].T
        for theirs, ours in (("input", "attention"), ("post_attention", "mlp")):
            scale = layers[f"{ours}_norm"]["scale"][i]
            state[f"model.layers.{i}.{theirs}_layernorm.weight"] = scale
    return {name: torch.tensor(np.array(value)) for name, value in state.items()}


def generate(
    model: Llama,
    prompts: torch.Tensor,
    new: int,
    *,
    mask: torch.Tensor | None = None,
    stop_ids: Sequence[int] = (),
    greedy: bool = False,
) -> torch.Tensor:
    """Up to `new` tokens after each prompt [B, P] by `transformers`: [B, P + new]."""
    ends = {"eos_token_id": list(stop_ids)} if stop_ids else {"min_new_tokens": new}
    with torch.inference_mode():
        return model.generate(
            prompts,
            attention_mask=torch.ones_like(prompts) if mask is None else mask,
            do_sample=not greedy,
            top_k=None if greedy else 0,
            max_new_tokens=new,
            **ends,
        )
