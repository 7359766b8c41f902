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
# of JAX 0.10, told to take little time.
TOTAL = 3_906_000_000
TEMPORARIES = 634_000_000


@pytest.fixture(scope="module", autouse=True)
def little_effort():
    """A seventh of the time, and within 4 % of the memory that a compilation in full plans."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_EXEC_TIME_OPTIMIZATION_EFFORT", "-1.0")
        yield


@pytest.fixture(scope="module")
def compiler():
    if importlib.util.find_spec("libtpu") is None:
        assert os.environ.get("CI") != "true", "in CI the extra `plan` is installed"
        pytest.skip("the compiler for TPUs is missing: pip install 't2g_jax[plan]'")


@pytest.fixture(scope="module")
def update(compiler):
    needs, mesh, basis = command.measure_programs(load_config(CONFIG), topology("v5e-4"), "sft")
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


def test_a_single_chip(compiler):
    """Of which libtpu takes a host to have four."""
    small = {"layers": 1, "width": 128, "heads": 1, "kv_heads": 1, "mlp_width": 128}
    config = load_config(CONFIG, [f"--model.{k}={v}" for k, v in small.items()])
    (need,), mesh, basis = command.measure_programs(config, topology("v5e-1"), "sft")
    assert (basis, mesh["fsdp"], need.fits) == ("compiled", 1, True)
    assert need.network == {}


def test_while_decoding_weights_stay_where_they_are(compiler):
    """A chip receives the layers that it lacks, once, its part of them in another layout, and then
    for each token sums after attention and MLP, and logits of its rows."""
    (sample,), _, _ = command.measure_programs(load_config(CONFIG), topology("v5e-4"), "evaluate")
    rows, new, layers, width, vocabulary = 128, 128, 8, 2048, 65536
    assert sample.shape == f"[{rows}, 384 + {new}]"
    weights = 2 * PARAMETERS * (CHIPS - 1) / CHIPS
    sums = 2 * 2 * layers * rows * width * 2
    token = (sums + 4 * rows / CHIPS * vocabulary) * (CHIPS - 1) / CHIPS
    expected = weights + weights / (CHIPS - 1) + new * token
    assert sum(sample.network.values()) == pytest.approx(expected, rel=0.1)
    # Both layouts of the weights are never there at once, beside what was stored.
    cache, copy = sample.memory["KV cache"], 2 * PARAMETERS / CHIPS
    assert sample.memory["temporaries"] < 3 * copy + cache
