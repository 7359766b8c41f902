from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from jax.test_util import check_grads

from t2g_jax import kl
from t2g_jax.chunked import HeadSharding
from t2g_jax.logprobs import (
    LogProbs,
    distillation_from_hidden,
    full_kl_from_hidden,
    token_logprobs,
    token_logprobs_from_hidden,
    token_logprobs_from_logits,
    top_k_distillation_from_hidden,
)
from t2g_jax.losses import logit_distillation, top_k_distillation
from t2g_jax.reductions import masked_mean

ROWS, TOKENS, WIDTH, VOCABULARY = 4, 3, 5, 24
CHUNKS = (5, 8)  # the last chunk overlaps the one before, and fits exactly

STATIC = ("chunk_size", "vocab_shards", "with_entropy")
hidden_logprobs = jax.jit(token_logprobs_from_hidden, static_argnames=STATIC)
hidden_kl = jax.jit(full_kl_from_hidden, static_argnames=STATIC[:2])


@pytest.fixture
def head(rng):
    return {
        "hidden": rng.normal(size=(ROWS, TOKENS, WIDTH)).astype(np.float32),
        "kernel": rng.normal(size=(WIDTH, VOCABULARY)).astype(np.float32),
        "tokens": rng.integers(0, VOCABULARY, (ROWS, TOKENS)),
    }


@pytest.fixture
def cutoff(rng):
    """Some positions truncated, some so much that only the token is left, some not at all."""
    return np.resize([-2.9, -3.3, 0.0, -np.inf], (ROWS, TOKENS)).astype(np.float32)


def _loop(hidden, kernel, tokens, temperature=1.0, cutoff=None):
    """One token at a time, in float64."""
    logprobs, entropy = np.zeros(tokens.shape), np.zeros(tokens.shape)
    for index in np.ndindex(*tokens.shape):
        logits = hidden[index].astype(np.float64) @ kernel / temperature
        log_probs = logits - np.log(np.sum(np.exp(logits)))
        keep = np.ones(len(logits), bool) if cutoff is None else log_probs >= cutoff[index]
        keep[tokens[index]] = True
        log_probs -= np.log(np.sum(np.exp(log_probs[keep])))
        logprobs[index] = log_probs[tokens[index]]
        entropy[index] = -np.sum(np.exp(log_probs[keep]) * log_probs[keep])
    return LogProbs(logprobs, entropy)


def _assert_close(actual, desired, tolerance=1e-5):
    jax.tree.map(
        partial(np.testing.assert_allclose, rtol=tolerance, atol=tolerance), actual, desired
    )


def _mixed(result, rng_seed=1):
    """A scalar to which every output contributes, each with its own weight."""
    rng = np.random.default_rng(rng_seed)
    leaves = jax.tree.leaves(result)
    return sum(jnp.sum(x * rng.normal(size=x.shape).astype(x.dtype)) for x in leaves)


# ------------------------------------------------------------------ values


def test_token_logprobs_by_hand():
    logits = jnp.log(jnp.array([[0.5, 0.25, 0.25], [0.1, 0.2, 0.7]])) + 3.0
    np.testing.assert_allclose(
        token_logprobs(logits, jnp.array([1, 2])), np.log([0.25, 0.7]), rtol=1e-6
    )


@pytest.mark.parametrize("truncated", [False, True])
@pytest.mark.parametrize("chunk_size", [*CHUNKS, VOCABULARY])
def test_from_hidden_matches_a_loop(head, cutoff, chunk_size, truncated, precision):
    head = {name: precision.cast(x) for name, x in head.items()}
    kwargs = {"temperature": 0.7, "cutoff": precision.cast(cutoff) if truncated else None}
    result = hidden_logprobs(**head, **kwargs, chunk_size=chunk_size)
    for ours, expected in zip(result, _loop(**head, **kwargs), strict=True):
        precision.assert_close(ours, expected)


def test_from_logits_is_the_same(head, cutoff):
    logits = head["hidden"] @ head["kernel"]
    for kwargs in ({}, {"temperature": 0.7, "cutoff": cutoff}):
        result = jax.jit(token_logprobs_from_logits)(logits, head["tokens"], **kwargs)
        _assert_close(result, hidden_logprobs(**head, **kwargs))
    logprobs = jax.jit(token_logprobs)(logits, head["tokens"])
    _assert_close(logprobs, hidden_logprobs(**head).logprobs)


@pytest.mark.parametrize("chunk_size", [5, VOCABULARY])
def test_the_truncated_distribution_is_the_one_a_sampler_draws_from(head, chunk_size):
    log_probs = np.asarray(jax.nn.log_softmax(head["hidden"] @ head["kernel"] / 0.7))
    ordered = -np.sort(-log_probs, axis=-1)
    head["tokens"] = np.argsort(-log_probs, axis=-1)[..., 2]  # any of the three most likely
    top_3 = np.where(log_probs >= ordered[..., 2:3], log_probs, -np.inf)
    expected = jax.jit(token_logprobs_from_logits)(top_3, head["tokens"])
    cutoff = (ordered[..., 2] + ordered[..., 3]) / 2
    result = hidden_logprobs(**head, temperature=0.7, cutoff=cutoff, chunk_size=chunk_size)
    _assert_close(result, expected)


