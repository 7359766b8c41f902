"""Low-rank adapters in the format of Hugging Face's peft, in and out.

adapter_config.json          rank, alpha, and which layers have adapters
adapter_model.safetensors    lora_A [r, inputs] and lora_B [outputs, r] of each layer
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import unflatten_dict

from t2g_jax import hosts
from t2g_jax.errors import T2GError
from t2g_jax.models import lora, tensor_files
from t2g_jax.models.decoder import DecoderConfig
from t2g_jax.models.families.base import Family
from t2g_jax.models.heads import Params
from t2g_jax.models.huggingface import canonical, flat, sources

_PREFIX = "base_model.model."
WEIGHTS, CONFIG = tensor_files.ADAPTERS, "adapter_config.json"
_PLAIN: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "use_dora": (False, None),
    "use_rslora": (False, None),
    "fan_in_fan_out": (False, None),
    "rank_pattern": ({}, None),
    "alpha_pattern": ({}, None),
    "modules_to_save": (None, []),
    "layers_to_transform": (None, []),
    "alora_invocation_tokens": (None, []),
    # With others, such as "pissa", the base's own weights are changed when the adapters are read.
    "init_lora_weights": (True, False, None, "gaussian", "orthogonal", "eva"),
}
"""What an adapter's configuration must say, where it says it: the rest is plain LoRA."""


def save_adapters(
    folder: Path,
    params: Params,
    config: DecoderConfig,
    family: Family,
    *,
    base: str,
    prefix: str = "model.",
) -> None:
    """Writes the adapters of `params`, in float32. All processes call it; the first writes.

    Args:
      params: with adapters, see `lora.add_adapters`.
      base: the model they are for, a folder or hub id.
      prefix: of its decoder's tensors in `transformers`; a model that sees has another.
    """
    leaves = flat(params)
    plan = []
    for path in leaves:
        if path.endswith("/lora_a"):
            module = path.removesuffix("/lora_a")
            plan += [
                (module, index, name.removesuffix(".weight"))
                for index, name in sources(family, config, f"{module}/kernel")
            ]
    found: dict[str, np.ndarray] = {}
    for module, (layer,), name in plan:
        a, b = (hosts.fetch(leaves[f"{module}/{leaf}"][layer]) for leaf in lora.ADAPTERS)
        rank = a.shape[-1]
        full = f"{_PREFIX}{prefix}{name.removeprefix('model.')}"
        found[f"{full}.lora_A.weight"] = a.reshape(-1, rank).T
        found[f"{full}.lora_B.weight"] = b.reshape(rank, -1).T
    tensor_files.write(
        folder,
        [(name, value.shape) for name, value in found.items()],
        iter(found.values()),
        np.dtype(np.float32),
        file_bytes=2**62,
        name=WEIGHTS,
        first=hosts.is_first(),
    )
    if hosts.is_first():
        modules = sorted({name.rpartition(".")[2] for _, _, name in plan})
        within = f".*language_model.*[.]({'|'.join(modules)})"  # not in what sees, too
        described = {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": base,
            "r": lora.rank(params),
            "lora_alpha": config.lora_alpha,
            "lora_dropout": 0.0,
            "bias": "none",
            "fan_in_fan_out": False,
            "inference_mode": True,
            "target_modules": within if "language_model" in prefix else modules,
        }
        (folder / CONFIG).write_text(json.dumps(described, indent=1) + "\n", "utf-8")


def load_adapters(folder: Path, params: Params, config: DecoderConfig, family: Family) -> Params:
    """Parameters whose fresh adapters are replaced by those of a folder.

    Args:
      params: with adapters of the same rank; layers that have none there keep B = 0.
      config: whose `lora_alpha` must be that of the folder.

    Raises:
      T2GError: it is no LoRA that these adapters can be; the key or tensor is named.
    """
    try:
        described = json.loads((folder / CONFIG).read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise T2GError(
            f"{folder / CONFIG} cannot be read ({error}); name a folder that `save_pretrained` of "
            "peft, or `t2g export --adapters`, has written"
        ) from error
    rank = lora.rank(params)
    wanted = _PLAIN | {"r": (rank,), "lora_alpha": (config.lora_alpha,)}
    for key, allowed in wanted.items():
        if key in described and described[key] not in allowed:
            named = {"r": " (lora.rank)", "lora_alpha": " (lora.alpha)"}.get(key, "")
            raise T2GError(
                f"{folder / CONFIG}: {key} is {described[key]!r}; must be {allowed[0]!r}{named}"
            )
    stored = {t.name.removeprefix(_PREFIX): t for t in tensor_files.of_file(folder / WEIGHTS)}
    there = canonical(stored, family)
    leaves = flat(params)
    for path in [path for path in leaves if path.endswith("/lora_a")]:
        module = path.removesuffix("/lora_a")
        a, b = (
            np.array(hosts.fetch(leaves[f"{module}/{leaf}"]), np.float32) for leaf in lora.ADAPTERS
        )
        inputs, outputs = a[0].shape[:-1], b[0].shape[1:]
        for (layer,), name in sources(family, config, f"{module}/kernel"):
            name = name.removesuffix(".weight")
            pair = [there.pop(f"{name}.lora_{side}.weight", None) for side in "AB"]
            if pair == [None, None]:
                continue
            for side, tensor, shape in zip(
                "AB",
                pair,
                ((rank, math.prod(inputs)), (math.prod(outputs), rank)),
                strict=True,
            ):
                found = None if tensor is None else list(tensor.shape)
                if found != list(shape):
                    raise T2GError(
                        f"{folder / WEIGHTS}: {name}.lora_{side}.weight: expected {list(shape)}, "
                        f"found {found or 'nothing'}"
                    )
            a[layer] = pair[0].read().T.reshape(*inputs, rank)
            b[layer] = pair[1].read().T.reshape(rank, *outputs)
        for leaf, value in zip(lora.ADAPTERS, (a, b), strict=True):
            old = leaves[f"{module}/{leaf}"]
            leaves[f"{module}/{leaf}"] = hosts.place(value.astype(old.dtype), old.sharding)
    if there:
        name = next(iter(there))
        raise T2GError(
            f"{folder / WEIGHTS}: no layer here has the adapter {name} ({len(there)} such "
            "tensors); adapters are of attention and MLP"
        )
    return unflatten_dict(leaves, sep="/")
