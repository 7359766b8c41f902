"""Accelerators by name: how many chips a name means, and what is said of one that is none."""

import math

import pytest

from t2g_jax.errors import T2GError
from t2g_jax.plan.topologies import CHIPS, SHAPES, topology


@pytest.mark.parametrize(
    ("name", "chips", "libtpu_name"),
    [
        ("v5e-16", 16, "v5e:4x4"),
        ("v5litepod-16", 16, "v5e:4x4"),
        ("v6e-8", 8, "v6e:2x4"),
        ("v6e-1", 1, "v6e:1x1"),
        ("v4-64", 32, "v4:2x4x4"),
        ("v5p-64", 32, "v5p:2x4x4"),
        ("v5p-8", 4, "v5p:2x2x1"),
        ("V5P-128", 64, "v5p:4x4x4"),
    ],
)
def test_slices(name, chips, libtpu_name):
    found = topology(name)
    assert (found.chips, found.libtpu_name) == (chips, libtpu_name)
    assert math.prod(found.shape) == chips


def test_gpus():
    assert topology("h200-8").chips == 8
    assert topology("a100-40gb-4").chip.memory == pytest.approx(0.92 * 40e9)
    assert topology("h100-8").link > 5 * topology("h100-16").link  # beyond a node: the network


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("v5e", "as in v5e-16 or h200-8; did you mean v5e-8?"),
        ("h20-8", "did you mean h200-8?"),
        (
            "potato-8",
            "h200-8. Known: v4, v5e, v5p, v6e, a100, a100-40gb, h100, h200, b200, l40s, l4",
        ),
        ("v5e-12", "v5e has v5e-1, v5e-4, v5e-8, v5e-16, v5e-32, v5e-64, v5e-128, v5e-256"),
        ("v5p-4", "v5p has v5p-8, v5p-16"),
        ("v4-12", "counts TensorCores, two to a chip"),
        ("h200-0", "not an accelerator"),
    ],
)
def test_other_names(name, expected):
    with pytest.raises(T2GError) as caught:
        topology(name)
    assert str(caught.value).startswith(f"--topology {name}: ")
    assert expected in str(caught.value)


def test_every_tpu_has_slices():
    assert {chip.name for chip in CHIPS.values() if chip.is_tpu} == set(SHAPES)