@pytest.mark.parametrize("chunk_size", [5, VOCABULARY])
def test_no_cutoff_is_a_cutoff_of_minus_infinity(head, chunk_size):
    unlimited = np.full((ROWS, TOKENS), -np.inf)
    _assert_close(
        hidden_logprobs(**head, cutoff=unlimited, chunk_size=chunk_size),
        hidden_logprobs(**head, chunk_size=chunk_size),
        1e-6,
    )


@pytest.mark.parametrize("chunk_size", [5, VOCABULARY])
def test_temperature_may_be_traced_and_differ_by_token(head, chunk_size):
    jitted = partial(hidden_logprobs, **head, chunk_size=chunk_size)
    _assert_close(jitted(temperature=0.7), _loop(**head, temperature=0.7))
    each = np.where(np.arange(TOKENS) == 1, 0.7, 1.0) * np.ones((ROWS, 1))
    warm, plain = jitted(temperature=0.7), jitted(temperature=1.0)
    mixed = jax.tree.map(lambda w, p: np.where(each == 1, p, w), warm, plain)
    _assert_close(jitted(temperature=each), mixed)


@pytest.mark.parametrize("chunk_size", [5, VOCABULARY])
def test_entropy_is_optional(head, chunk_size):
    result = hidden_logprobs(**head, chunk_size=chunk_size, with_entropy=False)
    assert result.entropy is None
    _assert_close(result.logprobs, hidden_logprobs(**head).logprobs)


@pytest.mark.parametrize("chunk_size", [5, VOCABULARY])
def test_large_logits(head, chunk_size):
    head["kernel"] = 1e4 * head["kernel"]
    value, gradient = jax.jit(
        jax.value_and_grad(
            lambda hidden: _mixed(
                token_logprobs_from_hidden(**head | {"hidden": hidden}, chunk_size=chunk_size)
            )
        )
    )(head["hidden"])
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("chunk_size", [*CHUNKS, VOCABULARY])
def test_full_kl_is_that_of_the_softmaxes(rng, head, chunk_size, precision):
    del head["tokens"]
    head |= {
        "ref_hidden": rng.normal(size=(ROWS, TOKENS, 3)),  # the reference may be narrower
        "ref_kernel": rng.normal(size=(3, VOCABULARY)),
    }
    head = {name: precision.cast(x) for name, x in head.items()}
    log_probs, ref_log_probs = (
        jax.nn.log_softmax(head[f"{prefix}hidden"] @ head[f"{prefix}kernel"] / 0.7)
        for prefix in ("", "ref_")
    )
    expected = kl.full(log_probs, ref_log_probs)
    result = hidden_kl(**head, temperature=0.7, chunk_size=chunk_size)
    precision.assert_close(result, expected)


def test_reference_logprobs_and_entropy(golden, precision):
    z = np.load(golden / "text2grad_ppo_0.npz")
    for name in ("old", "new"):
        logits = precision.cast(z["logits" if name == "old" else "new_logits"])
        result = jax.jit(token_logprobs_from_logits)(logits, z["tokens"])
        precision.assert_close(result.logprobs * z["mask"], z[f"{name}_logprobs"] * z["mask"])
    precision.assert_close(masked_mean(result.entropy, z["mask"]), z["entropy"])


# ------------------------------------------------------------------ gradients


@pytest.mark.parametrize(("chunk_size", "truncated"), [(5, False), (5, True), (8, True)])
def test_gradients_are_those_of_the_dense_way(head, cutoff, chunk_size, truncated):
    tokens = head["tokens"]

    def loss(hidden, kernel, chunk_size):
        result = token_logprobs_from_hidden(
            hidden,
            kernel,
            tokens,
            temperature=0.7,
            cutoff=cutoff if truncated else None,
            chunk_size=chunk_size,
        )
        return _mixed(result)

    gradient = jax.jit(jax.grad(loss, (0, 1)), static_argnums=2)
    arguments = head["hidden"], head["kernel"]
    _assert_close(gradient(*arguments, chunk_size), gradient(*arguments, VOCABULARY))


@pytest.mark.parametrize("chunk_size", CHUNKS)
def test_full_kl_gradients_are_those_of_the_dense_way(rng, head, chunk_size):
    reference = rng.normal(size=head["hidden"].shape), rng.normal(size=head["kernel"].shape)

    def loss(head, reference, chunk_size):
        return _mixed(
            full_kl_from_hidden(*head, *reference, temperature=0.7, chunk_size=chunk_size)
        )

    gradient = jax.jit(jax.grad(loss, (0, 1)), static_argnums=2)
    arguments = (head["hidden"], head["kernel"]), reference
    chunked, none = gradient(*arguments, chunk_size)
    _assert_close(chunked, gradient(*arguments, VOCABULARY)[0])
    for array in none:
        np.testing.assert_array_equal(array, 0)


