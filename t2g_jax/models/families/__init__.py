"""Published models that the decoder can be, one file each: what is particular, and tensors' names.

family, config = describe(folder)          # from its config.json
"""

from __future__ import annotations

from pathlib import Path

from t2g_jax.errors import T2GError
from t2g_jax.models import formats, tensor_files
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
from t2g_jax.runtime import files

MOST_LAYERS = 10_000
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
    file = folder / "config.json"
    if not file.exists():
        if any((folder / name).is_file() for name in (tensor_files.WHOLE, tensor_files.INDEX)):
            raise T2GError(f"{folder} has weights, but no config.json; fetch it from the model")
        raise T2GError(
            f"{folder} has no config.json"
            + (
                formats.instead(folder)
                or "; name the folder of a Hugging Face model (config.json, *.safetensors and the "
                "tokenizer's files)"
            )
        )
    found = files.read_json(file, dict, mend="fetch the model again")
    _family(found.get("model_type"), file)
    for part in (found, found.get("text_config")):
        layers = part.get("num_hidden_layers") if isinstance(part, dict) else None
        if isinstance(layers, int) and layers > MOST_LAYERS:  # lists of them would be made
            raise T2GError(f"{file}: num_hidden_layers is {layers}; at most {MOST_LAYERS}")
    from transformers import AutoConfig  # imports PyTorch, if that is there: seconds

    try:
        hf = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # of many kinds: JSON, validation, unknown models
        said = " ".join(str(error).split())  # the first line alone may name no key
        raise T2GError(f"{file} cannot be used: {said[:300]}") from error
    family = _family(hf.model_type, file)  # a mistral with layer_types is a ministral to it
    family.check_keys(found, hf, folder)
    text = getattr(hf, "text_config", hf)
    text.tie_word_embeddings = hf.tie_word_embeddings  # the LM head is the whole's
    return family, family.decoder_config(text, folder)


def _family(model_type: object, file: Path) -> Family:
    for family in FAMILIES:
        if model_type in family.model_types:
            return family
    known = ", ".join(sorted(name for family in FAMILIES for name in family.model_types))
    raise T2GError(
        f"{file}: model_type is {model_type!r}; the decoder can be {known}. "
        "docs/adding_a_model.md says how to add one"
    )


def read_config(folder: Path, *, tokens: int = 0) -> DecoderConfig:
    """The decoder of a Hugging Face folder, for a tokenizer of so many tokens.

    Raises:
      T2GError: as `describe`; or the model has fewer tokens.
    """
    config = describe(Path(folder))[1]
    if tokens > config.vocab_size:
        raise T2GError(
            f"{folder}: its tokenizer has {tokens} tokens, its config.json a vocab_size of "
            f"{config.vocab_size}; use the tokenizer that belongs to the model"
        )
    return config
