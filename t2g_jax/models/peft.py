"""Low-rank adapters in the format of Hugging Face's peft, in and out.

adapter_config.json          rank, alpha, and which layers have adapters
adapter_model.safetensors    lora_A [r, inputs] and lora_B [outputs, r] of each layer
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import unflatten_dict
from typing_extensions import TypedDict

from t2g_jax.errors import T2GError
from t2g_jax.models import heads, lora, tensor_files
from t2g_jax.models.decoder import DecoderConfig
from t2g_jax.models.families.base import Family
from t2g_jax.models.heads import Params
from t2g_jax.models.huggingface import canonical, flat, sources
from t2g_jax.runtime import files, hosts

_PREFIX = "base_model.model."
WEIGHTS, CONFIG = tensor_files.ADAPTERS, "adapter_config.json"
BASE = Path("t2g") / "base.json"
"""The fingerprint of the weights that the adapters were trained on, if it is known."""
_PLAIN: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "use_dora": (False, None),
    "use_rslora": (False, True, None),
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
_ABSENT = {"r": 8, "lora_alpha": 8}
"""What peft takes where these are left out."""
_HARMLESS = frozenset(
    """
    auto_mapping base_model_name_or_path corda_config ensure_weight_tying eva_config
    exclude_modules inference_mode layers_pattern loftq_config lora_dropout lora_ga_config
    megatron_config megatron_core peft_version qalora_group_size revision runtime_config
    target_modules task_type
    """.split()
)
"""Names, versions, what was trained and how; of the other keys, what is null, false or empty."""


def save_adapters(
    folder: Path,
    params: Params,
    config: DecoderConfig,
    family: Family,
    *,
    base: str,
    prefix: str = "model.",
    fingerprint: str | None = None,
) -> None:
    """Writes the adapters of `params`, in float32. All processes call it; the first writes.

    Args:
      params: with adapters, see `lora.add_adapters`.
      base: the model they are for, a folder or hub id.
      fingerprint: of its weights, see `tensor_files.fingerprint`; `load_adapters` checks it.
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
        first=hosts.is_primary(),
    )
    if hosts.is_primary():
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
        if fingerprint is not None:
            (folder / BASE).parent.mkdir(exist_ok=True)
            text = json.dumps({"fingerprint": fingerprint}) + "\n"
            (folder / BASE).write_text(text, "utf-8")


def load_adapters(folder: Path, params: Params, config: DecoderConfig, family: Family) -> Params:
    """Parameters whose fresh adapters are replaced by those of a folder.

    Those of rank-stabilized LoRA count α / √r there (arXiv 2312.03732) and α / r here: their B is
    √r times as large here, and so is what `save_adapters` writes, as plain LoRA.

    Args:
      params: with adapters of the same rank; layers that have none there keep B = 0.
      config: whose `lora_alpha` must be that of the folder.

    Raises:
      T2GError: it is no LoRA that these adapters can be; the key or tensor is named.
    """
    leaves = flat(params)
    for module, layers in _read(folder, leaves, config, family).items():
        a, b = (
            np.array(hosts.fetch(leaves[f"{module}/{leaf}"]), np.float32) for leaf in lora.ADAPTERS
        )
        for layer, (down, up) in layers.items():
            a[layer], b[layer] = down, up
        for leaf, value in zip(lora.ADAPTERS, (a, b), strict=True):
            old = leaves[f"{module}/{leaf}"]
            leaves[f"{module}/{leaf}"] = hosts.place(value.astype(old.dtype), old.sharding)
    return unflatten_dict(leaves, sep="/")


def check_adapters(folder: Path, config: DecoderConfig, family: Family, *, rank: int) -> None:
    """Raises what `load_adapters` would for a model of this config, without having one."""

    def shapes(key: jax.Array) -> Params:
        return lora.add_adapters(heads.init_params(config, key), key, rank=rank)

    _read(folder, flat(jax.eval_shape(shapes, jax.random.key(0))), config, family)


def check_base(folder: Path, base: Path) -> None:
    """Checks that adapters are for the weights of `base`, if their folder says which they are for.

    Raises:
      T2GError: they were trained on others.
    """
    file = folder / BASE
    if not file.exists():
        return
    wanted = files.read_json(file, _Base, mend="export the adapters again")["fingerprint"]
    found = tensor_files.fingerprint(base)
    if found != wanted:
        raise T2GError(
            f"the adapters in {folder} were trained on other weights (fingerprint {wanted}) than "
            f"those in {base} ({found}); take the model that they were trained on"
        )