@pytest.mark.parametrize("chunk_size", [7, VOCABULARY])
def test_gradients_numerically(head, chunk_size):
    with jax.enable_x64(True):
        hidden, kernel = (head[name].astype(np.float64) for name in ("hidden", "kernel"))
        functions = (
            lambda h, k: token_logprobs_from_hidden(
                h, k, head["tokens"], cutoff=np.full((ROWS, TOKENS), -3.1), chunk_size=chunk_size
            ),
            lambda h, k: full_kl_from_hidden(h, k, -hidden, kernel, chunk_size=chunk_size),
        )
        for function in functions:
            check_grads(jax.jit(function), (hidden, kernel), order=1, modes=["rev"])


@pytest.mark.parametrize("chunk_size", [5, VOCABULARY])
def test_no_gradient_to_temperature_and_cutoff(head, cutoff, chunk_size):
    def loss(temperature, cutoff):
        return _mixed(
            token_logprobs_from_hidden(
                **head, temperature=temperature, cutoff=cutoff, chunk_size=chunk_size
            )
        )

    gradients = jax.jit(jax.grad(loss, (0, 1)))(0.7, cutoff)
    for gradient in gradients:
        np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize("chunk_size", [5, VOCABULARY])
def test_padding_reaches_no_parameter(head, chunk_size):
    mask = np.arange(TOKENS) < 2

    @jax.jit
    @partial(jax.value_and_grad, argnums=(0, 1))
    def loss(hidden, kernel):
        result = token_logprobs_from_hidden(hidden, kernel, head["tokens"], chunk_size=chunk_size)
        full = full_kl_from_hidden(hidden, kernel, -hidden, kernel, chunk_size=chunk_size)
        return sum(jnp.sum(jnp.where(mask, x, 0)) for x in (*result, full))

    clean, (_, d_kernel_clean) = loss(head["hidden"], head["kernel"])
    for garbage in (np.nan, np.inf):
        dirty = np.where(mask[:, None], head["hidden"], garbage)
        value, (d_hidden, d_kernel) = loss(dirty, head["kernel"])
        np.testing.assert_allclose(value, clean, rtol=1e-6)
        np.testing.assert_allclose(d_kernel, d_kernel_clean, rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(d_hidden[:, 2], 0)
        result = hidden_logprobs(**head | {"hidden": dirty}, chunk_size=chunk_size)
        assert np.isnan(result.logprobs[:, 2]).all()


def test_undefined_and_excluded_logits():
    logits = jnp.array([[0.0, 0.0, -jnp.inf], [0.0, jnp.nan, 0.0]])
    tokens = jnp.array([0, 0])
    result = jax.jit(token_logprobs_from_logits)(logits, tokens)
    np.testing.assert_allclose(result.logprobs, [-np.log(2), np.nan], rtol=1e-6)
    np.testing.assert_allclose(result.entropy, [np.log(2), np.nan], rtol=1e-6)
    gradient = jax.jit(jax.grad(lambda x: _mixed(token_logprobs_from_logits(x, tokens))))(logits)
    assert np.isfinite(gradient).all()
    np.testing.assert_array_equal(gradient[1], 0)


@pytest.mark.parametrize("chunk_size", [5, VOCABULARY])
def test_bfloat16(head, chunk_size):
    narrow = [jnp.asarray(head[name], jnp.bfloat16) for name in ("hidden", "kernel")]
    wide = [x.astype(jnp.float32) for x in narrow]

    @jax.jit
    @jax.grad
    def gradient(head_):
        return _mixed(token_logprobs_from_hidden(*head_, head["tokens"], chunk_size=chunk_size))

    result = hidden_logprobs(*narrow, head["tokens"], chunk_size=chunk_size)
    assert result.logprobs.dtype == result.entropy.dtype == jnp.float32
    # Only the inputs are rounded: sums are the float32 ones.
    _assert_close(result, hidden_logprobs(*wide, head["tokens"]), 1e-5)
    for ours, expected in zip(gradient(narrow), gradient(wide), strict=True):
        assert ours.dtype == jnp.bfloat16
        np.testing.assert_allclose(ours.astype(jnp.float32), expected, rtol=2e-2, atol=2e-2)


# ------------------------------------------------------------------ transformations and devices


def test_under_vmap_and_scan(head):
    compute = partial(token_logprobs_from_hidden, chunk_size=5)
    expected = hidden_logprobs(**head, chunk_size=5)
    by_row = jax.jit(jax.vmap(lambda h, t: compute(h, head["kernel"], t)))
    _assert_close(by_row(head["hidden"], head["tokens"]), expected, 1e-6)
    _, scanned = jax.lax.scan(
        lambda carry, x: (carry, compute(x[0], head["kernel"], x[1])),
        None,
        (head["hidden"], head["tokens"]),
    )
    _assert_close(scanned, expected, 1e-6)


def _losses(hidden, kernel, tokens, **kwargs):
    cutoff = jnp.full_like(hidden[..., 0], -3.2)
    return (
        _mixed(token_logprobs_from_hidden(hidden, kernel, tokens, cutoff=cutoff, **kwargs)),
        _mixed(full_kl_from_hidden(hidden, kernel, 0.5 * hidden, kernel, **kwargs)),
    )


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize(("chunk_size", "vocab_shards"), [(5, 1), (5, 2), (12, 2)])
def test_sharded_is_unsharded(head, chunk_size, vocab_shards, axis_type):
    compute = jax.jit(
        jax.value_and_grad(lambda *a, **k: sum(_losses(*a, **k)), (0, 1)),
        static_argnames=("chunk_size", "vocab_shards"),
    )
    expected = compute(*head.values(), chunk_size=VOCABULARY)
    mesh = jax.make_mesh((4, 2), ("data", "tensor"), axis_types=(axis_type,) * 2)
    vocabulary = P(None, "tensor") if vocab_shards == 2 else P()
    with jax.set_mesh(mesh):
        hidden, kernel, tokens = (
            jax.device_put(array, spec)
            for array, spec in zip(head.values(), (P("data"), vocabulary, P("data")), strict=True)
        )
        result = compute(hidden, kernel, tokens, chunk_size=chunk_size, vocab_shards=vocab_shards)
    _assert_close(result, expected)
    assert result[1][1].sharding.is_equivalent_to(kernel.sharding, 2)


@pytest.mark.parametrize("chunk_size", [5, VOCABULARY])
def test_a_spread_kernel_is_gathered_by_chunks(head, chunk_size):
    """The same values and gradients; the gradient lies as the kernel."""
    even = WIDTH - 1
    head = head | {"hidden": head["hidden"][..., :even], "kernel": head["kernel"][:even]}
    mesh = jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
    stored, read, rows = (
        NamedSharding(mesh, spec)
        for spec in (P("fsdp", "tensor"), P(None, "tensor"), P(("data", "fsdp")))
    )
    compute = jax.jit(
        jax.value_and_grad(lambda *a, **k: sum(_losses(*a, **k)), (0, 1)),
        static_argnames=("chunk_size", "vocab_shards", "spread"),
    )
    expected = compute(*head.values(), chunk_size=VOCABULARY)
    hidden, kernel, tokens = (
        jax.device_put(array, sharding)
        for array, sharding in zip(head.values(), (rows, stored, rows), strict=True)
    )
    spread = HeadSharding(stored, read)
    lowered = compute.lower(
        hidden, kernel, tokens, chunk_size=chunk_size, vocab_shards=2, spread=spread
    )
    compiled = lowered.compile()
    result = compiled(hidden, kernel, tokens)
    _assert_close(result, expected)
    if chunk_size < VOCABULARY // 2:
        assert result[1][1].sharding.is_equivalent_to(stored, 2)
        assert f"[{even},{VOCABULARY // 2}]" not in compiled.as_text()


@pytest.mark.parametrize("check_vma", [True, False])
def test_inside_shard_map(head, check_vma):
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))

    def total(function, hidden, kernel):
        return sum(jnp.sum(x) for x in function(hidden, kernel, head["tokens"]))

    compute = partial(token_logprobs_from_hidden, chunk_size=5)
    mapped = jax.shard_map(
        compute,
        mesh=mesh,
        in_specs=(P("data"), P(), P("data")),
        out_specs=P("data"),
        check_vma=check_vma,
    )
    gradients = [
        jax.jit(jax.grad(partial(total, function), (0, 1)))(head["hidden"], head["kernel"])
        for function in (mapped, compute)
    ]
    _assert_close(*gradients)


