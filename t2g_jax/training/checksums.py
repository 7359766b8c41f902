"""Checksums of arrays: the same on any mesh, another one for any other array."""

from __future__ import annotations

import functools
import hashlib
import json
import math
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

PyTree = Any


def of_arrays(tree: PyTree) -> dict[str, int]:
    """Checksum of each array by path: of its type, its shape, and what stands where in it."""
    arrays = leaves(tree)
    # Shard by shard: programs with a collective each, many at a time, can block one another.
    parts = [_parts(leaf) for leaf in arrays.values()]
    sums = np.array([sum(map(int, part)) % 2**32 for part in jax.device_get(parts)], np.uint32)
    if jax.process_count() > 1:
        sums = multihost_utils.process_allgather(sums).sum(0, dtype=np.uint32)
    kinds = [zlib.crc32(described(leaf).encode()) for leaf in arrays.values()]
    return {
        path: (total + kind) % 2**32
        for path, total, kind in zip(arrays, sums.tolist(), kinds, strict=True)
    }


def of_json(value: Any) -> int:
    """Checksum of something JSON-able."""
    return zlib.crc32(json.dumps(value, sort_keys=True).encode())


def leaves(tree: PyTree) -> dict[str, Any]:
    """Leaves by path (params.a.kernel), the same for dataclasses, tuples and their saved form."""
    flat, _ = jax.tree.flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in flat}


def described(leaf: Any) -> str:
    """dtype[shape] as on disk."""
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.eval_shape(jax.random.key_data, jax.ShapeDtypeStruct(leaf.shape, leaf.dtype))
    return f"{leaf.dtype}{list(leaf.shape)}"


def _parts(leaf: Any) -> list[jax.Array]:
    """The sums of the parts of an array that are here."""
    if not isinstance(leaf, jax.Array):
        return [bit_sum(leaf)]
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)  # the shards of keys are indexed as their numbers are
    strides = _strides(leaf.shape)
    return [
        bit_sum(
            shard.data,
            np.dot([part.start or 0 for part in shard.index], strides),
            strides,
        )
        for shard in leaf.addressable_shards
        if shard.replica_id == 0
    ]


def bit_sum(x: Any, first: Any = 0, strides: Any = None) -> jax.Array:
    """Σᵢ h(bits(xᵢ) ⊕ h(i)) modulo 2³², h a bijection of 32 bits that mixes them well.

    No bit can flip alone without changing it; elements that change places do not go unnoticed.

    Args:
      x: an array, or the part of one.
      first, strides: x[j] is element first + Σ strides·j of the whole; x is all of it by default.
    """
    strides = _strides(np.shape(x)) if strides is None else strides
    first, strides = (np.asarray(value, np.int64).astype(np.uint32) for value in (first, strides))
    return _bit_sum(x, first, strides)


@jax.jit
def _bit_sum(x: jax.Array, first: jax.Array, strides: jax.Array) -> jax.Array:
    place = functools.reduce(
        jnp.add,
        (
            strides[axis] * jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
            for axis in range(x.ndim)
        ),
        jnp.full(x.shape, first, jnp.uint32),
    )
    if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
        x = jax.random.key_data(x)
    if x.dtype == bool:
        x = x.astype(jnp.uint8)
    unsigned = {1: jnp.uint8, 2: jnp.uint16}.get(x.dtype.itemsize, jnp.uint32)
    bits = jax.lax.bitcast_convert_type(x, unsigned).astype(jnp.uint32)
    if words := bits.ndim - place.ndim:  # keys, and numbers of 64 bits, are several words each
        count = math.prod(bits.shape[-words:])
        within = jnp.arange(count, dtype=jnp.uint32).reshape(bits.shape[-words:])
        place = place.reshape(*place.shape, *(1,) * words) * jnp.uint32(count) + within
    return jnp.sum(_mixed(bits ^ _mixed(place)), dtype=jnp.uint32)


def _mixed(h: jax.Array) -> jax.Array:
    """The last step of MurmurHash3."""
    h = (h ^ (h >> 16)) * jnp.uint32(0x85EBCA6B)
    h = (h ^ (h >> 13)) * jnp.uint32(0xC2B2AE35)
    return h ^ (h >> 16)


def _strides(shape: tuple[int, ...]) -> np.ndarray:
    """In elements, of an array that is laid out row by row."""
    sizes = [1, *reversed(shape[1:])] if shape else []
    return np.cumprod(np.array(sizes, np.int64))[::-1]


def fingerprint(sums: Mapping[str, int], prefix: str) -> str:
    """16 hexadecimal digits that stand for the arrays below a path."""
    mine = {path: value for path, value in sums.items() if path.startswith(prefix)}
    return hashlib.sha256(json.dumps(mine, sort_keys=True).encode()).hexdigest()[:16]
