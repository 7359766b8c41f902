"""What a family is, and what nearly all of them share: the shapes and names of Llama."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from t2g_jax.errors import T2GError
from t2g_jax.models.decoder import DecoderConfig
from t2g_jax.models.rope import Rope

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
    from Llama's, from a configuration of `transformers`. required: keys of a configuration with the
    value that they must have. prefixes: that a tensor may have in place of those of a model for
    text alone. ignored: prefixes of tensors that belong to no decoder.
    """

    model_types: tuple[str, ...]
    names: Mapping[str, str] = dataclasses.field(default_factory=lambda: LLAMA_NAMES)
    particular: Callable[[HFConfig], dict[str, Any]] = lambda hf: {}
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
            return DecoderConfig(**llama_shape(hf) | self.particular(hf))
        except KeyError as error:
            raise T2GError(f"{folder / 'config.json'} has no {error}") from error
        except (ValueError, TypeError, AttributeError, ArithmeticError) as error:
            raise T2GError(f"{folder / 'config.json'}: {error}") from error


def llama_shape(hf: HFConfig) -> dict[str, Any]:
    """Fields of `DecoderConfig` that all families have."""
    head_width = getattr(hf, "head_dim", None) or hf.hidden_size // hf.num_attention_heads
    return {
        "vocab_size": hf.vocab_size,
        "width": hf.hidden_size,
        "layers": hf.num_hidden_layers,
        "heads": hf.num_attention_heads,
        "kv_heads": hf.num_key_value_heads or hf.num_attention_heads,
        "head_width": head_width,
        "mlp_width": hf.intermediate_size,
        "norm_epsilon": hf.rms_norm_eps,
        "tie_embeddings": bool(hf.tie_word_embeddings),
        **ropes(hf),
        **windows(hf),
    }


def ropes(hf: HFConfig) -> dict[str, Rope]:
    """`rope`, and `local_rope` where layers with a window have another."""
    kinds = hf.rope_parameters
    if "full_attention" not in kinds:
        return {"rope": rope(kinds, hf)}
    found = {"rope": rope(kinds["full_attention"], hf)}
    local = rope(kinds["sliding_attention"], hf)
    return found if local == found["rope"] else found | {"local_rope": local}


def rope(parameters: Mapping[str, Any], hf: HFConfig) -> Rope:
    """One entry of `rope_parameters`."""
    kind, theta = parameters["rope_type"], float(parameters["rope_theta"])
    if parameters.get("partial_rotary_factor", 1.0) != 1.0:
        raise ValueError("rope_parameters: partial_rotary_factor must be 1")
    if kind == "default":
        return Rope(theta)
    factor = float(parameters["factor"])
    if kind == "linear":
        return Rope(theta, "linear", factor)
    trained = parameters.get("original_max_position_embeddings") or hf.max_position_embeddings
    if kind == "llama3":
        low, high = parameters["low_freq_factor"], parameters["high_freq_factor"]
        return Rope(theta, "llama3", factor, trained, float(low), float(high))
    if kind == "yarn":
        low, high = parameters.get("beta_slow") or 1, parameters.get("beta_fast") or 32
        magnitude = parameters.get("attention_factor")
        if magnitude is None:
            both = parameters.get("mscale"), parameters.get("mscale_all_dim")
            top, bottom = both if all(both) else (1, 0)
            magnitude = _mscale(factor, top) / _mscale(factor, bottom)
        return Rope(theta, "yarn", factor, trained, float(low), float(high), float(magnitude))
    raise ValueError(f"rope_type is {kind!r}; must be default, linear, llama3 or yarn")


def windows(hf: HFConfig) -> dict[str, Any]:
    """`window` and `local_layers`."""
    window, kinds = getattr(hf, "sliding_window", None), getattr(hf, "layer_types", None)
    if window is None:
        return {}
    if kinds is None:
        return {"window": window}
    if unknown := set(kinds) - {"full_attention", "sliding_attention"}:
        raise ValueError(f"layer_types has {', '.join(sorted(unknown))}, which cannot be computed")
    local = tuple(kind == "sliding_attention" for kind in kinds)
    return {"window": window, "local_layers": local} if any(local) else {}


def _mscale(factor: float, scale: float) -> float:
    return 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0
