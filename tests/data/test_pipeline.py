"""Pipelines: every record once an epoch, the same stream however it is cut, resumed or shared."""

import itertools
import json
import os
import subprocess
import sys

import pytest

from t2g_jax.data.dataset import load_dataset, write_dataset
from t2g_jax.data.pipeline import batches
from t2g_jax.data.records import AnnotationRecord
from t2g_jax.errors import T2GError

SOURCE = [f"r{i}" for i in range(23)]


def stream(**changes):
    return batches(SOURCE, **{"batch_size": 4, "seed": 0} | changes)


def take(iterator, count):
    return list(itertools.islice(iterator, count))


def flat(parts):
    return [record for part in parts for record in part]


def test_an_epoch_is_a_new_permutation():
    both = list(stream(epochs=2))
    first, second = flat(both[:5]), flat(both[5:])
    assert len(set(first)) == len(set(second)) == 20
    assert first != second
    assert sorted(flat(stream(epochs=1, drop_remainder=False))) == sorted(SOURCE)


def test_the_records_left_out_differ_by_epoch():
    many = stream(epochs=8)
    left_out = [set(SOURCE) - set(flat(take(many, 5))) for _ in range(8)]
    assert all(len(left) == 3 for left in left_out)
    assert len(set(map(frozenset, left_out))) > 1


def test_partial_batch_is_kept_on_request():
    sizes = [len(batch) for batch in stream(epochs=2, drop_remainder=False)]
    assert sizes == [4, 4, 4, 4, 4, 3] * 2


def test_order_without_shuffling():
    assert take(stream(shuffle=False), 6)[0] == SOURCE[:4]
    assert take(stream(shuffle=False), 6)[5] == SOURCE[:4]


def test_deterministic_given_the_seed():
    assert take(stream(), 12) == take(stream(prefetch=0), 12) == take(stream(prefetch=7), 12)
    assert take(stream(seed=1), 5) != take(stream(), 5)


def test_the_epochs_of_neighbouring_seeds_are_unrelated():
    """Seed 0's second epoch must not be seed 1's first."""
    assert take(stream(seed=0), 10)[5:] != take(stream(seed=1), 5)


def test_the_same_in_another_process():
    program = (
        "from t2g_jax.data.pipeline import batches; import itertools, json;"
        "source = [f'r{i}' for i in range(23)];"
        "print(json.dumps(list(itertools.islice(batches(source, batch_size=4, seed=0), 12))))"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", program]
    out = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert json.loads(out.stdout) == take(stream(), 12)


@pytest.mark.parametrize("stop", [0, 1, 4, 5, 6, 10, 13])
@pytest.mark.parametrize("prefetch", [0, 2])
def test_resumes_exactly_within_and_across_epochs(stop, prefetch):
    whole = take(stream(), 20)
    first = stream(prefetch=prefetch)
    assert take(first, stop) == whole[:stop]
    state = json.loads(json.dumps(first.get_state()))
    second = stream(prefetch=prefetch)
    second.set_state(state)
    assert second.get_state() == state
    assert take(second, 20 - stop) == whole[stop:]
    first.set_state(state)
    assert take(first, 20 - stop) == whole[stop:]


@pytest.mark.parametrize("step", [0, 3, 5, 11])
def test_seeking_goes_to_any_step_forwards_and_back(step):
    whole = take(stream(), 15)
    iterator = stream()
    take(iterator, 3)
    iterator.seek(step)
    assert iterator.get_state()["next_batch"] == step
    assert take(iterator, 4) == whole[step : step + 4]


def test_a_state_is_not_moved_by_prefetching():
    iterator = stream(prefetch=5)
    take(iterator, 2)
    assert iterator.get_state()["next_batch"] == 2


def test_a_finished_run_goes_on_with_more_epochs():
    done = stream(epochs=1)
    assert len(list(done)) == done.batches_per_epoch == 5
    more = stream(epochs=2)
    more.set_state(done.get_state())
    assert list(more) == take(stream(), 10)[5:]


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_share_each_batch(processes):
    parts = [stream(process_index=p, process_count=processes, epochs=3) for p in range(processes)]
    assert {part.batches_per_epoch for part in parts} == {5}
    assert [flat(step) for step in zip(*parts, strict=True)] == list(stream(epochs=3))


def test_resumes_on_another_number_of_processes():
    one = stream()
    take(one, 7)
    two = [stream(process_index=p, process_count=2) for p in range(2)]
    for part in two:
        part.set_state(one.get_state())
    assert [flat(step) for step in zip(*(take(part, 6) for part in two), strict=True)] == take(
        one, 6
    )


def test_a_state_of_another_pipeline_is_refused():
    state = stream().get_state()
    for change in ({"seed": 1}, {"batch_size": 2}, {"shuffle": False}, {"drop_remainder": False}):
        name = next(iter(change))
        with pytest.raises(T2GError, match=f"data cursor was saved with {name}"):
            stream(**change).set_state(state)
    with pytest.raises(T2GError, match="saved with records 23, this run has 9"):
        batches(SOURCE[:9], batch_size=4, seed=0).set_state(state)


def test_collate_makes_the_batch_and_its_errors_surface():
    assert next(stream(collate=" ".join, shuffle=False)) == "r0 r1 r2 r3"

    def broken(records):
        raise ValueError("ragged")

    with pytest.raises(ValueError, match="ragged"):
        next(stream(collate=broken))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 0}, "batch_size 0 is not a positive multiple"),
        ({"batch_size": 5, "process_count": 2}, "batch_size 5 is not a positive multiple of 2"),
        ({"process_index": 2, "process_count": 2}, r"process_index 2 is not in \[0, 2\)"),
        ({"drop_remainder": False, "process_count": 2}, "drop_remainder=False needs one process"),
        ({"batch_size": 24}, "23 records do not fill a batch of 24"),
    ],
)
def test_sizes_that_do_not_fit(changes, message):
    with pytest.raises(T2GError, match=message):
        stream(**changes)
    with pytest.raises(T2GError, match="0 records"):
        batches([], batch_size=1, seed=0, drop_remainder=False)


def test_records_on_disk_are_a_source(tmp_path):
    records = [
        AnnotationRecord(f"{i}", "p", "x", [1], "y", [i], [-1], "c", "j", 1, True, [0], [1], [1])
        for i in range(9)
    ]
    about = {"name": "toy", "description": "", "metadata": {}}
    source = load_dataset(write_dataset(tmp_path / "d", {"train": records}, **about), "train")
    options = {"batch_size": 2, "seed": 3, "collate": lambda rs: [r.id for r in rs]}
    assert take(batches(source, **options), 9) == take(batches(records, **options), 9)
