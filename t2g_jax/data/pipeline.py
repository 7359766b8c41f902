"""From a sequence of records to a resumable stream of batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import grain
import numpy as np

from t2g_jax.errors import T2GError

Record = TypeVar("Record")
Batch = TypeVar("Batch")


class BatchIterator(grain.DatasetIterator[Batch]):
    """A grain iterator whose state also says what it counts, so that it fits no other pipeline.

    `get_state()` is a JSON-able dict; `set_state` continues with exactly the batch that would have
    come next, within an epoch or across epochs, also on another number of processes.
    `batches_per_epoch` is the number of steps in one pass.
    """

    def __init__(self, parent: grain.DatasetIterator[Batch], batches_per_epoch: int, made_of: dict):
        super().__init__(parent)
        self._batches = parent
        self._made_of = made_of
        self.batches_per_epoch = batches_per_epoch
        self._next = 0

    def __next__(self) -> Batch:
        batch = next(self._batches)
        self._next += 1
        return batch

    def seek(self, step: int) -> None:
        """Makes batch `step`, counted from the start of the stream, the next one."""
        if self._next != step:
            self.set_state(self.get_state() | {"next_batch": step})

    def get_state(self) -> dict[str, Any]:
        return {"next_batch": int(self._batches.get_state()["next_index"]), **self._made_of}

    def set_state(self, state: dict[str, Any]) -> None:
        """Raises T2GError if the state is of another pipeline."""
        for name, value in self._made_of.items():
            if state.get(name) != value:
                raise T2GError(
                    f"the data cursor was saved with {name} {state.get(name)}, this run has "
                    f"{value}; resume with the data and settings of the first run, or start anew"
                )
        self._next = int(state["next_batch"])
        self._batches.set_state({"next_index": self._next})


def batches(
    source: Sequence[Record],
    *,
    batch_size: int,
    seed: int,
    shuffle: bool = True,
    epochs: int | None = None,
    collate: Callable[[Sequence[Record]], Any] = list,
    drop_remainder: bool = True,
    process_index: int = 0,
    process_count: int = 1,
    prefetch: int = 2,
) -> BatchIterator[Any]:
    """Shuffles, batches and repeats a source; every process reads its own part of each batch.

    Step k is the same set of records, in the same order, for any number of processes: process p of
    n gets the p-th of n equal parts. Each epoch is a new permutation, drawn from `seed` and the
    epoch alone.

    Args:
      source: anything with `len` and integer indexing.
      batch_size: records a step, over all processes together.
      seed: of the order.
      shuffle: False keeps the order of the source.
      epochs: passes over the source; None repeats for ever.
      collate: makes a batch out of the records; runs in a thread while the device computes.
      drop_remainder: True leaves out the len(source) mod batch_size records that do not fill a
        batch (the last of each epoch's own order, so others every epoch); False yields them as a
        smaller batch, for one process only.
      process_index, process_count: `jax.process_index()`, `jax.process_count()`.
      prefetch: batches made ahead; 0 makes each when asked for.

    Raises:
      T2GError: the sizes do not fit together.
    """
    records = len(source)
    if batch_size < 1 or batch_size % process_count:
        raise T2GError(
            f"batch_size {batch_size} is not a positive multiple of {process_count} processes"
        )
    if not 0 <= process_index < process_count:
        raise T2GError(f"process_index {process_index} is not in [0, {process_count})")
    if not drop_remainder and process_count > 1:
        raise T2GError(
            f"drop_remainder=False needs one process, there are {process_count}: the last batch "
            f"could not be shared out; use drop_remainder=True"
        )
    if records < (batch_size if drop_remainder else 1):
        raise T2GError(
            f"{records} records do not fill a batch of {batch_size}; lower batch_size or add data"
        )

    dataset = grain.MapDataset.source(source)
    if shuffle:
        # grain shuffles epoch e with seed + e; spread the seeds, or run 0's epoch 1 is run 1's
        # epoch 0.
        dataset = dataset.shuffle(seed=int(np.random.SeedSequence(seed).generate_state(1)[0]))
    if drop_remainder:
        dataset = dataset[: records - records % batch_size]
    dataset = dataset.batch(batch_size // process_count, batch_fn=collate)
    dataset = dataset[process_index::process_count]
    batches_per_epoch = len(dataset)
    iterator = iter(
        dataset.repeat(epochs).to_iter_dataset(
            grain.ReadOptions(num_threads=min(prefetch, 1), prefetch_buffer_size=prefetch)
        )
    )
    made_of = {
        "records": records,
        "batch_size": batch_size,
        "seed": seed,
        "shuffle": shuffle,
        "drop_remainder": drop_remainder,
    }
    return BatchIterator(iterator, batches_per_epoch, made_of)
