"""Annotation records on disk: a TFDS dataset of ArrayRecord files, without TensorFlow.

The folder is a plain TFDS dataset: `tfds.builder_from_directory(directory).as_data_source(split)`
reads it too.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import operator
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from t2g_jax.data.records import FLOATS, INTEGERS, TEXTS, AnnotationRecord, validate
from t2g_jax.errors import T2GError, reason
from t2g_jax.runtime import durable, files

VERSION = "1.0.0"


class DatasetError(T2GError):
    """A dataset that is not there, or is damaged."""


class Records(Sequence[AnnotationRecord]):
    """One split, read from disk record by record; a source for `pipeline.batches`."""

    def __init__(self, files: Sequence[str], split: str, source: Sequence[Mapping[str, Any]]):
        self._files, self._split, self._source = files, split, source

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        i = operator.index(index)
        if not -len(self) <= i < len(self):
            raise IndexError(f"record {i} of {len(self)} in split {self._split!r}")
        i %= len(self)
        with _damage_named(f"{', '.join(self._files)}: record {i}"):
            example = self._source[i]
        return AnnotationRecord.from_example(example)

    def __repr__(self) -> str:
        return f"Records({self._files}, {self._split!r}, {len(self)} records)"


def write_dataset(
    directory: str | os.PathLike[str],
    splits: Mapping[str, Iterable[AnnotationRecord]],
    *,
    name: str,
    description: str,
    metadata: Mapping[str, Any],
) -> Path:
    """Writes records, in the order given, as a TFDS dataset; all of it appears or none.

    It is built in `<directory>.incomplete`, which a killed run leaves behind and the next one
    clears, and renamed when complete.

    Args:
      directory: where the dataset goes; must not hold anything yet.
      splits: records by split name; may be generators, read once.
      name: name of the dataset, snake_case.
      description: what the records are, for people.
      metadata: JSON-able facts that readers need (tokenizer, judge, config hash …).

    Returns:
      The directory.

    Raises:
      T2GError: the directory is not empty; a name TFDS cannot hold; a split without records; a
        record that is not valid or whose id comes twice in its split.
    """
    directory = Path(directory)
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise T2GError(f"{directory} is not empty; delete it, or write the dataset elsewhere")
    if not splits:
        raise T2GError(f"no splits to write to {directory}; pass at least one")
    for label in (name, *splits):
        if not re.fullmatch(r"[a-z][a-z0-9_]*", label) or label == "all":
            raise T2GError(
                f"{label!r} cannot name a dataset or split; use lower-case letters, digits and _"
            )
    checked = {split: _checked(split, records) for split, records in splits.items()}
    try:
        metadata = json.loads(json.dumps(dict(metadata), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise T2GError(f"the metadata is not JSON: {error}") from error

    building = directory.with_name(directory.name + ".incomplete")
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir(parents=True)
    try:
        builder = _Builder(building, checked, name, description, metadata)
        # TFDS reports a download and draws progress bars; there is none to report.
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            builder.download_and_prepare()
        durable.appear(builder.data_dir, directory)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return directory


def load_dataset(directory: str | os.PathLike[str], split: str) -> Records:
    """Opens a split for random access.

    Raises:
      T2GError: no such directory or split (the splits there are named), or damaged files.
    """
    directory = Path(directory)
    if not (directory / "dataset_info.json").is_file():
        held = sorted(p.name for p in directory.iterdir())[:8] if directory.is_dir() else None
        found = "there is no such folder"
        if held is not None:
            found = f"there is no dataset_info.json, the folder holds {held}"
        raise DatasetError(
            f"no dataset in {directory}: {found}; annotate first, or correct the path"
        )
    with _damage_named(f"{directory / 'dataset_info.json'} or features.json"):
        builder = tfds.builder_from_directory(directory)
    if split not in builder.info.splits:
        raise DatasetError(
            f"no split {split!r} in {directory}; it has {sorted(builder.info.splits)}"
        )
    info = builder.info.splits[split]
    paths = [os.fspath(file) for file in info.filepaths]
    for file in paths:
        if not Path(file).is_file():
            raise DatasetError(f"{file} is missing; {_MEND}")
    with _damage_named(", ".join(paths)):
        source = builder.as_data_source(split)
        if len(source) != info.num_examples:
            raise ValueError(f"{len(source)} of {info.num_examples} records")
    return Records(paths, split, source)


def read_metadata(directory: str | os.PathLike[str]) -> dict[str, Any]:
    """The `metadata` that `write_dataset` was given.

    Raises:
      T2GError: there is none, or it is damaged.
    """
    path = Path(directory) / "metadata.json"
    if not path.exists():
        raise DatasetError(f"no dataset in {directory}; annotate first, or correct the path")
    try:
        return files.read_json(path, dict, mend=_MEND)
    except T2GError as error:
        raise DatasetError(str(error)) from error


_MEND = "copy the dataset again, or delete the folder and annotate again"


class _Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """`tfds.dataset_builders.AdhocBuilder` without its need for TensorFlow and Beam."""

    VERSION = tfds.core.Version(VERSION)
    # TFDS would look for download checksums beside the code, by way of importlib_resources, which
    # it does not install.
    code_path = None

    def __init__(self, data_dir, splits, name, description, metadata):
        self.name = name
        self._splits, self._description, self._metadata = splits, description, metadata
        super().__init__(data_dir=data_dir, file_format="array_record")

    def _info(self) -> tfds.core.DatasetInfo:
        def array(dtype):
            return tfds.features.Tensor(shape=(None,), dtype=dtype)

        return tfds.core.DatasetInfo(
            builder=self,
            description=self._description,
            metadata=tfds.core.MetadataDict(self._metadata),
            disable_shuffling=True,
            features=tfds.features.FeaturesDict(
                {name: tfds.features.Text() for name in TEXTS}
                | {name: array(np.int32) for name in INTEGERS}
                | {name: array(np.float32) for name in FLOATS}
                | {"reward": np.float32, "correct": np.int8}
                | {"unaligned": tfds.features.Sequence(tfds.features.Text())}
            ),
        )

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(records) for split, records in self._splits.items()}

    def _generate_examples(self, records):
        for index, record in enumerate(records):
            yield index, record.to_example()


def _checked(split: str, records: Iterable[AnnotationRecord]) -> Iterator[AnnotationRecord]:
    """The same records, validated as they pass; raises at once if there are none."""

    def each(records):
        seen = set()
        for record in records:
            validate(record)
            if record.id in seen:
                raise T2GError(f"record {record.id!r} comes twice in split {split!r}; drop one")
            seen.add(record.id)
            yield record

    checked = each(records)
    first = next(checked, None)
    if first is None:
        raise T2GError(f"split {split!r} has no records; leave it out")
    return itertools.chain([first], checked)


@contextlib.contextmanager
def _damage_named(what: str) -> Iterator[None]:
    """Readers raise their own kinds of errors; ours names the file and the fix."""
    try:
        yield
    except Exception as error:
        raise DatasetError(f"{what} cannot be read ({reason(error)}); {_MEND}") from error
