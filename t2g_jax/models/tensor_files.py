"""Files of tensors in the safetensors format, read and written a tensor at a time.

The library of that name checks the files; but it maps or holds whole ones, and here what is larger
than memory is streamed. Pickled weights are never read.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors
from typing_extensions import TypedDict

from t2g_jax.errors import T2GError
from t2g_jax.models import formats
from t2g_jax.runtime import files

WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
ADAPTERS = "adapter_model.safetensors"
_BLOCK = 2**26
_PLACES, _PLACES_PER_TENSOR, _PLACE_BYTES = 16384, 8, 256
_TYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(jnp.bfloat16),
}
_NAMES = {dtype: name for name, dtype in _TYPES.items()}


@dataclasses.dataclass(frozen=True)
class Tensor:
    """One tensor of a file; nothing of it is in memory."""

    name: str
    file: Path
    shape: tuple[int, ...]
    dtype: np.dtype
    start: int
    """Offset of its bytes in the file."""

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def broken(self, dtype: Any) -> T2GError:
        """The error that values of it are not numbers, in the type that they are used in."""
        return T2GError(
            f"{self.file}: {self.name} has NaN or infinity in it (stored as {self.dtype.name}, "
            f"read as {np.dtype(dtype).name}), so nothing can be computed with it; fetch it again, "
            "or take a version that is sound"
        )

    def check_finite(self, dtype: Any) -> None:
        """Reads all of it, 64 MiB at a time.

        Raises:
          T2GError: it has NaN or infinity in it, or has in the given type.
        """
        rows = self.shape[0] if self.shape else 1
        step = max(1, rows * _BLOCK // max(self.bytes, 1))
        for at in range(0, rows, step):
            part = self.read((slice(at, at + step),) if self.shape else ())
            with np.errstate(over="ignore"):
                if not np.isfinite(part.astype(dtype)).all():
                    raise self.broken(dtype)

    def read(self, index: tuple[slice, ...] = ()) -> np.ndarray:
        """The tensor, or a part of it; of the file, only the rows of that part are read."""
        rows = index[0].indices(self.shape[0])[:2] if index and self.shape else (0, None)
        first, last = rows[0], self.shape[0] if rows[1] is None and self.shape else rows[1]
        row = math.prod(self.shape[1:])
        count = (last - first) * row if self.shape else 1
        start = self.start + first * row * self.dtype.itemsize
        values = np.fromfile(self.file, self.dtype, count, offset=start)
        if values.size != count:
            raise T2GError(f"{self.file} ends in the middle of {self.name}; fetch it again")
        values = values.reshape((last - first, *self.shape[1:]) if self.shape else ())
        return np.ascontiguousarray(values[(slice(None), *index[1:])]) if index else values


class _Index(TypedDict):
    weight_map: dict[str, str]


def tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of a Hugging Face folder by name, of one file or of many with an index.

    Raises:
      T2GError: there is no such file (other formats are named), one is missing, truncated or
        damaged, the index names a tensor that its file does not have, or a type is not a float.
    """
    whole, index = folder / WHOLE, folder / INDEX
    for file in whole, index:
        if os.path.lexists(file) and not file.is_file():
            what = "a folder" if file.is_dir() else "a link to a file that is not there"
            raise T2GError(f"{file} is {what}; fetch the model again")
    if whole.is_file():  # an index beside it is left from before, for `transformers` too
        wanted = {}
    elif index.is_file():
        where = files.read_json(index, _Index, mend="fetch it again")["weight_map"]
        wanted = {name: folder / Path(file).name for name, file in where.items()}
    else:
        raise T2GError(f"{folder} has neither {WHOLE} nor {INDEX}{formats.instead(folder)}")
    found: dict[str, Tensor] = {}
    for file in sorted(set(wanted.values())) or [whole]:
        found |= {t.name: t for t in of_file(file) if wanted.get(t.name, file) == file}
    missing = [name for name in wanted if name not in found]
    if missing:
        raise T2GError(
            f"{index} says that {missing[0]} is in {wanted[missing[0]].name}, which does not have "
            f"it ({len(missing)} such tensors); fetch both again"
        )
    return found