def test_sharding_the_vocabulary_gathers_no_kernel():
    mesh = jax.make_mesh((1, 8), ("data", "tensor"), axis_types=(AxisType.Auto,) * 2)
    with jax.set_mesh(mesh):
        hidden = jax.device_put(np.ones((2, 3, 16), np.float32), P())
        kernel = jax.device_put(np.ones((16, 1024), np.float32), P(None, "tensor"))
        compiled = (
            jax.jit(
                jax.grad(
                    lambda h, k: sum(
                        _losses(h, k, np.zeros((2, 3), int), chunk_size=32, vocab_shards=8)
                    ),
                    (0, 1),
                )
            )
            .lower(hidden, kernel)
            .compile()
        )
    assert "all-reduce" in compiled.as_text()
    assert "all-gather" not in compiled.as_text()
    assert "all-to-all" not in compiled.as_text()


def test_memory_is_that_of_a_chunk():
    rows, tokens, width, vocabulary = 4, 64, 16, 64_000
    hidden = jax.ShapeDtypeStruct((rows, tokens, width), jnp.float32)
    kernel = jax.ShapeDtypeStruct((width, vocabulary), jnp.float32)
    targets = np.zeros((rows, tokens), int)

    def memory(function):
        analysis = jax.jit(function).lower(hidden, kernel).compile().memory_analysis()
        return analysis.temp_size_in_bytes / (4 * rows * tokens * vocabulary)

    def loss(hidden, kernel, **kwargs):
        return _mixed(token_logprobs_from_hidden(hidden, kernel, targets, **kwargs))

    def kl_loss(hidden, kernel):
        return _mixed(full_kl_from_hidden(hidden, kernel, 0.5 * hidden, kernel))

    assert memory(loss) < 0.35
    assert memory(jax.grad(loss, (0, 1))) < 0.5
    assert memory(jax.grad(kl_loss, (0, 1))) < 0.5
    assert memory(partial(loss, chunk_size=500)) < 0.1
    assert memory(partial(loss, chunk_size=vocabulary)) > 1  # what it is measured against


