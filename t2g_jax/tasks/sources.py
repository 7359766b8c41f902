"""Where rows come from: JSON lines, Parquet, TFDS, or a dataset of Hugging Face `datasets`.

Rows are read one after the other, as `Row`s with the file and line that they stand in; what cannot
be read as a row has its reason instead of values.
"""

from __future__ import annotations

import dataclasses
import glob
import gzip
import json
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from t2g_jax import user_code
from t2g_jax.errors import T2GError, reason
from t2g_jax.installation import pip_install
from t2g_jax.runtime.files import expanded, unreadable

_LINES = (".jsonl", ".ndjson", ".json", ".jsonl.gz", ".ndjson.gz", ".json.gz")
_AT_ONCE = 1024
"""Rows of a Parquet file in memory."""


@dataclasses.dataclass(frozen=True)
class Row:
    """A row as it was read: its `values` by column, or the `problem` that there is none.

    source, line: the file, or name of the dataset, and the line, or number of the row, from 1.
    """

    source: str
    line: int
    values: dict[str, Any] | None = None
    problem: str = ""


@dataclasses.dataclass(frozen=True)
class Source:
    """Rows that a config names.

    name: a file, several by a pattern with `*`, a folder, a hub id, or the name of a TFDS dataset;
      `tfds:NAME` and `hf:NAME` say which of the two it is.
    split: of a dataset, as its library writes it: `train`, `train[:1000]`.
    config, revision: of a dataset on the hub.
    """

    name: str
    split: str | None = None
    config: str | None = None
    revision: str | None = None

    def rows(self, default_split: str) -> Iterator[Row]:
        """All rows, in their order.

        Raises:
          T2GError: there is no such file or dataset, or the library that reads it is missing.
        """
        kind, name = self._resolved()
        if kind in ("lines", "parquet") and (self.split or self.config or self.revision):
            raise T2GError(
                f"{name} is a file, and has no split, config or revision; leave them out"
            )
        match kind:
            case "lines":
                yield from _lines(name)
            case "parquet":
                yield from _parquet(name)
            case "tfds":
                yield from self._tfds(name, default_split)
            case _:
                yield from self._hugging_face(name, default_split)

    def files(self) -> Iterator[Source]:
        """The single files of a pattern, or the source itself."""
        if "*" not in self.name:
            yield self
            return
        found = sorted(glob.glob(str(expanded(self.name))))
        if not found:
            beside = (os.path.join(folder, self.name) for folder in user_code.folders())
            found = next((hits for hits in map(sorted, map(glob.glob, beside)) if hits), [])
        if not found:
            raise T2GError(f"there is no file {self.name} (in {os.getcwd()})")
        yield from (dataclasses.replace(self, name=name) for name in found)

    def _resolved(self) -> tuple[str, str]:
        """What it is, and its path or name."""
        for prefix in ("tfds", "hf"):
            if self.name.startswith(f"{prefix}:"):
                return prefix, self.name.removeprefix(f"{prefix}:")
        path = user_code.find_path(expanded(self.name))
        is_lines, is_parquet = path.endswith(_LINES), path.endswith(".parquet")
        if os.path.isdir(path):
            return ("tfds" if (Path(path) / "features.json").is_file() else "hf"), path
        if is_lines or is_parquet or os.path.isfile(path):
            if not os.path.isfile(path):
                raise T2GError(f"there is no file {self.name} (in {os.getcwd()})")
            if not is_lines and not is_parquet:
                raise T2GError(f"{path}: rows are read from {', '.join(_LINES)} and .parquet")
            return ("lines" if is_lines else "parquet"), path
        if self.name.startswith((".", "/", "~")):
            raise T2GError(f"there is no folder {self.name} (in {os.getcwd()})")
        return ("hf" if "/" in self.name else "tfds"), self.name

    def _tfds(self, name: str, default_split: str) -> Iterator[Row]:
        import tensorflow_datasets as tfds  # takes a while

        split = self.split or default_split
        if self.config or self.revision:
            raise T2GError(f"{name}: config and revision are for the hub; TFDS has NAME/CONFIG")
        try:
            if os.path.isdir(name):
                source = tfds.builder_from_directory(name).as_data_source(split)
            else:
                source = tfds.data_source(name, split=split)
        except Exception as error:  # of many kinds
            raise _unavailable(f"TFDS dataset {name!r}, split {split!r}", error) from error
        yield from _decoded((source[i] for i in range(len(source))), f"{name}[{split}]")

    def _hugging_face(self, name: str, default_split: str) -> Iterator[Row]:
        try:
            import datasets
        except ModuleNotFoundError as error:
            raise T2GError(
                f"{name} is a folder or hub id of Hugging Face `datasets`, which is not "
                f"installed: {pip_install('datasets')}; a file is named with its .jsonl or "
                ".parquet, a TFDS dataset as tfds:NAME"
            ) from error
        split = self.split or default_split
        try:
            if (Path(name) / "state.json").is_file():  # saved without splits
                if self.split is not None:
                    raise T2GError(f"{name} is a dataset without splits; leave `split` out")
                rows = datasets.load_from_disk(name)
            elif (Path(name) / "dataset_dict.json").is_file():
                rows = datasets.load_from_disk(name)[split]
            else:
                rows = datasets.load_dataset(name, self.config, split=split, revision=self.revision)
        except T2GError:
            raise
        except Exception as error:  # of many kinds
            raise _unavailable(f"dataset {name!r}, split {split!r}", error) from error
        yield from _decoded(rows, f"{name}[{split}]")


