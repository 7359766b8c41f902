"""The decoder against a loop-written oracle and `transformers`; packing, cache, remat, bfloat16."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t2g_jax.models import heads
from t2g_jax.models.decoder import Cache, Decoder, DecoderConfig

CONFIG = DecoderConfig(
    vocab_size=30,
    width=16,
    layers=2,
    heads=4,
    kv_heads=2,
    head_width=6,
    mlp_width=24,
    rope_theta=100.0,
    norm_epsilon=1e-4,
)


@pytest.fixture(scope="module")
def params():
    """Random, norm scales included, large enough for attention to be far from uniform."""
    rng = np.random.default_rng(0)
    params = jax.device_get(heads.init_params(CONFIG, jax.random.key(0))["decoder"])
    return jax.tree.map(lambda x: x + rng.normal(0, 0.2, x.shape).astype(x.dtype), params)


@functools.partial(jax.jit, static_argnames="config")
def run(params, tokens, positions, segment_ids, cache=None, *, config=CONFIG):
    return Decoder(config).apply({"params": params}, tokens, positions, segment_ids, cache)


def whole(params, tokens, *, config=CONFIG, first=0):
    """Hidden states [T, D] of one sequence [T], its positions from `first` on."""
    tokens = np.asarray(tokens)[None]
    positions = first + np.arange(tokens.shape[1])[None]
    return np.asarray(run(params, tokens, positions, np.ones_like(tokens), config=config)[0][0])


# ------------------------------------------------------------------ values


def rms_norm(x, scale):
    return x / np.sqrt(np.mean(x * x) + CONFIG.norm_epsilon) * scale


def rope(x, position):
    """Channel i of the first half is turned with channel i of the second half."""
    half = len(x) // 2
    turned = np.empty_like(x)
    for i in range(half):
        angle = position * CONFIG.rope_theta ** (-2 * i / len(x))
        cos, sin = np.cos(angle), np.sin(angle)
        turned[i] = x[i] * cos - x[i + half] * sin
        turned[i + half] = x[i + half] * cos + x[i] * sin
    return turned


def oracle(params, tokens):
    """The decoder in float64, a token, a head and a key at a time."""
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    residual = [params["embed"]["embedding"][token] for token in tokens]
    for index in range(CONFIG.layers):
        layer = jax.tree.map(lambda x, index=index: x[index], params["layers"])
        attention, mlp = layer["attention"], layer["mlp"]
        keys, values = [], []
        for t, x in enumerate(residual):
            normed = rms_norm(x, layer["attention_norm"]["scale"])
            k = np.einsum("d,dkh->kh", normed, attention["key"]["kernel"])
            keys.append([rope(head, t) for head in k])
            values.append(np.einsum("d,dkh->kh", normed, attention["value"]["kernel"]))
            q = np.einsum("d,dnh->nh", normed, attention["query"]["kernel"])
            mixed = []
            for n in range(CONFIG.heads):
                shared = n // (CONFIG.heads // CONFIG.kv_heads)
                query = rope(q[n], t) / np.sqrt(CONFIG.head_width)
                weights = np.exp([query @ keys[s][shared] for s in range(t + 1)])
                weights /= weights.sum()
                mixed.append(sum(w * values[s][shared] for s, w in enumerate(weights)))
            x = x + np.einsum("nh,nhd->d", np.array(mixed), attention["out"]["kernel"])
            normed = rms_norm(x, layer["mlp_norm"]["scale"])
            gate, up = normed @ mlp["gate"]["kernel"], normed @ mlp["up"]["kernel"]
            residual[t] = x + (gate / (1 + np.exp(-gate)) * up) @ mlp["down"]["kernel"]
    return np.array([rms_norm(x, params["final_norm"]["scale"]) for x in residual])


TOKENS = [3, 7, 7, 29, 0, 12, 5, 21]


def test_equals_a_loop_written_decoder(params):
    np.testing.assert_allclose(whole(params, TOKENS), oracle(params, TOKENS), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("tied", [True, False])
def test_equals_llama_of_transformers(tied):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = dataclasses.replace(CONFIG, tie_embeddings=tied)
    llama = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.width,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            num_key_value_heads=config.kv_heads,
            head_dim=config.head_width,
            intermediate_size=config.mlp_width,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
            rms_norm_eps=config.norm_epsilon,
            tie_word_embeddings=tied,
            attn_implementation="eager",
        )
    ).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in llama.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    theirs = {name: tensor.detach().numpy() for name, tensor in llama.named_parameters()}

    def stacked(name, *shape):
        """torch's [out, in] of every layer as [L, in, *out]."""
        weights = [theirs[f"model.layers.{i}.{name}.weight"].T for i in range(config.layers)]
        return np.stack(weights).reshape(config.layers, *(shape or weights[0].shape))

    by_head = (config.heads, config.head_width)
    by_kv_head = (config.kv_heads, config.head_width)
    attention = {
        "query": {"kernel": stacked("self_attn.q_proj", config.width, *by_head)},
        "key": {"kernel": stacked("self_attn.k_proj", config.width, *by_kv_head)},
        "value": {"kernel": stacked("self_attn.v_proj", config.width, *by_kv_head)},
        "out": {"kernel": stacked("self_attn.o_proj", *by_head, config.width)},
    }
    decoder = {
        "embed": {"embedding": theirs["model.embed_tokens.weight"]},
        "layers": {
            "attention": attention,
            "attention_norm": {"scale": stacked("input_layernorm")},
            "mlp": {n: {"kernel": stacked(f"mlp.{n}_proj")} for n in ("gate", "up", "down")},
            "mlp_norm": {"scale": stacked("post_attention_layernorm")},
        },
        "final_norm": {"scale": theirs["model.norm.weight"]},
    }
    ours = {"decoder": decoder}
    if not tied:
        ours["lm_head"] = {"kernel": theirs["lm_head.weight"].T}
    shapes = jax.eval_shape(lambda: heads.init_params(config, jax.random.key(0)))
    assert jax.tree.map(np.shape, ours) == jax.tree.map(np.shape, shapes)

    with torch.no_grad():
        expected = llama(torch.tensor([TOKENS])).logits[0].numpy()
    logits = whole(decoder, TOKENS) @ heads.lm_kernel(ours)
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)