class _Base(TypedDict):
    fingerprint: str


Layers = dict[int, tuple[np.ndarray, np.ndarray]]
"""A and B of layers, as they are in parameters."""


def _read(
    folder: Path, leaves: dict[str, Any], config: DecoderConfig, family: Family
) -> dict[str, Layers]:
    """The adapters of a folder by module; `leaves` have the shapes of all parameters."""
    modules = [path.removesuffix("/lora_a") for path in leaves if path.endswith("/lora_a")]
    rank = next(leaves[f"{module}/lora_a"].shape[-1] for module in modules)
    described = _described(folder, rank, config)
    growth = math.sqrt(rank) if described.get("use_rslora") else 1.0
    if not (folder / WEIGHTS).is_file() and (folder / "adapter_model.bin").is_file():
        raise T2GError(
            f"{folder} has no {WEIGHTS}; adapter_model.bin may run any code when read, and is not: "
            "load it with peft where that is safe, and `save_pretrained` it again"
        )
    stored = {t.name.removeprefix(_PREFIX): t for t in tensor_files.of_file(folder / WEIGHTS)}
    if not stored:
        raise T2GError(f"{folder / WEIGHTS} has no tensors; save the adapters again")
    there = canonical(stored, family)
    wanted, lacking = _every_layer(described), []
    found: dict[str, Layers] = {}
    for module in modules:
        a, b = (leaves[f"{module}/{leaf}"] for leaf in lora.ADAPTERS)
        inputs, outputs = a.shape[1:-1], b.shape[2:]
        shapes = (rank, math.prod(inputs)), (math.prod(outputs), rank)
        for (layer,), name in sources(family, config, f"{module}/kernel"):
            name = name.removesuffix(".weight")
            pair = [there.pop(f"{name}.lora_{side}.weight", None) for side in "AB"]
            if pair == [None, None]:
                lacking += [name] * (name.rpartition(".")[2] in wanted)
                continue
            down, up = (
                _values(tensor, f"{name}.lora_{side}.weight", shape, folder)
                for side, tensor, shape in zip("AB", pair, shapes, strict=True)
            )
            values = down.T.reshape(*inputs, rank), growth * up.T.reshape(rank, *outputs)
            found.setdefault(module, {})[layer] = values
    if there:
        name = next(iter(there))
        raise T2GError(
            f"{folder / WEIGHTS}: no layer here has the adapter {name} ({len(there)} such "
            "tensors); adapters are of attention and MLP"
        )
    if lacking:
        raise T2GError(
            f"{folder / WEIGHTS} lacks the adapter of {lacking[0]} ({len(lacking)} such layers), "
            f"which {CONFIG} names in target_modules; save the adapters again"
        )
    return found


def _described(folder: Path, rank: int, config: DecoderConfig) -> dict[str, Any]:
    """adapter_config.json, once it is known to be what these adapters can be."""
    file = folder / CONFIG
    mend = "name a folder that `save_pretrained` of peft, or `t2g export --adapters`, has written"
    described = files.read_json(file, dict, mend=mend)
    wanted = _PLAIN | {"r": (rank,), "lora_alpha": (config.lora_alpha,)}
    for key, value in (_ABSENT | described).items():
        named = {"r": " (lora.rank)", "lora_alpha": " (lora.alpha)"}.get(key, "")
        if key in wanted and value not in wanted[key]:
            raise T2GError(f"{file}: {key} is {value!r}; must be {wanted[key][0]!r}{named}")
        if value and key not in wanted and key not in _HARMLESS:
            raise T2GError(
                f"{file}: {key} is {value!r}, which is not known here and may change what the "
                "adapters compute; save plain LoRA"
            )
    return described


def _every_layer(described: dict[str, Any]) -> set[str]:
    """The modules that have adapters in every layer, by an adapter_config.json."""
    names = described.get("target_modules")
    if not isinstance(names, list) or described.get("exclude_modules"):
        return set()  # a pattern may choose some layers
    return {str(name).rpartition(".")[2] for name in names if "." not in str(name)}


def _values(
    tensor: tensor_files.Tensor | None, name: str, shape: tuple[int, ...], folder: Path
) -> np.ndarray:
    if tensor is None or tensor.shape != shape:
        found = "nothing" if tensor is None else list(tensor.shape)
        raise T2GError(f"{folder / WEIGHTS}: {name}: expected {list(shape)}, found {found}")
    values = tensor.read().astype(np.float32)
    if not np.isfinite(values).all():
        raise tensor.broken(np.float32)
    return values