def _lines(path: str) -> Iterator[Row]:
    opened = gzip.open if path.endswith(".gz") else open
    try:
        with opened(path, "rb") as file:
            for number, line in enumerate(file, start=1):
                if number == 1:
                    line = line.removeprefix(b"\xef\xbb\xbf")  # as some editors begin a file
                if not line.strip():
                    continue
                if number == 1 and line.lstrip().startswith(b"["):
                    raise T2GError(f"{path} is a JSON array; write one object on each line")
                yield _parsed(path, number, line)
    except EOFError as error:
        raise T2GError(f"{path} is cut short: {error}") from error
    except zlib.error as error:
        raise T2GError(f"{path} is damaged: {error}") from error
    except OSError as error:
        raise unreadable(path, error) if error.strerror else T2GError(f"{path}: {error}") from error


def _parsed(path: str, number: int, line: bytes) -> Row:
    try:
        values = _DECODER.decode(line.decode("utf-8"))
    except UnicodeDecodeError:
        return Row(path, number, problem="not UTF-8 text")
    except (ValueError, RecursionError) as error:
        return Row(path, number, problem=f"not JSON: {reason(error)}")
    if not isinstance(values, dict):
        return Row(path, number, problem=f"{user_code.shown(values)}, not an object {{…}}")
    return Row(path, number, values)


def _parquet(path: str) -> Iterator[Row]:
    import pyarrow.parquet  # takes a while

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=_AT_ONCE):
                for values in batch.to_pylist():
                    number += 1
                    yield _row(path, number, values)
    except (OSError, pyarrow.ArrowException) as error:
        raise T2GError(f"{path} cannot be read as Parquet: {reason(error)}") from error


def _decoded(rows: Iterable[Mapping[str, Any]], source: str) -> Iterator[Row]:
    """The rows of a dataset, which its library decodes when they are asked for."""
    number = 0
    try:
        for values in rows:
            number += 1
            yield _row(source, number, values)
    except Exception as error:  # of many kinds: a picture that is none
        raise _unavailable(f"row {number + 1} of {source}", error) from error


def _row(source: str, number: int, values: Mapping[str, Any]) -> Row:
    return Row(source, number, {name: _plain(value) for name, value in values.items()})


def _plain(value: Any) -> Any:
    """Arrays, dates and bytes of text as JSON can hold them; anything else as it is."""
    if isinstance(value, bytes):
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError:
            return value
    if isinstance(value, Mapping):
        return {name: _plain(inside) for name, inside in value.items()}
    if callable(to_list := getattr(value, "tolist", None)):  # of numpy
        value = to_list()
        return _plain(value) if isinstance(value, bytes | list) else value
    if isinstance(value, list | tuple):
        return [_plain(inside) for inside in value]
    if callable(to_text := getattr(value, "isoformat", None)):
        return to_text()
    return value


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON, whose keys must differ: which of two values is meant nobody knows."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice!r} occurs twice")
    return found


_DECODER = json.JSONDecoder(parse_constant=_no_constant, object_pairs_hook=_object)


def _unavailable(what: str, error: Exception) -> T2GError:
    return T2GError(f"the {what} cannot be had: {type(error).__name__}: {reason(error)[:300]}")
