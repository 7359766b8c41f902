"""Hugging Face folders in and out: parameters, tensor by tensor, straight to their shardings.

    family, config = families.describe(folder)
    params = load(folder, config, shardings)
    save_weights(folder, params, config, family, dtype=…)

A tensor of a linear layer is [outputs, inputs] there and [inputs…, outputs…] here, and ours are
stacked over the layers. What is in host memory is one tensor of the file, or this process' part of
it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import NamedSharding, Sharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P

from t2g_jax.errors import T2GError, reason
from t2g_jax.models import heads, tensor_files
from t2g_jax.models.decoder import DecoderConfig
from t2g_jax.models.families import describe
from t2g_jax.models.families.base import Family
from t2g_jax.models.heads import Params
from t2g_jax.models.lora import input_axes
from t2g_jax.parallel.sharding import divisible
from t2g_jax.runtime import hosts
from t2g_jax.runtime.files import expanded
from t2g_jax.runtime.watchdog import beat

Array = jax.Array

OUTSIDE = {
    "decoder/embed": "model.embed_tokens",
    "decoder/final_norm": "model.norm",
    "lm_head": "lm_head",
}
"""Names of modules that are not in a layer."""
LEAVES = {"kernel": "weight", "scale": "weight", "embedding": "weight", "bias": "bias"}
_LAYERS = "decoder/layers/"
_DECODER = ("embed_tokens.", "layers.", "norm.")
_EMBEDDINGS, _HEAD = (f"{OUTSIDE[path]}.weight" for path in ("decoder/embed", "lm_head"))


def fetch(source: str, *, key: str = "model.pretrained") -> Path:
    """The folder of a model: `source` itself, or where the hub's model of that id was put.

    Only configuration, tokenizer and safetensors are fetched; not the same weights once more, in
    another format (`consolidated.safetensors`) or in folders within. It is the revision that was
    pinned, or the newest. `HF_HOME`, `HF_ENDPOINT`, `HF_TOKEN` and `HF_HUB_OFFLINE` are those of
    huggingface_hub.

    Args:
      key: of the config that names it, for messages.

    Raises:
      T2GError: it is neither a folder nor a model of the hub that can be reached.
    """
    return _fetch(source, _pinned.get(source), key)


def pin(source: str, revision: str) -> None:
    """From now on `fetch` gives this revision (a commit) of a model of the hub."""
    _pinned[source] = revision


def revision(source: str) -> str | None:
    """The commit of a model of the hub, as `fetch` gives it; None: it is a folder."""
    return None if expanded(source).is_dir() else fetch(source).name


_pinned: dict[str, str] = {}


@functools.cache
def _fetch(source: str, revision: str | None, key: str) -> Path:
    if (folder := expanded(source)).is_dir():
        return folder
    if folder.is_file():
        raise T2GError(
            f"{key} is {source!r}, a file; name the folder of a Hugging Face model "
            "(config.json, *.safetensors and the tokenizer's files)"
        )
    import huggingface_hub

    try:
        return Path(
            huggingface_hub.snapshot_download(
                source,
                revision=revision,
                allow_patterns=["*.safetensors", "*.json", "*.jinja", "tokenizer.model"],
                ignore_patterns=["consolidated*", "*/*.safetensors", "*/*.json"],
            )
        )
    except Exception as error:  # of many kinds: no such id, no network, no permission
        pinned = f", in the revision {revision} that this run began with," if revision else ""
        raise T2GError(
            f"{key} is {source!r}: there is no such folder, and the hub's model of that "
            f"id{pinned} cannot be fetched ({reason(error)[:300]})"
        ) from error


def load(folder: Path, config: DecoderConfig, shardings: Params | None = None) -> Params:
    """Parameters of the decoder (and the LM head, unless tied) from a Hugging Face folder.

    Args:
      folder: with config.json and safetensors.
      config: from `families.describe`; its `param_dtype` is that of the result.
      shardings: of each parameter; None: on the first device.

    Raises:
      T2GError: a tensor is missing, has another shape, or is not known; all that are, are named.
        Or one has NaN or infinity in it; or an LM head is there that config.json takes for the
        embeddings, and is not them.
    """
    family, _ = describe(folder)
    shapes = flat(jax.eval_shape(lambda: heads.init_params(config, jax.random.key(0))))
    there = _there(folder, family, config, shapes)
    placed = flat(shardings) if shardings is not None else {}
    default = SingleDeviceSharding(jax.local_devices()[0])
    params = {}
    for path, leaf in shapes.items():
        sharding = placed.get(path, default)
        value = _zeros(leaf.shape, leaf.dtype, sharding)
        for index, name in sources(family, config, path):
            piece = _on_devices(there[name], path, leaf.shape[len(index) :], sharding, len(index))
            value, finite = _put(value, piece, index, is_matrix=_is_matrix(path), sharding=sharding)
            jax.block_until_ready(value)  # the next tensor is read when this one is done with
            if not finite:
                raise there[name].broken(leaf.dtype)
            beat()
        params[path] = value
    return unflatten_dict(params, sep="/")


def check(folder: Path, config: DecoderConfig, *, values: bool) -> None:
    """Raises what `load` would, without loading.

    Names and shapes are in the headers of the files, which takes no time; to look for NaN and
    infinity, all `values` are read, about a second a gigabyte, 64 MiB at a time.
    """
    family, _ = describe(folder)
    shapes = flat(jax.eval_shape(lambda: heads.init_params(config, jax.random.key(0))))
    there = _there(folder, family, config, shapes)
    if values:
        for path, leaf in shapes.items():
            for _, name in sources(family, config, path):
                there[name].check_finite(leaf.dtype)
                beat()


def save_weights(
    folder: Path,
    params: Params,
    config: DecoderConfig,
    family: Family,
    *,
    dtype: Any,
    file_bytes: int = 4 * 2**30,
) -> None:
    """Writes model.safetensors, or several with an index: what `load` reads. All processes call it.

    Args:
      params: "decoder" and, unless tied, "lm_head"; adapters must have been merged.
      dtype: of the tensors in the files.
    """
    leaves = flat({name: params[name] for name in ("decoder", "lm_head") if name in params})
    plan = [(path, index, name) for path in leaves for index, name in sources(family, config, path)]
    contents = [
        (name, their_shape(path, leaves[path].shape[len(index) :])) for path, index, name in plan
    ]

    def values() -> Iterator[np.ndarray]:
        for path, index, _ in plan:
            yield hosts.fetch(_taken(leaves[path], index, path=path))

    tensor_files.write(
        folder,
        contents,
        values(),
        np.dtype(dtype),
        file_bytes=file_bytes,
        first=hosts.is_primary(),
    )


def sources(
    family: Family, config: DecoderConfig, path: str
) -> Iterator[tuple[tuple[int, ...], str]]:
    """The tensors that one of our parameters is made of: index in its first axes, and name."""
    module, _, leaf = path.rpartition("/")
    if not path.startswith(_LAYERS):
        yield (), f"{OUTSIDE[module]}.{LEAVES[leaf]}"
        return
    within = path.removeprefix(_LAYERS)
    if within in family.names:  # a parameter that is a module there
        name, leaf = family.names[within], "kernel"
    else:
        name = family.names[module.removeprefix(_LAYERS)]
    for layer in range(config.layers):
        full = f"model.layers.{layer}.{name}.{LEAVES[leaf]}"
        if "{expert}" in full:
            for expert in range(config.experts):
                yield (layer, expert), full.format(expert=expert)
        else:
            yield (layer,), full


def their_shape(path: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape there of one of our parameters, without the axes that are stacked."""
    if not _is_matrix(path):
        return (math.prod(shape),) if path.endswith("/bias") else shape
    at = _input_axes(path)
    return math.prod(shape[at:]), math.prod(shape[:at])


