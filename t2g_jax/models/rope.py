"""Rotary position embedding, and how its frequencies are stretched to longer contexts.

"RoFormer", Su et al., arXiv 2104.09864.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Rope:
    """Frequencies θ^(−2i/H), and what became of them after training on `trained_length` tokens.

    kind: "default"; "linear" divides all frequencies by `factor`; "llama3" only the low ones, with
    a ramp between `low` and `high` turns per trained length; "yarn" (arXiv 2309.00071) likewise
    between `low` and `high` turns, and scales the rotated vectors by `magnitude`.
    """

    theta: float = 10_000.0
    kind: Literal["default", "linear", "llama3", "yarn"] = "default"
    factor: float = 1.0
    trained_length: float = 0
    low: float = 1.0
    high: float = 32.0
    magnitude: float = 1.0

    def frequencies(self, head_width: int) -> np.ndarray:
        """Angle per position [H/2] float32."""
        plain = 1 / self.theta ** (np.arange(0, head_width, 2, dtype=np.float32) / head_width)
        if self.kind == "default":
            kept = np.ones_like(plain)
        elif self.kind == "linear":
            kept = np.zeros_like(plain)
        elif self.kind == "llama3":
            turns = self.trained_length * plain / (2 * math.pi)
            kept = np.clip((turns - self.low) / (self.high - self.low), 0, 1)
        else:
            first = max(math.floor(self._pair(self.high, head_width)), 0)
            last = min(math.ceil(self._pair(self.low, head_width)), head_width - 1)
            pairs = np.arange(head_width // 2, dtype=np.float32)
            kept = 1 - np.clip((pairs - first) / max(last - first, 1e-3), 0, 1)
        return (plain * (kept + (1 - kept) / self.factor)).astype(np.float32)

    def _pair(self, turns: float, head_width: int) -> float:
        """The pair of channels that turns so often in the trained length."""
        length = self.trained_length / (turns * 2 * math.pi)
        return head_width * math.log(length) / (2 * math.log(self.theta))

    def rotation(self, positions: Array, head_width: int) -> tuple[Array, Array]:
        """(cos, sin) [B, T, H/2] float32 of the angles at positions [B, T], Eq. 15."""
        angles = positions[..., None].astype(jnp.float32) * self.frequencies(head_width)
        return self.magnitude * jnp.cos(angles), self.magnitude * jnp.sin(angles)


def rotate(x: Array, rotation: tuple[Array, Array]) -> Array:
    """Rotates [B, T, N, H] by angles given as (cos, sin) [B, T, H/2].

    Halves are paired as in Hugging Face checkpoints.
    """
    cos, sin = (part[:, :, None] for part in rotation)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], -1)
    return turned.astype(x.dtype)
