"""Attention: kernels against plain XLA, and heads over a mesh against one device."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t2g_jax.config import MeshConfig
from t2g_jax.errors import T2GError
from t2g_jax.models import attention, heads
from t2g_jax.models.attention import AttentionSpec
from t2g_jax.models.decoder import Decoder, DecoderConfig
from t2g_jax.parallel.sharding import batch_sharding, make_mesh, state_shardings, within

RULES = {
    "plain": (AttentionSpec(), False),
    "softcap": (AttentionSpec(softcap=1.5), False),
    "window": (AttentionSpec(window=37), True),
    "window-elsewhere": (AttentionSpec(window=37), False),
    "both": (AttentionSpec(softcap=1.5, window=37), True),
}


def rows(length, seed=0):
    """Packed rows: segments and positions [2, length], the last tokens padding."""
    segments, positions = np.zeros((2, 2, length), np.int32)
    for row, ends in enumerate([(length // 3, length - 5), (length // 2 + 3, length)]):
        start = 0
        for segment, end in enumerate(ends, 1):
            segments[row, start:end] = segment
            positions[row, start:end] = range(end - start)
            start = end
    return positions, segments


@functools.partial(jax.jit, static_argnames=("spec", "backend"))
def attend(q, k, v, positions, segments, is_local, *, spec, backend):
    see = attention.make_masks(spec, backend, positions, segments, None)
    return attention.attend(q, k, v, see, spec, backend=backend, platform="cpu", is_local=is_local)[
        0
    ]


@pytest.mark.parametrize("name", RULES)
def test_splash_equals_xla_and_so_do_its_gradients(name):
    """In the interpreter of Pallas: the program that a TPU runs, on a length that needs padding."""
    spec, is_local = RULES[name]
    length = 300
    rng = np.random.default_rng(0)
    q, k, v, weight = (
        rng.normal(size=(2, length, n, 128)).astype(np.float32) for n in (4, 2, 2, 4)
    )
    q *= 128**-0.5
    positions, segments = rows(length)
    real = (segments != 0)[..., None, None]

    def value_and_gradient(backend):
        def loss(q, k, v):
            mixed = attend(
                q, k, v, positions, segments, jnp.bool_(is_local), spec=spec, backend=backend
            )
            return jnp.sum(mixed * weight * real), mixed

        (_, mixed), gradients = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))(
            q, k, v
        )
        return jax.device_get((mixed, gradients))

    (expected, slopes), (found, found_slopes) = map(value_and_gradient, ("xla", "splash"))
    np.testing.assert_allclose(found * real, expected * real, rtol=1e-4, atol=1e-5)
    for a, b in zip(found_slopes, slopes, strict=True):
        np.testing.assert_allclose(a * real, b * real, rtol=1e-3, atol=1e-4)


def test_the_window_is_that_many_tokens():
    """A loop-written oracle for a window of 3, across segments."""
    length, window = 9, 3
    rng = np.random.default_rng(1)
    q, k, v = (rng.normal(size=(2, length, 1, 4)).astype(np.float32) for _ in range(3))
    positions, segments = rows(length)
    mixed = attend(
        q,
        k,
        v,
        positions,
        segments,
        jnp.bool_(True),
        spec=AttentionSpec(window=window),
        backend="xla",
    )
    for row in range(2):
        for t in np.flatnonzero(segments[row]):
            seen = [
                s
                for s in range(max(0, t - window + 1), t + 1)
                if segments[row, s] == segments[row, t]
            ]
            weights = np.exp(k[row, seen, 0] @ q[row, t, 0])
            expected = weights @ v[row, seen, 0] / weights.sum()
            np.testing.assert_allclose(mixed[row, t, 0], expected, rtol=1e-5, atol=1e-5)


CHOICES = {
    "auto on a CPU": ("auto", {}, "xla"),
    "auto on a TPU": ("auto", {"platform": "tpu"}, "splash"),
    "short rows on a TPU": ("auto", {"platform": "tpu", "length": 128}, "xla"),
    "auto on a GPU": ("auto", {"platform": "gpu", "dtype": jnp.bfloat16}, "cudnn"),
    "float32 on a GPU": ("auto", {"platform": "gpu"}, "xla"),
    "wide heads on a GPU": (
        "auto",
        {"platform": "gpu", "dtype": jnp.bfloat16, "head_width": 256},
        "xla",
    ),
    "decoding": ("auto", {"platform": "tpu", "cached": True}, "xla"),
    "asked for": ("xla", {"platform": "tpu"}, "xla"),
}


@pytest.mark.parametrize("name", CHOICES)
def test_the_kernel_follows_the_hardware(name):
    backend, changes, expected = CHOICES[name]
    about = {
        "platform": "cpu",
        "length": 1024,
        "head_width": 128,
        "dtype": jnp.float32,
        "cached": False,
    }
    assert attention.choose(backend, AttentionSpec(), **about | changes) == expected


def test_a_kernel_that_cannot_do_it_is_named():
    about = {"length": 1024, "head_width": 128, "dtype": jnp.bfloat16, "cached": False}
    with pytest.raises(T2GError, match="cudnn, which takes an NVIDIA GPU"):
        attention.choose("cudnn", AttentionSpec(), platform="cpu", **about)
    with pytest.raises(T2GError, match="soft-cap of 30"):
        attention.choose("cudnn", AttentionSpec(softcap=30.0), platform="gpu", **about)
    with pytest.raises(T2GError, match="splash, a kernel for TPUs; here is a gpu"):
        attention.choose("splash", AttentionSpec(), platform="gpu", **about)


# ------------------------------------------------------------------ meshes

SHAPE = DecoderConfig(
    vocab_size=64,
    width=16,
    layers=2,
    heads=8,
    kv_heads=2,
    head_width=8,
    mlp_width=32,
    window=5,
    local_layers=(True, False),
)
MODELS = {
    "dense": SHAPE,
    "six heads": dataclasses.replace(SHAPE, heads=6),
    "splash": dataclasses.replace(SHAPE, attention="splash", layers=1, local_layers=(False,)),
    "experts": dataclasses.replace(SHAPE, experts=4, experts_per_token=2),
}
MESHES = [
    {"data": 2, "context": 4},
    {"fsdp": 2, "context": 2, "tensor": 2},
    {"context": 8},
]


def value_and_gradient(config, params, tokens, positions, segments, sharding=None):
    def loss(params):
        hidden, _ = Decoder(config, sharding).apply(
            {"params": params["decoder"]}, tokens, positions, segments
        )
        return jnp.sum(jnp.sin(hidden) * (segments != 0)[..., None])

    return jax.value_and_grad(loss)(params)


@pytest.fixture(scope="module")
def alone():
    """Of each model: parameters, rows, and value and gradient on one device."""
    found = {}

    def of(name):
        if name not in found:
            config = MODELS[name]
            params = jax.device_get(heads.init_params(config, jax.random.key(0)))
            length = 32
            batch = (
                np.random.default_rng(0).integers(0, 64, (4, length)),
                *(np.concatenate([x, x]) for x in rows(length)),
            )
            plain = dataclasses.replace(config, attention="xla")
            run = jax.jit(functools.partial(value_and_gradient, plain))
            found[name] = params, batch, jax.device_get(run(params, *batch))
        return found[name]

    return of


@pytest.mark.parametrize("shape", MESHES, ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_rows_split_along_their_length_give_the_same(alone, name, shape):
    if name == "splash" and "data" not in shape:
        pytest.skip("once is enough: the interpreter is slow")
    params, batch, (value, gradient) = alone(name)
    mesh = make_mesh(MeshConfig(**({"data": 1} | shape)))
    sharding = batch_sharding(mesh)
    params = jax.device_put(params, state_shardings(params, mesh))
    batch = jax.device_put(batch, sharding)
    with within(mesh):
        run = jax.jit(functools.partial(value_and_gradient, MODELS[name], sharding=sharding))
        found, slopes = jax.device_get(run(params, *batch))
    np.testing.assert_allclose(found, value, rtol=1e-5)
    for a, b in zip(jax.tree.leaves(slopes), jax.tree.leaves(gradient), strict=True):
        # Sums in another order: what is near 0 among large numbers is as inexact as they are.
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5 * max(10, np.abs(b).max()))
