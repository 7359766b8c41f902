"""The random keys of a run: one for each purpose, from one seed."""

from __future__ import annotations

import dataclasses
import zlib

import jax


@dataclasses.dataclass(frozen=True)
class Keys:
    """PRNG keys and seeds by purpose; purposes do not disturb each other.

    >>> Keys(0).seed("sft") == Keys(0).seed("sft") != Keys(1).seed("sft")
    True
    """

    run_seed: int

    def key(self, purpose: str) -> jax.Array:
        """The PRNG key of a purpose."""
        return jax.random.fold_in(key_of(self.run_seed), zlib.crc32(purpose.encode()))

    def at_step(self, purpose: str, step: int, turn: int = 0) -> jax.Array:
        """The PRNG key of a step, and of a turn in it."""
        return jax.random.fold_in(jax.random.fold_in(self.key(purpose), step), turn)

    def seed(self, purpose: str) -> int:
        """A seed for libraries that do not take JAX keys."""
        return zlib.crc32(f"{self.run_seed}/{purpose}".encode())


def key_of(seed: int) -> jax.Array:
    """The PRNG key of a seed of any size: `jax.random.key` takes the last 32 bits alone."""
    seed, low = divmod(seed, 2**32)
    key = jax.random.key(low)
    while seed:
        seed, low = divmod(seed, 2**32)
        key = jax.random.fold_in(key, low)
    return key
