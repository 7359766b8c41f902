"""Heads, the parameter tree, and the LM head tied to the embeddings or not."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t2g_jax.models import heads
from t2g_jax.models.decoder import DecoderConfig

TIED = DecoderConfig(
    vocab_size=20, width=8, layers=1, heads=2, kv_heads=1, head_width=4, mlp_width=12
)
UNTIED = dataclasses.replace(TIED, tie_embeddings=False)
BOTH = ("value_head", "span_head")


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_the_tree_holds_what_was_asked_for():
    def shapes(config, **kwargs):
        params = jax.eval_shape(lambda: heads.init_params(config, jax.random.key(0), **kwargs))
        return jax.tree.map(np.shape, params)

    assert set(shapes(TIED)) == {"decoder"}
    assert set(shapes(UNTIED)) == {"decoder", "lm_head"}
    assert shapes(UNTIED)["lm_head"] == {"kernel": (8, 20)}
    both = shapes(TIED, heads=BOTH)
    assert set(both) == {"decoder", "value_head", "span_head"}
    assert both["value_head"]["out"] == {"kernel": (8, 1), "bias": (1,)}
    assert both["span_head"]["out"] == {"kernel": (8, 3), "bias": (3,)}


def test_parameters_are_a_function_of_the_key():
    a, b, c = (heads.init_params(UNTIED, jax.random.key(seed), heads=BOTH) for seed in (0, 0, 1))
    assert_same(a, b)
    drawn = [  # norm scales start at 1, biases and the value head at 0
        np.array_equal(x, y)
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(c), strict=True)
        if np.ptp(x) > 0
    ]
    assert len(drawn) == 10
    assert not any(drawn)


def test_heads_are_added_beside_those_that_are_there():
    key = jax.random.key(1)
    params = {"decoder": {}, "span_head": {"out": {"kernel": jnp.ones((8, 3))}}}
    more = heads.add_heads(params, TIED, key, heads=BOTH)
    assert set(params) == {"decoder", "span_head"}, "the argument is left alone"
    assert set(more) == {"decoder", "span_head", "value_head"}
    assert more["span_head"] is params["span_head"]
    alone = heads.add_heads({}, TIED, key, heads=("span_head",))
    assert set(alone) == {"span_head"}
    assert_same(heads.add_heads({}, TIED, key, heads=BOTH)["span_head"], alone["span_head"])


def test_lm_kernel_tied_and_untied(rng):
    embedding, kernel = rng.normal(size=(20, 8)), rng.normal(size=(8, 20))
    tied = {"decoder": {"embed": {"embedding": embedding}}}
    np.testing.assert_array_equal(heads.lm_kernel(tied), embedding.T)
    assert heads.lm_kernel(tied | {"lm_head": {"kernel": kernel}}) is kernel


@pytest.mark.parametrize("config", [TIED, UNTIED])
def test_embeddings_learn_from_the_output_only_when_tied(config):
    params = heads.init_params(config, jax.random.key(0), heads=BOTH)
    tokens = jnp.array([[3, 5]])

    def loss(params):
        hidden = heads.hidden_states(
            params, config, tokens, jnp.array([[0, 1]]), jnp.ones_like(tokens)
        )
        return -jax.nn.log_softmax(hidden @ heads.lm_kernel(params))[0, :, 7].sum()

    gradient = jax.jit(jax.grad(loss))(params)["decoder"]["embed"]["embedding"]
    moved = set(np.flatnonzero(np.abs(gradient).max(-1) > 0))
    assert moved == (set(range(20)) if config is TIED else {3, 5})


@pytest.fixture
def params(rng):
    """A tree with the two small heads, drawn at random."""

    def linear(outputs):
        kernel, bias = rng.normal(size=(8, outputs)), rng.normal(size=outputs)
        return {"out": {"kernel": np.float32(kernel), "bias": np.float32(bias)}}

    return {"value_head": linear(1), "span_head": linear(3)}


def test_heads_are_linear(params, rng):
    hidden = np.float32(rng.normal(size=(2, 5, 8)))
    value, span = params["value_head"]["out"], params["span_head"]["out"]
    values = (hidden @ value["kernel"] + value["bias"])[..., 0]
    np.testing.assert_allclose(heads.values(params, hidden), values, rtol=1e-5, atol=1e-5)
    logits = hidden @ span["kernel"] + span["bias"]
    np.testing.assert_allclose(heads.span_logits(params, hidden), logits, rtol=1e-5, atol=1e-5)


def test_the_value_head_starts_at_zero(rng):
    params = heads.add_heads({}, TIED, jax.random.key(0), heads=("value_head",))
    hidden = np.float32(rng.normal(size=(2, 5, 8)))
    np.testing.assert_array_equal(heads.values(params, hidden), np.zeros((2, 5)))


def test_heads_compute_in_float32(params, rng):
    hidden = jnp.asarray(rng.normal(size=(1, 3, 8)), jnp.bfloat16)
    assert heads.values(params, hidden).dtype == jnp.float32
    logits = heads.span_logits(params, hidden)
    assert logits.dtype == jnp.float32
    wide = heads.span_logits(params, hidden.astype(jnp.float32))
    np.testing.assert_array_equal(logits, wide)
