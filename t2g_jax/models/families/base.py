"""What a family is, and what nearly all of them share: the shapes and names of Llama."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from t2g_jax.errors import T2GError
from t2g_jax.models import config_keys, config_rope
from t2g_jax.models.decoder import DecoderConfig

HFConfig = Any
"""A configuration of `transformers`, which brings the formats of many years to one form."""

LLAMA_NAMES: MappingProxyType[str, str] = MappingProxyType(
    {
        "attention/query": "self_attn.q_proj",
        "attention/key": "self_attn.k_proj",
        "attention/value": "self_attn.v_proj",
        "attention/out": "self_attn.o_proj",
        "attention_norm": "input_layernorm",
        "mlp/gate": "mlp.gate_proj",
        "mlp/up": "mlp.up_proj",
        "mlp/down": "mlp.down_proj",
        "mlp_norm": "post_attention_layernorm",
    }
)
QUERY_KEY_NORM = MappingProxyType(
    {"attention/query_norm": "self_attn.q_norm", "attention/key_norm": "self_attn.k_norm"}
)


@dataclasses.dataclass(frozen=True)
class Family:
    """A family of published models.

    model_types: what config.json calls it. names: of the tensors of a layer, by our path in it;
    "{expert}" stands for the number of an expert. particular: fields of `DecoderConfig` that differ
    from Llama's, from a configuration of `transformers`; ropes: likewise those of the frequencies.
    reads: keys of config.json that this takes, and those that change nothing in this family though
    they do in others. required: keys of a configuration with the value that they must have.
    prefixes: that a tensor may have in place of those of a model for text alone. ignored: prefixes
    of tensors that belong to no decoder.
    """

    model_types: tuple[str, ...]
    names: Mapping[str, str] = dataclasses.field(default_factory=lambda: LLAMA_NAMES)
    particular: Callable[[HFConfig], dict[str, Any]] = lambda hf: {}
    ropes: Callable[[HFConfig], dict[str, Any]] = config_rope.read
    reads: tuple[str, ...] = ()
    required: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    prefixes: Mapping[str, str] = dataclasses.field(default_factory=dict)
    ignored: tuple[str, ...] = ()

    def decoder_config(self, hf: HFConfig, folder: Path) -> DecoderConfig:
        """The decoder of a configuration; its folder is for the error."""
        for key, value in self.required.items():
            found = getattr(hf, key, value)
            if found != value and (found or value):  # null, false and [] are one
                raise T2GError(
                    f"{folder / 'config.json'}: {key} is {found!r}; only {value!r} can be computed"
                )
        try:
            return DecoderConfig(**llama_shape(hf) | self.ropes(hf) | self.particular(hf))
        except KeyError as error:
            raise T2GError(f"{folder / 'config.json'} has no {error}") from error
        except (ValueError, TypeError, AttributeError, ArithmeticError) as error:
            raise T2GError(f"{folder / 'config.json'}: {error}") from error

    def check_keys(self, found: Mapping[str, Any], hf: HFConfig, folder: Path) -> None:
        """Checks that no key of config.json could change what is computed without being read.

        Args:
          found: the file.
          hf: what `transformers` makes of it.
          folder: for the error.

        Raises:
          T2GError: one could, or its weights are compressed.
        """
        file = folder / "config.json"
        text = found.get("text_config") if hasattr(hf, "text_config") else None
        parts = [(found, hf)] if text is None else [(found, hf), (text, hf.text_config)]
        for part, made in parts:
            if (how := config_keys.compression(part)) is not None:
                raise T2GError(
                    f"{file}: {how} says that the weights are compressed, and such weights cannot "
                    "be trained; take the model's version in bfloat16. If they are not compressed, "
                    "take that key out"
                )
            unknown = config_keys.unknown(
                part,
                type(made)().to_dict(),
                known={*self.reads, *self.required},
                sees=part is found and text is not None,
            )
            for key in unknown:
                raise T2GError(
                    f"{file}: {key} is {config_keys.shown(part[key])}, which may change what a "
                    f"{hf.model_type} computes, and the decoder does not know it; take the key out "
                    "if the model is the same without, as it is to `transformers`"
                )


_SIZES = (
    *("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads"),
    *("intermediate_size", "max_position_embeddings"),
)


def llama_shape(hf: HFConfig) -> dict[str, Any]:
    """Fields of `DecoderConfig` that all families have."""
    for key in _SIZES:
        if getattr(hf, key) < 1:
            raise ValueError(f"{key} is {getattr(hf, key)}; must be a whole number above 0")
    if hf.rms_norm_eps < 0:
        raise ValueError(f"rms_norm_eps is {hf.rms_norm_eps}; must not be below 0")
    epsilon = hf.rms_norm_eps and config_keys.positive("rms_norm_eps", hf.rms_norm_eps)
    head_width = getattr(hf, "head_dim", None) or hf.hidden_size // hf.num_attention_heads
    return {
        "vocab_size": hf.vocab_size,
        "width": hf.hidden_size,
        "layers": hf.num_hidden_layers,
        "heads": hf.num_attention_heads,
        "kv_heads": hf.num_key_value_heads or hf.num_attention_heads,
        "head_width": head_width,
        "mlp_width": hf.intermediate_size,
        "norm_epsilon": epsilon,
        "tie_embeddings": bool(hf.tie_word_embeddings),
    }


def windows(hf: HFConfig) -> dict[str, Any]:
    """`window` and `local_layers` of a family whose layers have kinds."""
    kinds = hf.layer_types
    if unknown := set(kinds) - {"full_attention", "sliding_attention"}:
        raise ValueError(f"layer_types has {', '.join(sorted(unknown))}, which cannot be computed")
    local = tuple(kind == "sliding_attention" for kind in kinds)
    if any(local) and hf.sliding_window is None:
        raise ValueError(
            "layer_types has sliding_attention, but sliding_window is null or not used"
        )
    return {"window": hf.sliding_window, "local_layers": local} if any(local) else {}