def flat(tree: Params) -> dict[str, Any]:
    """Leaves by their path, such as decoder/embed/embedding."""
    return flatten_dict(tree, sep="/")


def _is_matrix(path: str) -> bool:
    leaf = path.rsplit("/", 1)[-1]
    return leaf in ("kernel", "router") or leaf.startswith("expert_")


def _input_axes(path: str) -> int:
    return input_axes(path.split("/")[-2])


def canonical(
    found: Mapping[str, tensor_files.Tensor], family: Family
) -> dict[str, tensor_files.Tensor]:
    """Tensors by the names of a model for text alone, without those that are no parameters.

    A decoder that was saved without its LM head has no "model." before them.
    """
    named = {}
    for name, tensor in found.items():
        for prefix, plain in family.prefixes.items():
            if name.startswith(prefix):
                name = plain + name.removeprefix(prefix)
                break
        if name.startswith(_DECODER):
            name = f"model.{name}"
        if not name.startswith(family.ignored) and not name.endswith("rotary_emb.inv_freq"):
            named[name] = tensor
    return named


def _there(
    folder: Path,
    family: Family,
    config: DecoderConfig,
    shapes: Mapping[str, jax.ShapeDtypeStruct],
) -> dict[str, tensor_files.Tensor]:
    """The tensors of a folder by their names; they are known to be what the parameters need."""
    there = canonical(tensor_files.tensors(folder), family)
    if config.tie_embeddings and _EMBEDDINGS not in there and _HEAD in there:
        there[_EMBEDDINGS] = there.pop(_HEAD)  # one tensor, stored by its other name
    _check(folder, family, config, shapes, there)
    if config.tie_embeddings:
        _check_tied(folder, there)
    return there


