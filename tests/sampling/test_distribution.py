"""Temperature, top-k and top-p against a loop-written oracle, ties and extremes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t2g_jax.sampling.distribution import Sampling, draw, log_distribution, truncation_cutoff


def settings(**kwargs):
    return Sampling(max_new_tokens=4, stop_ids=(), **kwargs)


def oracle(logits, temperature, top_k, top_p):
    """Probabilities of the sampled distribution of one row, without ties."""
    probs = np.exp(np.asarray(logits, np.float64) / temperature)
    order = np.argsort(-probs)[: top_k or None]
    candidates = probs[order] / probs[order].sum()
    kept, mass = [], 0.0
    for token, p in zip(order, candidates, strict=True):
        if mass >= top_p:
            break
        kept.append(token)
        mass += p
    result = np.zeros_like(probs)
    result[kept] = probs[kept] / probs[kept].sum()
    return result


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.3])
@pytest.mark.parametrize(
    ("top_k", "top_p"), [(0, 1.0), (3, 1.0), (0, 0.6), (5, 0.8), (1, 1.0), (20, 0.9)]
)
def test_equals_the_oracle(rng, temperature, top_k, top_p):
    logits = np.float32(2 * rng.normal(size=(4, 3, 10)))
    sampling = settings(temperature=temperature, top_k=top_k, top_p=top_p)
    log_probs, cutoff = log_distribution(logits, sampling)
    assert log_probs.shape == logits.shape
    assert cutoff.shape == logits.shape[:-1]
    expected = np.array([oracle(row, temperature, top_k, top_p) for row in logits.reshape(-1, 10)])
    np.testing.assert_allclose(np.exp(log_probs).reshape(-1, 10), expected, atol=1e-6)
    # The cutoff alone tells the kept from the dropped.
    whole = jax.nn.log_softmax(logits / temperature)
    np.testing.assert_array_equal(whole >= cutoff[..., None], expected.reshape(logits.shape) > 0)


def test_low_precision_logits_give_float32():
    log_probs, cutoff = log_distribution(jnp.ones((2, 5), jnp.bfloat16), settings(top_k=2))
    assert log_probs.dtype == cutoff.dtype == jnp.float32


def test_nothing_is_dropped_without_truncation(rng):
    log_probs = jax.nn.log_softmax(np.float32(rng.normal(size=(3, 6))))
    for top_k, top_p in ((0, 1.0), (6, 1.0), (100, 1.0), (6, 0.9999999)):
        cutoff = truncation_cutoff(log_probs, top_k=top_k, top_p=top_p)
        np.testing.assert_array_equal(cutoff, [-np.inf] * 3)


@pytest.mark.parametrize("top_p", [1e-40, 1e-320])
def test_a_top_p_that_float32_does_not_have_keeps_the_likeliest(rng, top_p):
    log_probs = jax.nn.log_softmax(np.float32(rng.normal(size=(3, 6))))
    cutoff = truncation_cutoff(log_probs, top_k=0, top_p=top_p)
    np.testing.assert_array_equal(jnp.sum(log_probs >= cutoff[:, None], -1), [1, 1, 1])


def test_tiny_top_p_keeps_the_likeliest(rng):
    logits = np.float32(rng.normal(size=(5, 7)))
    log_probs, _ = log_distribution(logits, settings(top_p=1e-9))
    expected = np.where(np.arange(7) == logits.argmax(-1)[:, None], 0, -np.inf)
    np.testing.assert_allclose(log_probs, expected, atol=1e-6)


def test_top_k_counts_tokens_that_are_next_to_impossible():
    """Mass that rounds to nothing is still kept if only top-k truncates."""
    log_probs = jnp.array([0.0, -40.0, -50.0, -60.0])
    cutoff = truncation_cutoff(log_probs, top_k=3, top_p=1.0)
    np.testing.assert_array_equal(log_probs >= cutoff, [True, True, True, False])


@pytest.mark.parametrize(
    ("probs", "top_k", "top_p", "kept"),
    [
        ([0.2, 0.4, 0.2, 0.2], 2, 1.0, [1, 1, 1, 1]),  # ties with the last kept stay
        ([0.3, 0.3, 0.3, 0.1], 1, 1.0, [1, 1, 1, 0]),
        ([0.3, 0.3, 0.3, 0.1], 0, 0.5, [1, 1, 1, 0]),
        ([0.25] * 4, 1, 1.0, [1, 1, 1, 1]),
        ([0.5, 0.25, 0.125, 0.125], 0, 0.75, [1, 1, 0, 0]),  # reached exactly: no more
        ([0.5, 0.25, 0.125, 0.125], 2, 0.7, [1, 1, 0, 0]),  # of the renormalized top 2
        ([0.5, 0.25, 0.125, 0.125], 2, 0.6, [1, 0, 0, 0]),
    ],
)
def test_ties_and_borders(probs, top_k, top_p, kept):
    log_probs = jnp.log(jnp.array(probs))
    cutoff = truncation_cutoff(log_probs, top_k=top_k, top_p=top_p)
    np.testing.assert_array_equal(log_probs >= cutoff, np.array(kept, bool))


@pytest.mark.parametrize(("top_k", "top_p"), [(1, 1.0), (0, 0.3)])
def test_what_differs_by_rounding_is_tied(top_k, top_p):
    """A program may compute a log-probability twice, and not to the same bit."""
    once = np.log(np.float32([0.4, 0.4, 0.15, 0.05]))
    again = np.nextafter(once, -np.inf) - np.float32([0, 2e-7, 0, 0])
    cutoff = truncation_cutoff(jnp.asarray(again), top_k=top_k, top_p=top_p)
    for log_probs in (once, again):
        np.testing.assert_array_equal(log_probs >= cutoff, [True, True, False, False])
    assert once[2] < cutoff < again[1] - 0.4


@pytest.mark.parametrize(
    "probs", [[0.3, 0.3, 0.3, 0.1], [0.6, 0.3, 0.1, 1e-30], [0.4, 0.3, 0.2, 0.1]]
)
@pytest.mark.parametrize(("top_k", "top_p"), [(2, 1.0), (0, 0.55), (3, 0.9)])
def test_the_set_survives_rounding(rng, probs, top_k, top_p):
    """Also when the last kept token has equals: the cutoff keeps its distance from all."""
    log_probs = np.log(np.float32(probs))
    cutoff = truncation_cutoff(log_probs, top_k=top_k, top_p=top_p)
    for _ in range(10):
        recomputed = log_probs + np.float32(1e-4 * rng.normal(size=4))
        np.testing.assert_array_equal(recomputed >= cutoff, log_probs >= cutoff)


def test_a_token_of_no_probability_does_not_drag_the_cutoff_down():
    log_probs = jnp.array([-0.5, -0.95, -300.0, -jnp.inf])
    cutoff = truncation_cutoff(log_probs, top_k=2, top_p=1.0)
    np.testing.assert_allclose(cutoff, -1.45)
    nothing_else = truncation_cutoff(jnp.array([-0.7, -0.7, -jnp.inf]), top_k=2, top_p=1.0)
    assert nothing_else == -jnp.inf


@pytest.mark.parametrize("vocabulary", [1, 2, 7, 16, 30])
def test_tokens_are_drawn_as_often_as_they_are_likely(rng, vocabulary):
    logits = 2 * rng.normal(size=vocabulary)
    logits[3:5] = -np.inf
    log_probs = jax.nn.log_softmax(np.float32(logits))
    keys = jax.random.split(jax.random.key(0), 40_000)
    tokens = jax.vmap(draw, (0, None))(keys, log_probs)
    found = np.bincount(tokens, minlength=vocabulary) / len(keys)
    expected = np.exp(log_probs)
    assert found.shape == expected.shape
    np.testing.assert_array_equal(found[3:5], 0)
    np.testing.assert_allclose(found, expected, atol=5 * np.sqrt(expected / len(keys)).max())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1, got 0"),
        ({"temperature": -0.1}, "temperature must not be negative, got -0.1"),
        ({"top_k": -1}, "top_k must not be negative, got -1"),
        ({"top_p": 0.0}, r"top_p must be in \(0, 1\], got 0.0"),
        ({"top_p": 1.1}, r"top_p must be in \(0, 1\], got 1.1"),
    ],
)
def test_settings_out_of_range(wrong, message):
    with pytest.raises(ValueError, match=message):
        Sampling(**({"max_new_tokens": 4, "stop_ids": ()} | wrong))


def test_what_settings_mean():
    assert settings(temperature=0.0).greedy
    assert not settings().greedy
    assert not settings().truncates
    assert settings(top_k=1).truncates
    assert settings(top_p=0.9).truncates
