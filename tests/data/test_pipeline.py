"""Pipelines: every record once an epoch, the same stream however it is cut, resumed or shared."""

import json
import os
import subprocess
import sys

import pytest

from t2g_jax.data.dataset import load_dataset, write_dataset
from t2g_jax.data.pipeline import Batches
from t2g_jax.data.records import AnnotationRecord
from t2g_jax.errors import T2GError

SOURCE = [f"r{i}" for i in range(23)]


def stream(**changes):
    return Batches(SOURCE, **{"batch_size": 4, "seed": 0} | changes)


def take(batches, count, start=0):
    return [batches.at(step) for step in range(start, start + count)]


def flat(parts):
    return [record for part in parts for record in part]


def test_an_epoch_is_a_new_permutation():
    both = take(stream(), 10)
    first, second = flat(both[:5]), flat(both[5:])
    assert len(set(first)) == len(set(second)) == 20
    assert first != second


def test_the_records_left_out_differ_by_epoch():
    many = stream()
    assert many.per_epoch == 5
    left_out = [set(SOURCE) - set(flat(take(many, 5, 5 * epoch))) for epoch in range(8)]
    assert all(len(left) == 3 for left in left_out)
    assert len(set(map(frozenset, left_out))) > 1


def test_deterministic_given_the_seed():
    assert take(stream(), 12) == take(stream(), 12)
    assert take(stream(seed=1), 5) != take(stream(), 5)


def test_the_epochs_of_neighboring_seeds_are_unrelated():
    """Seed 0's second epoch must not be seed 1's first."""
    assert take(stream(seed=0), 5, 5) != take(stream(seed=1), 5)


def test_the_same_in_another_process():
    program = (
        "from t2g_jax.data.pipeline import Batches; import json;"
        "batches = Batches([f'r{i}' for i in range(23)], batch_size=4, seed=0);"
        "print(json.dumps([batches.at(step) for step in range(12)]))"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", program]
    out = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert json.loads(out.stdout) == take(stream(), 12)


@pytest.mark.parametrize("step", [0, 3, 5, 11])
def test_any_step_can_be_the_next_forwards_and_back(step):
    """Within an epoch and across epochs: as a run goes on that was stopped."""
    whole = take(stream(), 15)
    batches = stream()
    take(batches, 3)
    assert take(batches, 4, step) == whole[step : step + 4]
    assert take(stream(), 4, step) == whole[step : step + 4]


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_share_each_batch(processes):
    parts = [stream(process_index=p, process_count=processes) for p in range(processes)]
    assert {part.per_epoch for part in parts} == {5}
    shared = zip(*(take(part, 15) for part in parts), strict=True)
    assert [flat(step) for step in shared] == take(stream(), 15)


def test_collate_makes_the_batch_and_its_errors_surface():
    assert stream(collate=" ".join).at(0) == " ".join(stream().at(0))

    def broken(records):
        raise ValueError("ragged")

    with pytest.raises(ValueError, match="ragged"):
        stream(collate=broken).at(0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 0}, "batch_size 0 is not a positive multiple"),
        ({"batch_size": 5, "process_count": 2}, "batch_size 5 is not a positive multiple of 2"),
        ({"process_index": 2, "process_count": 2}, r"process_index 2 is not in \[0, 2\)"),
        ({"batch_size": 24}, "23 records do not fill a batch of 24"),
    ],
)
def test_sizes_that_do_not_fit(changes, message):
    with pytest.raises(T2GError, match=message):
        stream(**changes)
    with pytest.raises(T2GError, match="0 records"):
        Batches([], batch_size=1, seed=0)


def test_records_on_disk_are_a_source(tmp_path):
    records = [
        AnnotationRecord(f"{i}", "p", "x", [1], "y", [i], [-1], "c", "j", 1, True, [0], [1], [1])
        for i in range(9)
    ]
    about = {"name": "toy", "description": "", "metadata": {}}
    source = load_dataset(write_dataset(tmp_path / "d", {"train": records}, **about), "train")
    options = {"batch_size": 2, "seed": 3, "collate": lambda rs: [r.id for r in rs]}
    assert take(Batches(source, **options), 9) == take(Batches(records, **options), 9)
