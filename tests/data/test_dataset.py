"""Datasets: TFDS's own reader reads them, nothing half-written or damaged is ever read."""

import dataclasses
import pickle
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds

from t2g_jax.data.dataset import load_dataset, read_metadata, write_dataset
from t2g_jax.data.records import AnnotationRecord
from t2g_jax.errors import T2GError

METADATA = {"tokenizer": "bytes", "judge": {"level": "where"}}
ABOUT = {"name": "critiques", "description": "Toy critiques.", "metadata": METADATA}


def make(i):
    rng = np.random.default_rng(i)
    length, spans = 1 + i % 50, i % 3
    starts = rng.integers(0, length, spans)
    return AnnotationRecord(
        id=f"é{i}",
        prompt_id=f"p{i // 2}",
        prompt=f"prompt {i}",
        prompt_tokens=rng.integers(0, 50_000, 30),
        completion=f"completion {i}",
        completion_tokens=rng.integers(0, 50_000, length),
        completion_logprobs=-rng.random(length),
        critique="" if i % 2 else "Nearly \N{WARNING SIGN}",
        judge="programmatic",
        reward=rng.random(),
        correct=i % 2 == 1,
        span_starts=starts,
        span_ends=starts + 1,
        span_rewards=rng.normal(size=spans),
        unaligned=["x: not found"] * spans,
    )


@pytest.fixture
def directory(tmp_path):
    splits = {"train": (make(i) for i in range(300)), "test": [make(1), make(2)]}
    return write_dataset(tmp_path / "data" / "critiques", splits, **ABOUT)


def test_reads_back_exactly_and_in_order(directory):
    train = load_dataset(directory, "train")
    assert len(train) == 300
    assert list(train) == [make(i) for i in range(300)]
    assert train[-1] == make(299)
    assert train[10:13] == [make(10), make(11), make(12)]
    with pytest.raises(IndexError, match="record 300 of 300"):
        train[300]
    assert list(load_dataset(directory, "test")) == [make(1), make(2)]
    assert pickle.loads(pickle.dumps(train))[5] == make(5)
    assert read_metadata(directory) == METADATA
    assert sorted(p.name for p in directory.parent.iterdir()) == ["critiques"]


def test_tfds_reads_it(directory):
    builder = tfds.builder_from_directory(directory)
    source = builder.as_data_source("train")
    assert AnnotationRecord.from_example(source[3]) == make(3)
    assert builder.info.name == "critiques"
    assert builder.info.description == "Toy critiques."
    assert builder.info.file_format.value == "array_record"
    assert dict(builder.info.metadata) == METADATA


def test_needs_no_tensorflow_and_says_nothing(tmp_path):
    program = """
        import sys
        sys.path[:0] = {path!r}
        from t2g_jax.data.dataset import load_dataset, write_dataset
        from t2g_jax.data.records import AnnotationRecord
        r = AnnotationRecord("a", "p", "x", [1], "y", [2], [-1], "c", "j", 1, True, [0], [1], [1])
        write_dataset({out!r}, {{"train": [r]}}, name="toy", description="", metadata={{}})
        assert load_dataset({out!r}, "train")[0] == r
        assert "tensorflow" not in sys.modules
    """
    code = "\n".join(line.strip() for line in program.splitlines())
    code = code.format(path=[p for p in sys.path if p], out=str(tmp_path / "d"))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_what_cannot_be_written_leaves_nothing(tmp_path):
    def write(records, split="train", **about):
        return write_dataset(tmp_path / "d", {split: records}, **ABOUT | about)

    wrong = dataclasses.replace(make(5), reward=float("inf"))
    with pytest.raises(T2GError, match="record 'é5': reward is not finite"):
        write([make(0), make(1), wrong])
    with pytest.raises(T2GError, match="record 'é1' comes twice in split 'train'"):
        write([make(0), make(1), make(1)])
    with pytest.raises(T2GError, match="split 'train' has no records"):
        write([])
    with pytest.raises(T2GError, match="no splits"):
        write_dataset(tmp_path / "d", {}, **ABOUT)
    with pytest.raises(T2GError, match="'all' cannot name"):
        write([make(0)], split="all")
    with pytest.raises(T2GError, match="'My-Data' cannot name"):
        write([make(0)], name="My-Data")
    with pytest.raises(T2GError, match="metadata is not JSON"):
        write([make(0)], metadata={"x": {1, 2}})

    def judge_dies():
        yield make(0)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(judge_dies())
    assert list(tmp_path.iterdir()) == []


def test_a_killed_writer_leaves_nothing_that_is_read_or_in_the_way(tmp_path):
    left = tmp_path / "d.incomplete" / "critiques"
    left.mkdir(parents=True)
    (left / "half").write_text("half")
    with pytest.raises(T2GError, match="no dataset in"):
        load_dataset(tmp_path / "d", "train")
    write_dataset(tmp_path / "d", {"train": [make(0)]}, **ABOUT)
    assert [p.name for p in tmp_path.iterdir()] == ["d"]


def test_nothing_is_overwritten(directory):
    with pytest.raises(T2GError, match="is not empty; delete it"):
        write_dataset(directory, {"train": [make(9)]}, **ABOUT)
    assert len(load_dataset(directory, "train")) == 300


def test_missing_folder_or_split(directory, tmp_path):
    with pytest.raises(T2GError, match=r"no dataset in .*nowhere: there is no such folder"):
        load_dataset(tmp_path / "nowhere", "train")
    with pytest.raises(T2GError, match=r"the folder holds \['critiques'\]"):
        load_dataset(directory.parent, "train")
    with pytest.raises(T2GError, match=r"no split 'dev' in .*it has \['test', 'train'\]"):
        load_dataset(directory, "dev")
    with pytest.raises(T2GError, match="no dataset in"):
        read_metadata(tmp_path / "nowhere")


@pytest.mark.parametrize("keep", [0.0, 0.1, 0.5, 0.99])
def test_truncated_records_are_named(directory, keep):
    file = directory / "critiques-train.array_record-00000-of-00001"
    whole = file.read_bytes()
    file.write_bytes(whole[: int(len(whole) * keep)])
    with pytest.raises(T2GError, match=r"critiques-train\.array_record.*cannot be read.*copy the"):
        list(load_dataset(directory, "train"))
    assert len(list(load_dataset(directory, "test"))) == 2


def test_a_flipped_bit_is_named(directory):
    file = directory / "critiques-train.array_record-00000-of-00001"
    changed = bytearray(file.read_bytes())
    changed[len(changed) // 10] ^= 1
    file.write_bytes(changed)
    with pytest.raises(T2GError, match=r"critiques-train\.array_record.*hash mismatch"):
        list(load_dataset(directory, "train"))


def test_missing_and_truncated_files_are_named(directory):
    for name in ("features.json", "dataset_info.json", "metadata.json"):
        whole = (directory / name).read_bytes()
        (directory / name).write_bytes(whole[: len(whole) // 2])
        read = read_metadata if name == "metadata.json" else lambda d: load_dataset(d, "train")
        with pytest.raises(T2GError, match=r"(?s)critiques.*(damaged|cannot be read).*copy the"):
            read(directory)
        (directory / name).write_bytes(whole)
    (directory / "critiques-test.array_record-00000-of-00001").unlink()
    with pytest.raises(T2GError, match=r"critiques-test\.array_record-00000-of-00001 is missing"):
        load_dataset(directory, "test")
