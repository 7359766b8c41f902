"""Rotary frequencies of a configuration of `transformers`, and the positions they are for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from t2g_jax.models import config_keys
from t2g_jax.models.rope import Rope

_KEYS = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    "yarn": (
        *("factor", "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim"),
        *("truncate", "finetuned"),
    ),
}
"""What each kind has, beside `_ALL`."""
_ALL = (
    *("type", "rope_type", "rope_theta", "partial_rotary_factor"),
    "original_max_position_embeddings",
)
_ONLY = {"partial_rotary_factor": 1, "truncate": True, "finetuned": True}
"""Values of keys that can be computed with that one alone."""


def read(hf: Any) -> dict[str, Any]:
    """`rope` and `positions` of a configuration; all its layers have the same frequencies."""
    hf.standardize_rope_params()  # as its model does: with keys that stand beside the parameters
    found = _rope(hf.rope_parameters, hf)
    return {"rope": found, "positions": _positions(found, hf)}


def read_by_kind(hf: Any) -> dict[str, Any]:
    """Likewise where layers with a window have frequencies of their own, `local_rope`."""
    kinds = dict(hf.rope_parameters)
    full, local = (_rope(kinds.pop(f"{kind}_attention"), hf) for kind in ("full", "sliding"))
    if kinds:
        raise ValueError(f"rope_parameters has {', '.join(kinds)} beside those of full_attention")
    found = {"rope": full, "positions": _positions(full, hf)}
    return found if local == full else found | {"local_rope": local}


def _rope(parameters: Mapping[str, Any], hf: Any) -> Rope:
    kind = parameters["rope_type"]
    if kind not in _KEYS:
        raise ValueError(f"rope_type is {kind!r}; must be {', '.join(_KEYS)}")
    if parameters.get("type", kind) != kind:
        raise ValueError(f"rope_parameters: type is {parameters['type']!r}, rope_type {kind!r}")
    for key, value in parameters.items():
        if key not in _KEYS[kind] and key not in _ALL and value is not None:
            raise ValueError(
                f"rope_parameters: {key} is {value!r}, which is not known of rope_type {kind!r}; "
                "the decoder would compute something else without it"
            )
        if value is not None and value != _ONLY.get(key, value):
            raise ValueError(f"rope_parameters: {key} is {value!r}; must be {_ONLY[key]}")

    of_all = getattr(hf, "partial_rotary_factor", None)  # beside parameters by kind of layer
    if of_all not in (None, 1):
        raise ValueError(f"partial_rotary_factor is {of_all!r}; must be 1")

    def number(key: str, default: float | None = None) -> float:
        value = parameters.get(key) if default is not None else parameters[key]
        value = default if value is None else value
        return config_keys.positive(f"rope_parameters: {key}", value)

    theta = number("rope_theta")
    if theta <= 1:
        raise ValueError(f"rope_parameters: rope_theta is {theta}; must be above 1")
    if kind == "default":
        return Rope(theta)
    if kind == "linear":
        return Rope(theta, "linear", number("factor"))
    trained = number("original_max_position_embeddings", hf.max_position_embeddings)
    if kind == "llama3":
        factor, low, high = (number(key) for key in _KEYS[kind])
        if not low < high:
            raise ValueError(
                f"rope_parameters: low_freq_factor {low} is not below {high}, the high"
            )
        return Rope(theta, "llama3", factor, trained, low, high)
    factor = number("factor", hf.max_position_embeddings / trained)
    low, high = number("beta_slow", 1), number("beta_fast", 32)
    if not low < high:
        raise ValueError(f"rope_parameters: beta_slow {low} is not below beta_fast {high}")
    if parameters.get("attention_factor") is not None:
        magnitude = number("attention_factor")
    else:
        both = parameters.get("mscale") and parameters.get("mscale_all_dim")
        top, bottom = (number("mscale"), number("mscale_all_dim")) if both else (1, 0)
        magnitude = _mscale(factor, top) / _mscale(factor, bottom)
    return Rope(theta, "yarn", factor, trained, low, high, magnitude)


def _positions(rope: Rope, hf: Any) -> int:
    """The longest row that a model is made for.

    With "linear", max_position_embeddings is that before the frequencies were stretched; with
    "yarn" it may be that before or after; with "llama3" it is that after.
    """
    stretched = {
        "linear": rope.factor * hf.max_position_embeddings,
        "yarn": rope.factor * rope.trained_length,
    }
    return max(hf.max_position_embeddings, int(stretched.get(rope.kind, 0)))


def _mscale(factor: float, scale: float) -> float:
    return 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0
