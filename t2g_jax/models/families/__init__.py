"""Published models that the decoder can be, one file each: what is particular, and tensors' names.

family, config = describe(folder)          # from its config.json
"""

from __future__ import annotations

import json
from pathlib import Path

from t2g_jax.errors import T2GError
from t2g_jax.models import formats
from t2g_jax.models.decoder import DecoderConfig
from t2g_jax.models.families import (
    gemma2,
    gemma3,
    llama,
    mistral,
    olmo2,
    olmo3,
    qwen2,
    qwen3,
    qwen3_moe,
)
from t2g_jax.models.families.base import Family

FAMILIES: tuple[Family, ...] = (
    llama.FAMILY,
    mistral.FAMILY,
    qwen2.FAMILY,
    qwen3.FAMILY,
    qwen3_moe.FAMILY,
    gemma2.FAMILY,
    gemma3.FAMILY,
    olmo2.FAMILY,
    olmo3.FAMILY,
)


def describe(folder: Path) -> tuple[Family, DecoderConfig]:
    """The family of a Hugging Face folder, and the decoder that its config.json describes.

    Raises:
      T2GError: there is no config.json, it is damaged, or it describes something that the decoder
        cannot be; the key is named.
    """
    if not (folder / "config.json").is_file():
        raise T2GError(
            f"{folder} has no config.json"
            + (
                formats.instead(folder)
                or "; name the folder of a Hugging Face model (config.json, *.safetensors and the "
                "tokenizer's files)"
            )
        )
    from transformers import AutoConfig  # imports PyTorch, if that is there: seconds

    try:
        hf = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # of many kinds: JSON, validation, unknown models
        said = " ".join(str(error).split())  # the first line alone may name no key
        raise T2GError(f"{folder / 'config.json'} cannot be used: {said[:300]}") from error
    for family in FAMILIES:
        if hf.model_type in family.model_types:
            family.check_keys(json.loads((folder / "config.json").read_text("utf-8")), hf, folder)
            text = getattr(hf, "text_config", hf)
            text.tie_word_embeddings = hf.tie_word_embeddings  # the LM head is the whole's
            return family, family.decoder_config(text, folder)
    known = ", ".join(sorted(name for family in FAMILIES for name in family.model_types))
    raise T2GError(
        f"{folder / 'config.json'}: model_type is {hf.model_type!r}; the decoder can be {known}. "
        "docs/adding_a_model.md says how to add one"
    )


def read_config(folder: Path) -> DecoderConfig:
    """The decoder of a Hugging Face folder, see `describe`."""
    return describe(Path(folder))[1]
