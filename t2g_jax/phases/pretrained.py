"""The model that a run begins with: one from Hugging Face, or a small one with random weights."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from t2g_jax.config import Config
from t2g_jax.data.tokenizer import ChatTokenizer
from t2g_jax.errors import T2GError, reason
from t2g_jax.files import expanded
from t2g_jax.models import families, heads, huggingface, peft
from t2g_jax.models.decoder import DecoderConfig
from t2g_jax.training.sharding import state_shardings


def decoder_config(config: Config, vocab_size: int) -> DecoderConfig:
    """The decoder of a run, for a tokenizer of `vocab_size` tokens.

    Raises:
      T2GError: the pretrained model cannot be used, or has fewer tokens than its tokenizer.
    """
    model = config.model
    if model.pretrained is None:
        shape = DecoderConfig(
            vocab_size=-(-vocab_size // 64) * 64,
            width=model.width,
            layers=model.layers,
            heads=model.heads,
            kv_heads=model.kv_heads,
            head_width=model.head_width or model.width // model.heads,
            mlp_width=model.mlp_width,
            rope_theta=model.rope_theta,
            tie_embeddings=model.tie_embeddings,
        )
    else:
        folder = huggingface.fetch(model.pretrained)
        shape = families.read_config(folder)
        if vocab_size > shape.vocab_size:
            raise T2GError(
                f"{folder}: its tokenizer has {vocab_size} tokens, its config.json a vocab_size of "
                f"{shape.vocab_size}; use the tokenizer that belongs to the model"
            )
    return dataclasses.replace(
        shape,
        dtype=jnp.dtype(model.compute_dtype),
        param_dtype=jnp.dtype(model.param_dtype),
        remat=model.remat,
        attention=model.attention,
        lora_alpha=config.lora.alpha,
    )


def tokenizer(source: str) -> ChatTokenizer:
    """The tokenizer of a Hugging Face model.

    Raises:
      T2GError: it has none that can be used.
    """
    folder = huggingface.fetch(source)
    try:
        return ChatTokenizer.load(folder)
    except Exception as error:  # of many kinds, from several libraries
        raise T2GError(
            f"the tokenizer in {folder} cannot be used: {reason(error)[:300]}"
        ) from error


def check_tokenizer(config: Config, folder: Path) -> None:
    """Checks that the tokenizer of a work folder, if it has one yet, is the pretrained model's.

    Raises:
      T2GError: it is another one, which the rows and policies there were made with.
    """
    source = config.model.pretrained
    if source is None or not folder.exists():
        return
    if not ChatTokenizer.load(folder).agrees_with(tokenizer(source)):
        raise T2GError(
            f"{folder} is not the tokenizer of model.pretrained: {source}, and what is there was "
            "made with it; take a model with the same tokenizer, or give this run a --workdir of "
            "its own"
        )


def params(config: Config, model: DecoderConfig, mesh: Mesh, key: jax.Array) -> heads.Params:
    """The parameters that a run begins with, on the mesh; no more than a tensor is on the host."""
    shapes = jax.eval_shape(lambda: heads.init_params(model, key))
    shardings = state_shardings(shapes, mesh)
    if config.model.pretrained is not None:
        folder: Path = huggingface.fetch(config.model.pretrained)
        return huggingface.load(folder, model, shardings)
    # Each device draws its own part.
    return jax.jit(lambda key: heads.init_params(model, key), out_shardings=shardings)(key)


def adapters(config: Config, model: DecoderConfig, params: heads.Params) -> heads.Params:
    """Parameters with `lora.pretrained` in place of their fresh adapters.

    Raises:
      T2GError: these are not adapters of this model.
    """
    family, _ = families.describe(huggingface.fetch(config.model.pretrained))
    return peft.load_adapters(expanded(config.lora.pretrained), params, model, family)
