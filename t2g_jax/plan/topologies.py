"""Accelerators by the names that people rent them by: what a chip has, and how many there are.

topology("v5e-16")     16 chips of TPU v5e
topology("v5p-64")     32 chips of TPU v5p: Google counts TensorCores there, two to a chip
topology("h200-8")     8 GPUs
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re

from t2g_jax.errors import T2GError

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One chip, as its maker describes it.

    memory: bytes that programs can use. flops: bfloat16 products without sparsity, a second.
    bandwidth: of its memory, bytes a second. link: bytes a second that it can send to its
    neighbors, over all links. device_kind: what JAX calls it.
    """

    name: str
    memory: float
    flops: float
    bandwidth: float
    link: float
    device_kind: str
    is_tpu: bool = False
    cores: int = 1
    """TensorCores of a chip, where names count these."""
    clock: float = 0.0
    """Cycles a second, where the compiler counts in cycles; 0: it does not."""


# TPUs: cloud.google.com/tpu/docs; memory is what libtpu's compiler leaves to programs.
# GPUs: NVIDIA's data sheets, SXM where there is one; memory as the launch scripts set it, 92 %: the
# rest is for CUDA and libraries.
CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v4", 30.75 * GIB, 275e12, 1228e9, 300e9, "TPU v4", True, 2, 1.05e9),
        Chip("v5e", 15.75 * GIB, 197e12, 819e9, 200e9, "TPU v5 lite", True, 1, 1.5e9),
        Chip("v5p", 95.73 * GIB, 459e12, 2765e9, 600e9, "TPU v5", True, 2, 1.75e9),
        Chip("v6e", 31.24 * GIB, 918e12, 1640e9, 400e9, "TPU v6 lite", True),
        Chip("a100", 0.92 * 80e9, 312e12, 2039e9, 300e9, "A100"),
        Chip("a100-40gb", 0.92 * 40e9, 312e12, 1555e9, 300e9, "A100"),
        Chip("h100", 0.92 * 80e9, 989e12, 3350e9, 450e9, "H100"),
        Chip("h200", 0.92 * 141e9, 989e12, 4800e9, 450e9, "H200"),
        Chip("b200", 0.92 * 180e9, 2250e12, 7700e9, 900e9, "B200"),
        Chip("l40s", 0.92 * 48e9, 362e12, 864e9, 32e9, "L40S"),
        Chip("l4", 0.92 * 24e9, 121e12, 300e9, 32e9, "L4"),
    )
}

NODE = 8
"""GPUs that are linked with each other; a larger number is over the network."""
NETWORK = 50e9
"""Bytes a second to other nodes, for each GPU: 400 Gbit/s."""

_FLAT = ((1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16))
_CUBES = (
    *((2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4), (4, 4, 4), (4, 4, 8), (4, 8, 8), (8, 8, 8)),
    *((8, 8, 16), (8, 16, 16), (16, 16, 16), (16, 16, 24)),
)
SHAPES = {"v5e": _FLAT, "v6e": _FLAT, "v4": _CUBES[:10], "v5p": _CUBES}
"""Slices that there are plans for, as chips along each side."""

NAMING = """\
A name is the accelerator type: v5e-16 and v6e-16 are 16 chips, as Google counts chips there;
v4-64 and v5p-64 are 32 chips, as it counts TensorCores there, two to a chip (v5p-8, the smallest,
is 4 chips). h200-8 is 8 GPUs. JAX sees a chip as one device, so mesh axes multiply to chips."""


@dataclasses.dataclass(frozen=True)
class Topology:
    """A slice of TPU chips, or a number of GPUs.

    shape: chips along each side of a slice, () for GPUs.
    """

    name: str
    chip: Chip
    chips: int
    shape: tuple[int, ...] = ()

    @property
    def libtpu_name(self) -> str:
        """What libtpu calls the slice: v5e:4x4."""
        return f"{self.chip.name}:{'x'.join(map(str, self.shape))}"

    @property
    def link(self) -> float:
        """Bytes a second that a chip can send to others."""
        return self.chip.link if self.chip.is_tpu or self.chips <= NODE else NETWORK


def topology(name: str) -> Topology:
    """The topology of a name.

    Raises:
      T2GError: there is none of that name; known ones are named.
    """
    found = re.fullmatch(r"(.+)-(\d+)", name.strip().lower().replace("v5litepod", "v5e"))
    kind, count = (found[1], int(found[2])) if found else (name.strip().lower(), 0)
    if kind not in CHIPS or not count:
        near = difflib.get_close_matches(kind, CHIPS, n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]}-{count or 8}?" if near else "."
        raise T2GError(
            f"--topology {name}: not an accelerator and how many of it, as in v5e-16 or h200-8"
            f"{hint} Known: {', '.join(CHIPS)}"
        )
    chip = CHIPS[kind]
    if not chip.is_tpu:
        return Topology(f"{kind}-{count}", chip, count)
    by_size = {math.prod(shape) * chip.cores: shape for shape in SHAPES[kind]}
    if count not in by_size:
        raise T2GError(
            f"--topology {name}: there is no plan for such a slice. {kind} has "
            f"{', '.join(f'{kind}-{size}' for size in by_size)}"
            + ("; the number counts TensorCores, two to a chip" if chip.cores == 2 else "")
        )
    shape = by_size[count]
    return Topology(f"{kind}-{count}", chip, math.prod(shape), shape)