# ------------------------------------------------------------------ tokens of no vocabulary


@pytest.mark.parametrize("truncated", [False, True])
@pytest.mark.parametrize("path", ["logits", VOCABULARY, *CHUNKS])
def test_tokens_outside_the_vocabulary_are_nan_and_do_not_teach(head, cutoff, path, truncated):
    """Whatever path there is; other tokens are as they were, and so are their gradients."""
    strange = np.resize([False, True, False, False, True], (ROWS, TOKENS))
    tokens = np.where(strange, np.resize([-100, VOCABULARY, -1], strange.shape), head["tokens"])
    kwargs = {"cutoff": np.where(strange, 0.0, cutoff) if truncated else None}

    def scored(hidden, kernel, tokens):
        if path == "logits":
            return token_logprobs_from_logits(hidden @ kernel, tokens, **kwargs)
        return token_logprobs_from_hidden(hidden, kernel, tokens, chunk_size=path, **kwargs)

    def loss(hidden, kernel, tokens):
        found = scored(hidden, kernel, tokens)
        return _mixed(jax.tree.map(lambda x: jnp.where(strange, 0, x), found))

    both = head["hidden"], head["kernel"]
    for found, expected in zip(scored(*both, tokens), scored(*both, head["tokens"]), strict=True):
        np.testing.assert_array_equal(np.isnan(found), strange)
        np.testing.assert_array_equal(found[~strange], expected[~strange])
    found, expected = (jax.grad(loss, (0, 1))(*both, x) for x in (tokens, head["tokens"]))
    _assert_close(found, expected)
    assert all(np.isfinite(x).all() for x in found)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.uint32])
def test_tokens_of_any_integer_type(dtype):
    logits = np.zeros((2, 300), np.float32)
    found = token_logprobs(logits, np.array([7, np.iinfo(dtype).max], dtype))
    outside = np.iinfo(dtype).max >= 300
    np.testing.assert_allclose(found, [-np.log(300), np.nan if outside else -np.log(300)], 1e-6)


# ------------------------------------------------------------------ refusals


def test_refusals(head):
    hidden, kernel, tokens = head.values()
    refusals = {
        r"logits .*tokens .*\(2, 7\).*\(3,\)": lambda: token_logprobs(
            jnp.ones((2, 7)), jnp.zeros(3, int)
        ),
        r"hidden .*kernel .*\(4, 3, 5\).*\(4, 24\)": lambda: token_logprobs_from_hidden(
            hidden, kernel[1:], tokens
        ),
        r"hidden .*tokens .*\(4, 3, 5\).*\(4, 2\)": lambda: token_logprobs_from_hidden(
            hidden, kernel, tokens[:, :2]
        ),
        r"cutoff .*tokens .*\(4, 1\).*\(4, 3\)": lambda: token_logprobs_from_hidden(
            **head, cutoff=jnp.zeros((4, 1))
        ),
        r"temperature .*tokens.*\(4,\).*\(4, 3\)": lambda: token_logprobs_from_hidden(
            **head, temperature=jnp.ones(4)
        ),
        r"temperature must be positive.*0": lambda: token_logprobs_from_hidden(
            **head, temperature=0.0
        ),
        r"temperature must be positive, got nan": lambda: token_logprobs_from_logits(
            hidden @ kernel, tokens, temperature=np.float32(np.nan)
        ),
        r"tokens must be integers, got float32": lambda: token_logprobs(
            hidden @ kernel, tokens.astype(np.float32)
        ),
        r"tokens must be integers, got bool": lambda: token_logprobs_from_hidden(
            hidden, kernel, tokens > 3
        ),
        r"softcap must be at least 0, got -1": lambda: token_logprobs_from_hidden(
            **head, softcap=-1.0
        ),
        r"vocab_shards.*5.*24": lambda: token_logprobs_from_hidden(**head, vocab_shards=5),
        r"chunk_size.*0": lambda: token_logprobs_from_hidden(**head, chunk_size=0),
        r"hidden and ref_hidden .*\(4, 3, 5\).*\(3, 3, 5\)": lambda: full_kl_from_hidden(
            hidden, kernel, hidden[1:], kernel
        ),
        r"kernel and ref_kernel .*\(5, 24\).*\(5, 23\)": lambda: full_kl_from_hidden(
            hidden, kernel, hidden, kernel[:, 1:]
        ),
        r"ref_hidden .*ref_kernel .*\(4, 3, 5\).*\(4, 24\)": lambda: full_kl_from_hidden(
            hidden, kernel, hidden, kernel[1:]
        ),
    }
    for message, call in refusals.items():
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(TypeError, match=r"chunk_size must be an integer, got 5\.0"):
        token_logprobs_from_hidden(**head, chunk_size=5.0)


