"""From a sequence of records to the batches that each step of a training learns from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import grain
import numpy as np

from t2g_jax.errors import T2GError

Record = TypeVar("Record")
Batch = TypeVar("Batch")


class Batches(Generic[Batch]):
    """An endless stream of batches, shuffled anew for each epoch; processes share each batch.

    Step k is the same set of records, in the same order, for any number of processes: process p of
    n gets the p-th of n equal parts. Each epoch is a new permutation, drawn from `seed` and the
    epoch alone; the records that do not fill a last batch are left out, others every epoch. So a
    step says all that is needed to go on from it. `per_epoch` is the number of steps in a pass.

    Args:
      source: anything with `len` and integer indexing.
      batch_size: records a step, over all processes together.
      seed: of the order.
      collate: makes a batch out of the records; runs in a thread while the device computes.
      process_index, process_count: `jax.process_index()`, `jax.process_count()`.

    Raises:
      T2GError: the sizes do not fit together.
    """

    def __init__(
        self,
        source: Sequence[Record],
        *,
        batch_size: int,
        seed: int,
        collate: Callable[[Sequence[Record]], Any] = list,
        process_index: int = 0,
        process_count: int = 1,
    ):
        if batch_size < 1 or batch_size % process_count:
            raise T2GError(
                f"batch_size {batch_size} is not a positive multiple of {process_count} processes"
            )
        if not 0 <= process_index < process_count:
            raise T2GError(f"process_index {process_index} is not in [0, {process_count})")
        records = len(source)
        if records < batch_size:
            raise T2GError(
                f"{records} records do not fill a batch of {batch_size}; lower batch_size or add "
                "data"
            )
        # grain shuffles epoch e with seed + e; spread the seeds, or run 0's epoch 1 is run 1's
        # epoch 0.
        spread = int(np.random.SeedSequence(seed).generate_state(1)[0])
        dataset = grain.MapDataset.source(source).shuffle(seed=spread)
        dataset = dataset[: records - records % batch_size]
        dataset = dataset.batch(batch_size // process_count, batch_fn=collate)
        dataset = dataset[process_index::process_count]
        self.per_epoch = len(dataset)
        ahead = grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)
        self._iterator = iter(dataset.repeat().to_iter_dataset(ahead))
        self._next = 0

    def at(self, step: int) -> Batch:
        """The batch of a step, counted from the start of the stream; the next one is at hand."""
        if step != self._next:
            self._iterator.set_state({"next_index": step})
        self._next = step + 1
        return next(self._iterator)
