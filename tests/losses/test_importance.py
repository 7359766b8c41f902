import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t2g_jax import losses
from t2g_jax.reductions import reduce

LEVELS = ("token", "sequence", "geometric")


@pytest.fixture
def batch(rng):
    logprobs, sampled = -rng.exponential(size=(2, 4, 6))
    return logprobs, sampled, rng.random((4, 6)) < 0.7


def _loop(logprobs, sampled, mask, level, segments=None):
    """The ratio of each token's own, its sequence's, or its sequence's mean."""
    ratio = np.zeros(logprobs.shape)
    for row, t in np.ndindex(*logprobs.shape):
        together = mask[row] & (True if segments is None else segments[row] == segments[row, t])
        logs = (logprobs - sampled)[row, together]
        ratio[row, t] = {
            "token": lambda row=row, t=t: np.exp((logprobs - sampled)[row, t]),
            "sequence": lambda logs=logs: np.exp(logs.sum()),
            "geometric": lambda logs=logs: np.exp(logs.mean() if len(logs) else 0),
        }[level]()
    return ratio


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("level", LEVELS)
def test_weights_match_a_loop(batch, level, packed, precision):
    logprobs, sampled, mask = batch
    segments = np.repeat([[0, 0, 1, 1, 1, 2]], 4, axis=0) if packed else None
    ratio = _loop(logprobs, sampled, mask, level, segments)
    given = (*map(precision.cast, (logprobs, sampled)), mask)
    options = {"level": level, "segment_ids": segments}
    precision.assert_close(
        losses.truncated_importance(*given, cap=1.5, **options),
        np.where(mask, np.minimum(ratio, 1.5), 0),
    )
    precision.assert_close(
        losses.masked_importance(*given, low=0.6, high=1.7, **options),
        np.where(mask & (ratio >= 0.6) & (ratio <= 1.7), ratio, 0),
    )


@pytest.mark.parametrize("weights", [losses.truncated_importance, losses.masked_importance])
@pytest.mark.parametrize("level", LEVELS)
def test_masked_is_sliced_and_has_no_gradient(batch, weights, level, gradient_of):
    logprobs, sampled, _ = batch
    mask = np.arange(6) < 4
    dirty = np.where(mask, logprobs, np.nan)
    found = weights(dirty, sampled, where=np.broadcast_to(mask, dirty.shape), level=level)
    expected = weights(logprobs[:, :4], sampled[:, :4], level=level)
    np.testing.assert_allclose(found[:, :4], expected, rtol=1e-6)
    np.testing.assert_array_equal(found[:, 4:], 0)
    np.testing.assert_array_equal(gradient_of(weights)(logprobs, sampled), 0)


@pytest.mark.parametrize("weights", [losses.truncated_importance, losses.masked_importance])
def test_the_same_policy_weighs_one(batch, weights):
    for level in LEVELS:
        np.testing.assert_array_equal(weights(batch[0], batch[0], level=level), 1)


def test_an_empty_mask_weighs_nothing(batch, gradient_of):
    logprobs, sampled, _ = batch

    def loss(logprobs):
        weights = losses.truncated_importance(
            logprobs, sampled, jnp.zeros(logprobs.shape), level="sequence"
        )
        return losses.nll(jnp.full(logprobs.shape, jnp.nan), token_weights=weights)

    np.testing.assert_array_equal(loss(logprobs), 0)
    np.testing.assert_array_equal(gradient_of(loss)(logprobs), 0)


def test_truncation_without_a_cap_is_the_importance_correction(batch):
    logprobs, sampled, _ = batch
    advantages = np.linspace(-1, 1, 24).reshape(4, 6)
    weights = losses.truncated_importance(logprobs, sampled, cap=np.inf)
    np.testing.assert_allclose(
        losses.reinforce(logprobs, advantages) * weights,
        losses.self_distillation(
            logprobs, advantages, correction="importance", teacher_logprobs=sampled
        ),
        rtol=1e-5,
    )


def test_a_capped_weight_is_cispo_that_clips_from_above(batch):
    logprobs, sampled, _ = batch
    advantages = np.linspace(-1, 1, 24).reshape(4, 6)
    weights = losses.truncated_importance(logprobs, sampled, cap=1.3)
    np.testing.assert_allclose(
        weights * losses.reinforce(logprobs, advantages),
        losses.cispo(logprobs, sampled, advantages, epsilon_low=1.0, epsilon_high=0.3),
        rtol=1e-5,
    )


def test_weights_correct_the_expectation_for_another_sampler(rng):
    """Σ q(v) w(v) ∇loss(v) is the gradient under p, as no ratio exceeds the cap."""
    logits, other = rng.normal(size=(2, 7))
    p, q = (jax.nn.log_softmax(jnp.asarray(x)) for x in (logits, other))
    weights = losses.truncated_importance(p, q, cap=1e4)
    values = rng.normal(size=7)
    np.testing.assert_allclose(
        reduce(jnp.exp(q) * weights * values, denominator=1), jnp.exp(p) @ values, rtol=1e-4
    )


def test_refusals():
    x = jnp.zeros((2, 3))
    with pytest.raises(ValueError, match=r"cap must be positive, got 0"):
        losses.truncated_importance(x, x, cap=0)
    with pytest.raises(ValueError, match=r"low and high .* 2 and 1"):
        losses.masked_importance(x, x, low=2, high=1)
    with pytest.raises(ValueError, match=r"level must be 'token', .*not 'turn'"):
        losses.truncated_importance(x, x, level="turn")
    with pytest.raises(ValueError, match=r"mask and where .*\(2, 3\).*\(2, 3\)"):
        losses.truncated_importance(x, x, x, where=x)
    with pytest.raises(ValueError, match=r"logprobs and sampled_logprobs .*\(2, 3\).*\(2, 4\)"):
        losses.masked_importance(x, jnp.zeros((2, 4)))
    with pytest.raises(ValueError, match=r"cap must be positive, got nan"):
        losses.truncated_importance(x, x, cap=np.nan)
    with pytest.raises(TypeError, match=r"cap must be a number, got 'high'"):
        losses.truncated_importance(x, x, cap="high")
    with pytest.raises(ValueError, match=r"low and high .* nan and 2"):
        losses.masked_importance(x, x, low=np.nan, high=2)


def test_limits_may_be_traced(batch):
    logprobs, sampled, _ = batch
    for weights, limits in (
        (losses.truncated_importance, {"cap": 1.5}),
        (losses.masked_importance, {"low": 0.6, "high": 1.7}),
    ):
        found = jax.jit(lambda limits, f=weights: f(logprobs, sampled, **limits))(limits)
        np.testing.assert_allclose(found, weights(logprobs, sampled, **limits), rtol=1e-6)