# ------------------------------------------------------------------ soft-capped logits


@pytest.mark.parametrize("chunk_size", [5, VOCABULARY])
def test_soft_capped_logits(head, chunk_size):
    """Values and gradients of the cap written out, cutoff and KL included."""
    cap = 1.5
    reference = {"hidden": -head["hidden"], "kernel": head["kernel"]}

    def capped(hidden, kernel):
        return cap * jnp.tanh(hidden @ kernel / cap)

    def chunked(hidden, kernel):
        scored = token_logprobs_from_hidden(
            hidden,
            kernel,
            head["tokens"],
            temperature=0.7,
            cutoff=np.full((ROWS, TOKENS), -3.0),
            softcap=cap,
            chunk_size=chunk_size,
        )
        kls = full_kl_from_hidden(
            hidden, kernel, *reference.values(), softcap=cap, chunk_size=chunk_size
        )
        return _mixed(scored) + jnp.sum(kls)

    def dense(hidden, kernel):
        logits = capped(hidden, kernel)
        scored = token_logprobs_from_logits(
            logits, head["tokens"], temperature=0.7, cutoff=np.full((ROWS, TOKENS), -3.0)
        )
        log_probs, ref_log_probs = map(
            jax.nn.log_softmax, (logits, jax.lax.stop_gradient(capped(*reference.values())))
        )
        return _mixed(scored) + jnp.sum(kl.full(log_probs, ref_log_probs))

    both = head["hidden"], head["kernel"]
    found, expected = (jax.jit(jax.value_and_grad(f, (0, 1)))(*both) for f in (chunked, dense))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    uncapped = token_logprobs_from_hidden(*both, head["tokens"], chunk_size=chunk_size)
    other = token_logprobs_from_hidden(*both, head["tokens"], softcap=cap, chunk_size=chunk_size)
    assert np.abs(uncapped.logprobs - other.logprobs).max() > 0.01


# ------------------------------------------------------------------ distillation


@pytest.fixture
def exactly():
    """In float64, to 1e-9."""
    with jax.enable_x64(True):
        yield partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-9)


def _both_ways(chunked, dense, arrays, weight, close):
    """Values and gradients of a chunked and of a dense distillation."""
    found, expected = (
        jax.jit(jax.value_and_grad(lambda *x, f=f: jnp.sum(weight * f(*x)), range(len(arrays))))(
            *arrays
        )
        for f in (chunked, dense)
    )
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        close(a, b)


@pytest.mark.parametrize(
    ("chunk_size", "vocab_shards", "options"),
    [
        (5, 1, {"alpha": 0}),
        (5, 2, {"alpha": 0.3}),
        (5, 1, {"alpha": 1}),
        (5, 2, {"alpha": 0, "entry_clip": 0.05}),
        (5, 1, {"alpha": 0.3, "entry_clip": 0.02}),
        (VOCABULARY, 1, {"alpha": 1, "entry_clip": 0.05}),
        (5, 1, {"alpha": 0, "top_k": 4}),
        (5, 2, {"alpha": 0.3, "top_k": 7, "entry_clip": 0.05}),
        (5, 2, {"alpha": 1, "top_k": 4, "top_k_of": "student"}),
        (VOCABULARY, 1, {"alpha": 1, "top_k": VOCABULARY - 1}),
    ],
    ids=str,
)
def test_distillation_is_that_of_the_logits(head, chunk_size, vocab_shards, options, exactly):
    rng = np.random.default_rng(3)
    teacher = rng.normal(size=(ROWS, TOKENS, 3)), rng.normal(size=(3, VOCABULARY))
    arrays = [x.astype(np.float64) for x in (head["hidden"], head["kernel"], *teacher)]
    sizes = {"chunk_size": chunk_size, "vocab_shards": vocab_shards}

    def chunked(*heads):
        return distillation_from_hidden(*heads, temperature=0.7, softcap=4.0, **sizes, **options)

    def dense(hidden, kernel, theirs, their_kernel):
        student, teacher = (
            4.0 * jnp.tanh(h @ k / 4.0) / 0.7 for h, k in ((hidden, kernel), (theirs, their_kernel))
        )
        return logit_distillation(student, teacher, **options)

    _both_ways(chunked, dense, arrays, rng.normal(size=(ROWS, TOKENS)), exactly)


