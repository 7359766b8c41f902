"""Memory of an update on TPU chips, by their compiler: it must not grow unseen.

libtpu compiles for chips that are not here. Where it is missing: pip install 't2g_jax[plan]'.
"""

import importlib.util
import os
from pathlib import Path

import pytest

from t2g_jax.config import load_config
from t2g_jax.plan import command
from t2g_jax.plan.topologies import topology

CONFIG = Path(__file__).parent / "mid.yaml"

PARAMETERS = 654_346_240
CHIPS = 4
# Bytes on a chip when this was written: all, and the temporaries beside gradients. By the compiler
# of JAX 0.10; that of 0.12 takes 0.07 GB more.
TOTAL = 4_268_000_000
TEMPORARIES = 995_000_000


@pytest.fixture(scope="module")
def update():
    if importlib.util.find_spec("libtpu") is None:
        assert os.environ.get("CI") != "true", "in CI the extra `plan` is installed"
        pytest.skip("the compiler for TPUs is missing: pip install 't2g_jax[plan]'")
    needs, mesh, basis = command.measured(load_config(CONFIG), topology("v5e-4"), "sft")
    assert (basis, mesh["fsdp"]) == ("compiled", CHIPS)
    (need,) = needs
    assert need.name == "update"
    return need


def test_an_update_takes_no_more_memory_than_it_did(update):
    """Arguments to the byte; all else within a tenth of what it was when this was written."""
    assert update.memory["weights"] == pytest.approx(4 * PARAMETERS / CHIPS, rel=1e-3)
    assert update.memory["optimizer"] == pytest.approx(8 * PARAMETERS / CHIPS, rel=1e-3)
    assert update.total < 1.1 * TOTAL
    assert update.total > 0.8 * TOTAL, "much less than it was: lower TOTAL, so that it stays so"


def test_nothing_of_the_vocabulary_is_whole_on_a_chip(update):
    """The embedding or the LM head, whole, even in bfloat16, would take half of this again."""
    assert update.memory["temporaries"] < 1.1 * TEMPORARIES


def test_layers_are_gathered_and_gradients_scattered_for_every_micro_batch(update):
    """Three times the weights in bfloat16, less a chip's own part, for two micro-batches."""
    weights = 2 * PARAMETERS * (CHIPS - 1) / CHIPS
    assert sum(update.network.values()) == pytest.approx(2 * 3 * weights, rel=0.1)