def fingerprint(folder: Path) -> str:
    """What tells a model's weights, or adapters, from others: 16 hexadecimal digits.

    Of the name, type and shape of each tensor and a sample of its bytes, evenly spread over it; how
    tensors are split into files does not matter, nor does any other file. Weights that were trained
    on have another; one changed value in a large tensor need not. At most 16,384 places of 256
    bytes are read, and one of each tensor if there are more: a second for the largest models.

    Raises:
      T2GError: as `tensors`.
    """
    is_model = (folder / WHOLE).is_file() or (folder / INDEX).is_file()
    lone = folder / ADAPTERS
    found = list(of_file(lone) if lone.is_file() and not is_model else tensors(folder).values())
    places = max(1, min(_PLACES_PER_TENSOR, _PLACES // max(len(found), 1)))
    digests = {}
    for file, stored in itertools.groupby(sorted(found, key=lambda t: t.file), lambda t: t.file):
        with open(file, "rb") as opened:
            for tensor in stored:
                digests[tensor.name] = _sampled(tensor, opened.fileno(), places)
    return hashlib.sha256(b"".join(digests[name] for name in sorted(digests))).hexdigest()[:16]


def write(
    folder: Path,
    contents: Sequence[tuple[str, tuple[int, ...]]],
    values: Iterator[np.ndarray],
    dtype: np.dtype,
    *,
    file_bytes: int,
    name: str = WHOLE,
    first: bool = True,
) -> None:
    """Writes tensors to files of at most `file_bytes`, with an index if they are several.

    Args:
      contents: name and shape of each, in order.
      values: of each, in that order; one is in memory at a time.
      dtype: of all.
      name: of the file, if it is one.
      first: whether this process writes; the others only go through `values`.
    """
    groups: list[list[tuple[str, tuple[int, ...]]]] = [[]]
    room = file_bytes
    for tensor, shape in contents:
        size = math.prod(shape) * dtype.itemsize
        if groups[-1] and size > room:
            groups.append([])
            room = file_bytes
        groups[-1].append((tensor, shape))
        room -= size
    where: dict[str, str] = {}
    for number, group in enumerate(groups, 1):
        file = name if len(groups) == 1 else f"model-{number:05d}-of-{len(groups):05d}.safetensors"
        where |= {tensor: file for tensor, _ in group}
        if not first:
            for _ in group:
                next(values)
            continue
        with open(folder / file, "wb") as out:
            out.write(_written_header(group, dtype))
            for tensor, shape in group:
                value = next(values)
                if value.shape != shape:
                    raise ValueError(f"{tensor} has shape {value.shape}, announced was {shape}")
                out.write(np.ascontiguousarray(value.astype(dtype)).tobytes())
    if first and len(groups) > 1:
        total = sum(math.prod(shape) * dtype.itemsize for _, shape in contents)
        index = {"metadata": {"total_size": total}, "weight_map": where}
        (folder / INDEX).write_text(json.dumps(index, indent=1) + "\n", "utf-8")


def of_file(file: Path) -> Iterator[Tensor]:
    """The tensors of one file. Raises as `tensors`."""
    if not file.is_file():
        raise T2GError(f"{file} is missing; fetch the model again")
    try:
        with safetensors.safe_open(file, framework="numpy"):  # checks it against its size
            pass
        with open(file, "rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            entries: Mapping[str, Any] = json.loads(opened.read(length))
    except (safetensors.SafetensorError, ValueError, OSError) as error:
        raise T2GError(f"{file} is truncated or damaged ({error}); fetch it again") from error
    for name, entry in entries.items():
        if name == "__metadata__":
            continue
        if entry["dtype"] not in _TYPES:
            raise T2GError(
                f"{file}: {name} is of type {entry['dtype']}; quantized weights cannot be trained: "
                "use the model's version in bfloat16"
            )
        start = 8 + length + entry["data_offsets"][0]
        yield Tensor(name, file, tuple(entry["shape"]), _TYPES[entry["dtype"]], start)


def _sampled(tensor: Tensor, file: int, places: int) -> bytes:
    """A digest of a tensor's header and of so many places of its bytes, its ends among them."""
    digest = hashlib.sha256(f"{tensor.name} {tensor.dtype.name} {tensor.shape}\n".encode())
    last = max(tensor.bytes - _PLACE_BYTES, 0)
    for n in range(places):
        at = last * n // max(places - 1, 1)
        digest.update(os.pread(file, min(_PLACE_BYTES, tensor.bytes), tensor.start + at))
    return digest.digest()


def _written_header(group: Sequence[tuple[str, tuple[int, ...]]], dtype: np.dtype) -> bytes:
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in group:
        start, end = end, end + math.prod(shape) * dtype.itemsize
        entries[name] = {"dtype": _NAMES[dtype], "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