@pytest.mark.parametrize(("chunk_size", "vocab_shards"), [(5, 2), (VOCABULARY, 1)])
def test_distillation_from_a_teachers_top_k(head, chunk_size, vocab_shards, exactly):
    rng = np.random.default_rng(3)
    ids = np.argsort(rng.random((ROWS, TOKENS, VOCABULARY)))[..., :6]
    ids[0, :, 4:] = -1  # fewer than others have
    teacher = np.log(0.9 * rng.dirichlet(np.ones(6), (ROWS, TOKENS)))
    arrays = [head[name].astype(np.float64) for name in ("hidden", "kernel")]
    options = {"alpha": 0.3, "entry_clip": 0.3}
    sizes = {"chunk_size": chunk_size, "vocab_shards": vocab_shards}

    def chunked(hidden, kernel):
        return top_k_distillation_from_hidden(
            hidden, kernel, ids, teacher, temperature=0.7, **sizes, **options
        )

    def dense(hidden, kernel):
        return top_k_distillation(hidden @ kernel / 0.7, ids, teacher, **options)

    _both_ways(chunked, dense, arrays, rng.normal(size=(ROWS, TOKENS)), exactly)


def test_distillation_of_narrow_hidden_states_sums_in_float32(head):
    narrow = [head[name].astype(jnp.bfloat16) for name in ("hidden", "kernel")]
    wide = [x.astype(np.float32) for x in narrow]
    for top_k in (None, 4):
        distil = partial(distillation_from_hidden, top_k=top_k, chunk_size=5)
        found = distil(*narrow, -narrow[0], narrow[1])
        assert found.dtype == jnp.float32
        np.testing.assert_allclose(found, distil(*wide, -wide[0], wide[1]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("options", [{"top_k": 4}, {"top_k": 4, "top_k_of": "student"}])
@pytest.mark.parametrize(
    ("shape", "kind"), [({"data": 2, "tensor": 2}, AxisType.Auto), ({"data": 4}, AxisType.Explicit)]
)
def test_top_k_of_a_sharded_head(head, options, shape, kind):
    """Rows over data, the vocabulary over tensor, and its chunks from each part."""
    axes, tensor = tuple(shape), shape.get("tensor", 1)
    mesh = jax.make_mesh(tuple(shape.values()), axes, axis_types=(kind,) * len(axes))
    hidden, kernel = head["hidden"], head["kernel"]

    def loss(hidden, kernel, **sizes):
        theirs = -hidden, kernel[:, ::-1]
        return distillation_from_hidden(
            hidden, kernel, *theirs, alpha=0.3, **options, **sizes
        ).sum()

    expected = jax.jit(jax.value_and_grad(loss, (0, 1)))(hidden, kernel)
    with jax.set_mesh(mesh):
        placed = jax.device_put((hidden, kernel), (P("data"), P(None, *axes[1:])))
        sharded = jax.jit(
            jax.value_and_grad(partial(loss, chunk_size=5, vocab_shards=tensor), (0, 1))
        )
        jax.tree.map(
            partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), sharded(*placed), expected
        )


def test_a_small_tail_is_exact(head):
    """1 − Σ of what is nearly everything would be rounding; a tail of 1e-11 is known to 1e-4."""
    logits = np.zeros((1, 1, VOCABULARY), np.float32)
    logits[..., 3], logits[..., 7] = 30.0, 29.0
    student = top_k_distillation_from_hidden(
        logits,
        np.eye(VOCABULARY, dtype=np.float32),
        jnp.array([[[3, 7]]]),
        jnp.log(jnp.array([[[0.25, 0.25]]])),
        alpha=0.0,
        chunk_size=5,
    )
    total = np.log(np.exp(30.0) + np.exp(29.0) + 22)
    expected = np.log(0.25) / 2 + np.log(0.5) / 2 - (0.25 * 59 + 0.5 * np.log(22) - total)
    np.testing.assert_allclose(student[0, 0], expected, rtol=1e-5)


@pytest.mark.parametrize("top_k", [None, 3])
def test_hidden_states_that_are_not_finite_do_not_teach(head, top_k, gradient_of):
    hidden, kernel = head["hidden"].copy(), head["kernel"]
    hidden[0, 1] = np.nan

    def loss(hidden):
        return distillation_from_hidden(
            hidden, kernel, 0.5 * head["hidden"], kernel, top_k=top_k, chunk_size=5
        )

    assert np.isnan(loss(hidden)).sum() == 1
    gradient = gradient_of(lambda x: jnp.nan_to_num(loss(x)))(hidden)
    assert np.isfinite(gradient).all()
    np.testing.assert_array_equal(gradient[0, 1], 0)


@pytest.mark.parametrize("options", [{}, {"top_k": 4}, {"top_k": 4, "top_k_of": "student"}])
def test_no_logits_of_the_whole_vocabulary_are_held(options):
    """The largest array of the compiled update has a chunk's columns, not the vocabulary's."""
    rows, width, vocabulary, chunk = 64, 2, 4096, 256
    like = [
        jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((rows, width), (width, vocabulary))
    ]

    def loss(hidden, kernel):
        return distillation_from_hidden(
            hidden, kernel, 2 * hidden, kernel, chunk_size=chunk, **options
        ).sum()

    used = jax.jit(jax.value_and_grad(loss)).lower(*like).compile().memory_analysis()
    assert used.temp_size_in_bytes < rows * vocabulary * 4


def test_distillation_names_what_does_not_fit(head):
    both = head["hidden"], head["kernel"]
    with pytest.raises(ValueError, match=r"alpha must be in \[0, 1\], got 2"):
        distillation_from_hidden(*both, *both, alpha=2)
    with pytest.raises(ValueError, match="kernel and teacher_kernel must agree"):
        distillation_from_hidden(*both, both[0], both[1][:, 1:])
    with pytest.raises(ValueError, match="top_k must be at least 1, got 0"):
        distillation_from_hidden(*both, *both, top_k=0)
    with pytest.raises(ValueError, match="top_k_of must be 'teacher' or 'student', not 'judge'"):
        distillation_from_hidden(*both, *both, top_k=1, top_k_of="judge")
    with pytest.raises(ValueError, match=r"entry_clip must be positive, got -1"):
        distillation_from_hidden(*both, *both, entry_clip=-1)
    with pytest.raises(ValueError, match=r"hidden and token_ids .*\(4, 3, 5\).*\(4, 2\)"):
        top_k_distillation_from_hidden(*both, jnp.zeros((4, 2), int), jnp.zeros((4, 2)))
    with pytest.raises(TypeError, match=r"top_k must be an integer, got 2\.0"):
        distillation_from_hidden(*both, *both, top_k=2.0)
    with pytest.raises(TypeError, match=r"alpha must be a Python number, .*static_argnames"):
        jax.jit(lambda alpha: distillation_from_hidden(*both, *both, alpha=alpha))(0.5)


@pytest.mark.parametrize("chunk_size", [5, VOCABULARY])
@pytest.mark.parametrize("name", ["full_kl", "distillation", "top_k", "from_top_k"])
def test_where_leaves_what_counts_and_silences_the_rest(head, name, chunk_size):
    """NaN where nothing counts, in the student and in the teacher, reaches neither value nor
    gradient."""
    rng = np.random.default_rng(3)
    where = rng.random((ROWS, TOKENS)) < 0.6
    where[0, 0] = False
    ids = np.argsort(rng.random((ROWS, TOKENS, VOCABULARY)))[..., :4]
    teacher = np.log(0.9 * rng.dirichlet(np.ones(4), (ROWS, TOKENS))).astype(np.float32)
    tail = np.full((ROWS, TOKENS), np.log(0.1), np.float32)
    sizes = {"chunk_size": chunk_size}

    def loss(hidden, kernel, theirs, teacher, tail, **where):
        if name == "full_kl":
            return full_kl_from_hidden(hidden, kernel, theirs, kernel, **sizes, **where)
        if name == "from_top_k":
            return top_k_distillation_from_hidden(
                hidden, kernel, ids, teacher, teacher_tail=tail, **sizes, **where
            )
        k = 4 if name == "top_k" else None
        return distillation_from_hidden(hidden, kernel, theirs, kernel, top_k=k, **sizes, **where)

    def dirty(x):
        return np.where(np.expand_dims(where, tuple(range(2, x.ndim))), x, np.nan)

    hidden, kernel = head["hidden"], head["kernel"]
    clean = -hidden, teacher, tail
    plain = loss(hidden, kernel, *clean)
    for student, others in (
        (dirty(hidden), clean),
        (hidden, [dirty(x) for x in clean]),
        (hidden, [-hidden, teacher, dirty(tail)]),
    ):
        found = loss(student, kernel, *others, where=where)
        np.testing.assert_allclose(found, np.where(where, plain, 0), rtol=1e-6)

        def total(hidden, kernel, others=others):
            return loss(hidden, kernel, *others, where=where).sum()

        gradient = jax.grad(total, (0, 1))(student, kernel)
        expected = jax.grad(lambda *x: jnp.sum(where * loss(*x, *clean)), (0, 1))(hidden, kernel)
        _assert_close(gradient, expected)
        np.testing.assert_array_equal(gradient[0][~where], 0)
    np.testing.assert_array_equal(loss(dirty(hidden), kernel, *clean, where=0 * where), 0)
    with pytest.raises(ValueError, match=r"hidden.*where.*\(4, 3\).*\(4, 2\)"):
        loss(hidden, kernel, *clean, where=where[:, 1:])
