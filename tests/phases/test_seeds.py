"""Every seed is another run, and those below 2³² are what they always were."""

import jax
import numpy as np
import pytest

from t2g_jax.run.keys import key_of
from t2g_jax.tasks import make_task
from t2g_jax.tasks.base import TaskError


def test_small_seeds_are_keys_of_jax():
    for seed in (0, 1, 2**31, 2**32 - 1):
        np.testing.assert_array_equal(
            jax.random.key_data(key_of(seed)), jax.random.key_data(jax.random.key(seed))
        )


def test_large_seeds_are_keys_of_their_own():
    seeds = [0, 1, 2**32 - 1, 2**32, 2**32 + 1, 2**33, 2**63 - 1, 2**63, 2**64 - 1]
    keys = {tuple(jax.random.key_data(key_of(seed)).tolist()) for seed in seeds}
    assert len(keys) == len(seeds)


def test_a_seed_of_puzzles_is_not_taken_for_its_absolute_value():
    with pytest.raises(TaskError, match="seed \\(-1\\) must be at least 0"):
        make_task("binary_matrix", seed=-1)