def test_only_distances_between_positions_matter(params):
    near, far = whole(params, TOKENS), whole(params, TOKENS, first=40)
    np.testing.assert_allclose(near, far, rtol=1e-4, atol=1e-4)


def test_a_token_does_not_see_later_ones(params):
    a, b = whole(params, TOKENS), whole(params, TOKENS[:5] + [1, 2, 3])
    np.testing.assert_array_equal(a[:5], b[:5])
    assert np.abs(a[5:] - b[5:]).max(-1).min() > 0.1


# ------------------------------------------------------------------ structure


def test_layers_are_stacked_and_drawn_apart():
    params = heads.init_params(CONFIG, jax.random.key(0))["decoder"]["layers"]
    assert all(leaf.shape[0] == CONFIG.layers for leaf in jax.tree.leaves(params))
    assert params["attention"]["query"]["kernel"].shape == (2, 16, 4, 6)
    assert params["attention"]["key"]["kernel"].shape == (2, 16, 2, 6)
    assert params["attention"]["out"]["kernel"].shape == (2, 4, 6, 16)
    assert params["mlp"]["down"]["kernel"].shape == (2, 24, 16)
    gate = params["mlp"]["gate"]["kernel"]
    assert np.abs(gate[0] - gate[1]).max() > 0.1


def test_remat_changes_neither_values_nor_gradients(params):
    """In a row, and in an empty one."""
    tokens, positions = np.array([TOKENS, [0] * 8]), np.array([range(8), [0] * 8])
    segment_ids = np.array([[1] * 8, [0] * 8])

    def value_and_gradient(remat):
        decoder = Decoder(dataclasses.replace(CONFIG, remat=remat))

        def loss(params):
            hidden, _ = decoder.apply({"params": params}, tokens, positions, segment_ids)
            return jnp.sum(jnp.sin(hidden))

        return jax.jit(jax.value_and_grad(loss))(params)

    kept, recomputed = value_and_gradient(remat="products"), value_and_gradient(remat="full")
    for a, b in zip(jax.tree.leaves(kept), jax.tree.leaves(recomputed), strict=True):
        assert np.isfinite(a).all()
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_bfloat16_compute(params):
    config = dataclasses.replace(CONFIG, dtype=jnp.bfloat16)
    shapes = jax.eval_shape(lambda: heads.init_params(config, jax.random.key(0)))
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype(jnp.float32)}
    tokens = np.array([TOKENS])
    positions, ones = np.arange(8)[None], np.ones_like(tokens)
    hidden, (keys, values) = run(params, tokens, positions, ones, config=config)
    assert hidden.dtype == keys.dtype == values.dtype == jnp.bfloat16
    exact = whole(params, TOKENS)
    np.testing.assert_allclose(np.asarray(hidden[0], np.float32), exact, atol=0.1)
    assert Cache.empty(config, 1, 2).keys.dtype == jnp.bfloat16


