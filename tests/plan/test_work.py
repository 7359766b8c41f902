"""FLOPs counted from shapes, against the compiler's count where no loop hides any."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from t2g_jax.config import MeshConfig
from t2g_jax.models import heads, lora
from t2g_jax.models.decoder import DecoderConfig
from t2g_jax.parallel.sharding import make_mesh
from t2g_jax.plan import work
from t2g_jax.training.batch import Batch
from t2g_jax.training.objective import Objective
from t2g_jax.training.terms import NLL, NLL_WEIGHT

ROWS, LENGTH = 4, 64
MODEL = DecoderConfig(
    vocab_size=512,
    width=256,
    layers=1,
    heads=8,
    kv_heads=4,
    head_width=32,
    mlp_width=768,
    tie_embeddings=False,
    remat="none",
    attention="xla",
)


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(MeshConfig(data=1), jax.devices()[:1])


def shapes(rank=0, model=MODEL):
    def init(key):
        params = heads.init_params(model, key)
        return lora.add_adapters(params, key, rank=rank) if rank else params

    return jax.eval_shape(init, jax.random.key(0))


def compiler_count(model, params, *, gradient):
    structure = ("tokens", "targets", "positions", "segment_ids")
    ints = jax.ShapeDtypeStruct((ROWS, LENGTH), jnp.int32)
    weights = jax.ShapeDtypeStruct((ROWS, LENGTH), jnp.float32)
    batch = Batch(**dict.fromkeys(structure, ints), fields={NLL_WEIGHT.name: weights})
    trained, frozen = lora.split(params)

    def loss(trained, frozen, batch):
        whole, objective = lora.join(trained, frozen), Objective((NLL(),))
        return objective(whole, batch, objective.denominators(batch), model=model)[0]

    function = jax.grad(loss) if gradient else loss
    compiled = jax.jit(function).lower(trained, frozen, batch).compile()
    return compiled.cost_analysis()["flops"]


def counted(model, params, mesh):
    return work.update_work(
        model,
        params,
        mesh,
        rows=ROWS,
        length=LENGTH,
        micro_batches=1,
        with_logits=True,
        state_bytes=0.0,
        gradient_bytes=0.0,
        passes_over_head=0,
    )


def unseen(backward):
    """Of the pairs that causal attention does not need and XLA's computes."""
    return ROWS * LENGTH * work.attention_flops(MODEL, LENGTH) * (3 if backward else 1)


def test_forward(mesh):
    params = shapes()
    found = work.forward_work(MODEL, params, mesh, rows=ROWS, length=LENGTH)
    expected = compiler_count(MODEL, params, gradient=False)
    assert found.flops + unseen(False) == pytest.approx(expected, rel=0.05)
    assert found.tokens == ROWS * LENGTH


@pytest.mark.parametrize("rank", [0, 8])
def test_update(mesh, rank):
    params = shapes(rank)
    found = counted(MODEL, params, mesh)
    expected = compiler_count(MODEL, params, gradient=True)
    assert found.flops + unseen(True) == pytest.approx(expected, rel=0.08)


def test_what_is_computed_again(mesh):
    """By `remat`, and by each further pass over the LM head."""
    params = shapes()
    executed = {
        remat: counted(dataclasses.replace(MODEL, remat=remat), params, mesh).executed
        for remat in ("none", "products", "full")
    }
    forward = ROWS * LENGTH * work.layer_flops(MODEL)
    pairs = ROWS * LENGTH * work.attention_flops(MODEL, LENGTH)
    assert executed["products"] - executed["none"] == pytest.approx(pairs)
    assert executed["full"] - executed["none"] == pytest.approx(forward + pairs)


def test_six_flops_a_parameter_and_token():
    """The rule of thumb for a large model, within the attention and the embedding."""
    model = dataclasses.replace(
        MODEL, width=4096, layers=32, heads=32, kv_heads=8, head_width=128, mlp_width=14336
    )
    a_token = 3 * (work.layer_flops(model) + work.head_flops(model))
    matrices = 32 * (4096 * 128 * (32 + 8) * 2 + 3 * 4096 * 14336) + 4096 * 512
    assert a_token == pytest.approx(6 * matrices)


def test_a_window_sees_less():
    local = dataclasses.replace(MODEL, window=8)
    assert work.attention_flops(local, 64) == work.attention_flops(MODEL, 64) / 4


def test_a_token_runs_through_a_few_experts():
    mixed = dataclasses.replace(MODEL, experts=16, experts_per_token=2)
    one = work.layer_flops(MODEL)
    mlp = 3 * 2 * 256 * 768
    assert work.layer_flops(mixed) == pytest.approx(one + mlp + 2 * 256 * 16)


def test_the_cache():
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    assert work.cache_bytes(MODEL, mesh, 8, 96) == 2 * 1 * 4 * 32 * 4 * 96 * 2
