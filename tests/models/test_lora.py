"""Adapters against NumPy, through all layers, and what they leave alone."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from t2g_jax.models import heads, lora
from t2g_jax.models.decoder import Cache, Decoder, DecoderConfig, Linear

RANK = 3
CONFIG = DecoderConfig(
    vocab_size=20,
    width=16,
    layers=2,
    heads=4,
    kv_heads=2,
    head_width=6,
    mlp_width=24,
    lora_alpha=5.0,
)
SHAPES = {  # inputs and outputs of each adapted kernel
    "attention/query": ((16,), (4, 6)),
    "attention/key": ((16,), (2, 6)),
    "attention/value": ((16,), (2, 6)),
    "attention/out": ((4, 6), (16,)),
    "mlp/gate": ((16,), (24,)),
    "mlp/up": ((16,), (24,)),
    "mlp/down": ((24,), (16,)),
}
TOKENS = np.random.default_rng(1).integers(0, 20, (2, 9))


@pytest.fixture(scope="module")
def base():
    names = ("value_head", "span_head")
    return heads.init_params(CONFIG, jax.random.key(0), heads=names)


@pytest.fixture(scope="module")
def fresh(base):
    return lora.add_adapters(base, jax.random.key(1), rank=RANK)


@pytest.fixture(scope="module")
def adapted(fresh):
    """With a B that is not zero, different in each layer."""
    rng = np.random.default_rng(2)
    flat = flatten_dict(fresh)
    for path, leaf in flat.items():
        if path[-1] == "lora_b":
            flat[path] = jnp.float32(rng.normal(0, 0.3, leaf.shape))
    return unflatten_dict(flat)


@functools.partial(jax.jit, static_argnames="config")
def run(params, tokens, positions, segment_ids, cache=None, *, config=CONFIG):
    module = Decoder(config)
    return module.apply({"params": params["decoder"]}, tokens, positions, segment_ids, cache)


def hidden(params, config=CONFIG):
    positions = np.broadcast_to(np.arange(9), (2, 9))
    return np.asarray(run(params, TOKENS, positions, np.ones((2, 9), int), config=config)[0])


def leaves(params):
    return flatten_dict(params, sep="/")


# ------------------------------------------------------------------ values


def test_the_equation(rng):
    """x W + (α / r) (x A) B, a number at a time."""
    x, w, a, b = (
        rng.normal(size=shape).astype(np.float32) for shape in ((2, 4), (4, 5), (4, 3), (3, 5))
    )
    expected = np.zeros((2, 5))
    for t in range(2):
        narrow = [sum(x[t, i] * a[i, k] for i in range(4)) for k in range(3)]
        for j in range(5):
            wide = sum(x[t, i] * w[i, j] for i in range(4))
            expected[t, j] = wide + 7.0 / 3 * sum(narrow[k] * b[k, j] for k in range(3))
    layer = Linear(5, use_bias=False, lora_alpha=7.0, dtype=jnp.float32)
    kernels = {"kernel": w, "lora_a": a, "lora_b": b}
    np.testing.assert_allclose(layer.apply({"params": kernels}, x), expected, rtol=1e-5, atol=1e-5)
    plain = layer.apply({"params": {"kernel": w}}, x)
    np.testing.assert_allclose(plain, x @ w, rtol=1e-5, atol=1e-5)


def peft(kernel, a, b, inputs):
    """The kernel of a layer by peft's formula: weight + B A · α / r, in torch's layout."""
    weight = kernel.reshape(inputs, -1).T
    lora_a, lora_b = a.reshape(inputs, RANK).T, b.reshape(RANK, -1).T
    return (weight + lora_b @ lora_a * (CONFIG.lora_alpha / RANK)).T.reshape(kernel.shape)


@pytest.fixture(scope="module")
def by_hand(base, adapted):
    """Parameters with the adapters inside the kernels."""
    flat, merged = leaves(jax.device_get(adapted)), leaves(jax.device_get(base))
    for name, (inputs, _) in SHAPES.items():
        path = f"decoder/layers/{name}"
        parts = (flat[f"{path}/{leaf}"] for leaf in ("kernel", "lora_a", "lora_b"))
        rows = [peft(*layer, int(np.prod(inputs))) for layer in zip(*map(list, parts), strict=True)]
        merged[f"{path}/kernel"] = np.stack(rows)
    return unflatten_dict(merged, sep="/")


@pytest.mark.parametrize("remat", ["none", "products", "full"])
def test_adapters_act_as_if_they_were_in_the_kernels(base, adapted, by_hand, remat):
    config = dataclasses.replace(CONFIG, remat=remat)
    found = hidden(adapted, config)
    np.testing.assert_allclose(found, hidden(by_hand), rtol=1e-4, atol=1e-4)
    assert np.abs(found - hidden(base)).max() > 0.1


def test_merged(adapted, by_hand):
    merged = lora.merge_adapters(adapted, CONFIG)
    assert lora.rank(merged) == 0
    assert leaves(merged).keys() == leaves(by_hand).keys()
    for path, leaf in leaves(merged).items():
        np.testing.assert_allclose(leaf, leaves(by_hand)[path], rtol=1e-5, atol=1e-6, err_msg=path)
    np.testing.assert_allclose(hidden(merged), hidden(adapted), rtol=1e-4, atol=1e-4)


def test_decoding_with_a_cache(adapted):
    whole = hidden(adapted)
    cache = Cache.empty(CONFIG, 2, 9)
    for t in range(9):
        at = np.full((2, 1), t)
        ones = np.ones((2, 1), np.int32)
        out, new = run(adapted, TOKENS[:, t : t + 1], at, ones, cache)
        np.testing.assert_allclose(out[:, 0], whole[:, t], rtol=1e-4, atol=1e-4)
        cache = cache.write(new, at, ones, t)


def test_bfloat16(adapted):
    config = dataclasses.replace(CONFIG, dtype=jnp.bfloat16)
    out = hidden(adapted, config)
    assert out.dtype == jnp.bfloat16
    assert np.abs(out.astype(np.float32) - hidden(adapted)).mean() < 0.05


def test_alpha_and_rank_scale(adapted):
    """Twice the α is as twice the B."""
    twice = {path: 2 * x if path.endswith("lora_b") else x for path, x in leaves(adapted).items()}
    config = dataclasses.replace(CONFIG, lora_alpha=10.0)
    expected = hidden(unflatten_dict(twice, sep="/"))
    np.testing.assert_allclose(hidden(adapted, config), expected, rtol=1e-5, atol=1e-5)


# ------------------------------------------------------------------ fresh ones


def test_fresh_adapters_change_nothing(base, fresh):
    np.testing.assert_array_equal(hidden(fresh), hidden(base))


def test_what_fresh_adapters_are(base, fresh):
    new = leaves(fresh)
    for path, leaf in leaves(base).items():
        assert new.pop(path) is leaf
    for name, (inputs, outputs) in SHAPES.items():
        a, b = (np.asarray(new.pop(f"decoder/layers/{name}/lora_{x}")) for x in "ab")
        assert a.shape == (2, *inputs, RANK)
        assert b.shape == (2, RANK, *outputs)
        assert not b.any()
        bound = np.prod(inputs) ** -0.5
        assert 0.9 * bound < np.abs(a).max() <= bound
        assert np.abs(a.mean()) < 0.2 * bound
        assert (a[0] != a[1]).all()
    assert new == {}, "nothing else"


def test_fresh_adapters_are_a_function_of_the_key(base, fresh):
    gate, up = (fresh["decoder"]["layers"]["mlp"][name]["lora_a"] for name in ("gate", "up"))
    assert (gate != up).any()
    for seed, same in ((1, True), (2, False)):
        again = lora.add_adapters(base, jax.random.key(seed), rank=RANK)
        found = again["decoder"]["layers"]["mlp"]["gate"]["lora_a"]
        assert np.array_equal(found, gate) == same


# ------------------------------------------------------------------ what is trained


def test_the_reference_is_the_same_arrays(base, adapted):
    reference = lora.without_adapters(adapted)
    assert jax.tree.structure(reference) == jax.tree.structure(base)
    found = jax.tree.map(lambda mine, theirs: mine is theirs, reference, base)
    assert all(jax.tree.leaves(found))


def test_adapters_and_heads_are_trained(adapted):
    trained, frozen = lora.split(adapted)
    expected = {f"decoder/layers/{name}/lora_{matrix}" for name in SHAPES for matrix in "ab"}
    for head in ("value_head", "span_head"):
        expected |= {f"{head}/out/kernel", f"{head}/out/bias"}
    assert leaves(trained).keys() == expected
    assert leaves(frozen).keys() == leaves(adapted).keys() - expected
    joined = leaves(lora.join(trained, frozen))
    assert joined.keys() == leaves(adapted).keys()
    assert all(leaf is leaves(adapted)[path] for path, leaf in joined.items())


def test_without_adapters_everything_is_trained(base):
    assert lora.split(base) == (base, {})
    assert lora.join(base, {}) is base
    assert (lora.rank(base), lora.rank(lora.add_adapters(base, jax.random.key(0), rank=7))) == (
        0,
        7,
    )


def test_gradients_reach_all_adapters(adapted):
    trained, frozen = lora.split(adapted)

    @jax.jit
    @jax.grad
    def gradient(trained):
        out = run(lora.join(trained, frozen), TOKENS, TOKENS * 0, np.ones((2, 9), int))[0]
        return jnp.sum(out**3)

    for path, leaf in leaves(gradient(trained)).items():
        assert (np.abs(leaf) > 0).any() == path.startswith("decoder"), path