def test_gradients_of_a_token_that_comes_often_add_up_in_bfloat16_too(params):
    """Summed in bfloat16 they would end at 256 times the first."""
    config = dataclasses.replace(CONFIG, layers=1, param_dtype=jnp.bfloat16)
    tokens, positions = np.full((2, 600), 7), np.tile(np.arange(600), (2, 1))
    one_layer = params | {"layers": jax.tree.map(lambda x: x[:1], params["layers"])}
    half = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), one_layer)

    @jax.grad
    def gradient(params):
        return run(params, tokens, positions, np.ones_like(tokens), config=config)[0].sum()

    exact = gradient(jax.tree.map(lambda x: x.astype(jnp.float32), half))
    found = gradient(half)["embed"]["embedding"]
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(
        found.astype(jnp.float32), exact["embed"]["embedding"], rtol=0.02, atol=1e-3
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kv_heads": 3}, "heads=4 is not a multiple of kv_heads=3"),
        ({"head_width": 5}, "head_width=5 must be even"),
    ],
)
def test_impossible_shapes_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CONFIG, **change)


# ------------------------------------------------------------------ segments and padding


def test_packed_equals_separate_rows(params):
    first, second = [4, 8, 15], [16, 23, 29, 1]
    tokens = np.array([first + second + [9]])
    positions = np.array([[0, 1, 2, 0, 1, 2, 3, 0]])
    segments = np.array([[1, 1, 1, 2, 2, 2, 2, 0]])
    hidden = run(params, tokens, positions, segments)[0][0]
    np.testing.assert_allclose(hidden[:3], oracle(params, first), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(hidden[3:7], oracle(params, second), rtol=1e-5, atol=1e-5)


def test_what_is_in_padding_does_not_leak(params):
    row, segments = [4, 8, 15, 16], np.array([[1, 1, 1, 1, 0, 0, 0, 0]])
    zeros = run(params, np.array([row + [0] * 4]), np.array([[0, 1, 2, 3] + [0] * 4]), segments)[0]
    other = run(params, np.array([row + [9, 29, 3, 7]]), np.arange(8)[None], segments)[0]
    np.testing.assert_array_equal(zeros[0, :4], other[0, :4])
    np.testing.assert_allclose(zeros[0, :4], oracle(params, row), rtol=1e-5, atol=1e-5)
    assert np.isfinite(other).all()


# ------------------------------------------------------------------ cache


def test_decoding_from_the_cache_equals_the_whole_row(params):
    """A prompt of 4 in a row of 8, then two tokens twice: the slots in between stay empty."""
    segments = np.array([[1, 1, 1, 1, 0, 0, 0, 0]])
    tokens = np.array([TOKENS])
    hidden, fresh = run(params, tokens, np.arange(8)[None], segments)
    cache = Cache.empty(CONFIG, 1, 14).write(fresh, np.arange(8)[None], segments, 0)
    pieces = [hidden[0, :4]]
    for start, slot in ((4, 8), (6, 11)):
        positions, ones = np.array([[start, start + 1]]), np.ones((1, 2), np.int32)
        hidden, fresh = run(params, tokens[:, start : start + 2], positions, ones, cache)
        cache = cache.write(fresh, positions, ones, slot)
        pieces.append(hidden[0])
    np.testing.assert_array_equal(cache.segment_ids, [[1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 0, 1, 1, 0]])
    np.testing.assert_allclose(np.concatenate(pieces), oracle(params, TOKENS), rtol=1e-5, atol=1e-5)


def test_the_cache_keeps_sequences_apart(params):
    """Slots of other sequences, and empty slots with garbage, are not attended to."""
    cache = Cache.empty(CONFIG, 1, 14)
    cache = Cache(cache.keys + 3.0, cache.values - 5.0, cache.positions, np.array([[0, 2] * 7]))
    ones = np.ones((1, 2), np.int32)
    hidden = run(params, np.array([[7, 3]]), np.array([[0, 1]]), ones, cache)[0][0]
    np.testing.assert_allclose(hidden, oracle(params, [7, 3]), rtol=1e-5, atol=1e-5)