def _check(
    folder: Path,
    family: Family,
    config: DecoderConfig,
    shapes: Mapping[str, jax.ShapeDtypeStruct],
    there: Mapping[str, tensor_files.Tensor],
) -> None:
    wrong, wanted = [], set()
    for path, leaf in shapes.items():
        for index, name in sources(family, config, path):
            wanted.add(name)
            expected = their_shape(path, leaf.shape[len(index) :])
            if name not in there:
                wrong.append(f"{name}: expected {list(expected)}, found nothing")
            elif there[name].shape != expected:
                found = list(there[name].shape)
                wrong.append(f"{name}: expected {list(expected)}, found {found}")
    known = wanted | ({_HEAD} if config.tie_embeddings else set())
    wrong += [
        f"{name}: expected nothing, found {list(tensor.shape)}"
        for name, tensor in there.items()
        if name not in known
    ]
    if wrong:
        more = f"; and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        if len(wrong) == 1 and wanted - there.keys() == {_HEAD}:
            more = "; if its LM head is its embeddings, set tie_word_embeddings to true"
        raise T2GError(
            f"the tensors in {folder} are not those that its config.json describes: "
            f"{'; '.join(wrong[:5])}{more}. Fetch the model again, config.json with it"
        )


def _check_tied(folder: Path, there: Mapping[str, tensor_files.Tensor]) -> None:
    """That the LM head, if it is in the files, is the embeddings."""
    embed, head = there.get(_EMBEDDINGS), there.get(_HEAD)
    if embed is None or head is None:
        return
    rows = [(slice(at, at + 4096),) for at in range(0, embed.shape[0], 4096)]
    if head.shape != embed.shape or any(
        not np.array_equal(head.read(part), embed.read(part)) for part in rows
    ):
        raise T2GError(
            f"{folder / 'config.json'}: tie_word_embeddings is true, but {head.name} is not "
            f"{embed.name}; set it to false, or take {head.name} out, as the model was trained"
        )


def _on_devices(
    tensor: tensor_files.Tensor,
    path: str,
    shape: tuple[int, ...],
    sharding: Sharding,
    stacked: int,
) -> Array:
    """A tensor as it lies in the file; each device gets the part that it needs, and no more."""
    if isinstance(sharding, NamedSharding):
        spec = (*sharding.spec, *(None,) * (stacked + len(shape) - len(sharding.spec)))[stacked:]
        if _is_matrix(path):
            spec = spec[_input_axes(path)], spec[0]
        mesh = sharding.mesh
        fitting = divisible(P(*spec[: len(tensor.shape)]), tensor.shape, mesh)
        sharding = NamedSharding(mesh, fitting)
    parts: dict[str, np.ndarray] = {}

    def part(index: tuple[slice, ...]) -> np.ndarray:
        if str(index) not in parts:  # devices with the same part share it
            parts[str(index)] = tensor.read(index)
        return parts[str(index)]

    return jax.make_array_from_callback(tensor.shape, sharding, part)


def _zeros(shape: tuple[int, ...], dtype: Any, sharding: Sharding) -> Array:
    return jax.jit(lambda: jnp.zeros(shape, dtype), out_shardings=sharding)()


@functools.partial(jax.jit, donate_argnums=0, static_argnames=("is_matrix", "sharding"))
def _put(
    stack: Array, piece: Array, index: tuple[int, ...], *, is_matrix: bool, sharding: Sharding
) -> tuple[Array, Array]:
    """A tensor of the file in its place; and whether all of it is finite there."""
    piece = (piece.T if is_matrix else piece).astype(stack.dtype)
    finite = jnp.isfinite(piece).all()
    piece = piece.reshape((1,) * len(index) + stack.shape[len(index) :])
    start = (*index, *(0,) * (stack.ndim - len(index)))
    placed = jax.lax.dynamic_update_slice(stack, piece, start)
    return jax.lax.with_sharding_constraint(placed, sharding), finite


@functools.partial(jax.jit, static_argnames="path")
def _taken(value: Array, index: tuple[int, ...], *, path: str) -> Array:
    """One tensor as it lies in a file."""
    for i in index:
        value = jax.lax.dynamic_index_in_dim(value, i, keepdims=False)
    outputs, *inputs = their_shape(path, value.shape)
    if _is_matrix(path):
        return value.reshape(*inputs, outputs).T
    return value.reshape(outputs, *inputs)
