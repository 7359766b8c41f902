from functools import partial

import jax.numpy as jnp
import numpy as np
import pytest

from t2g_jax import losses
from t2g_jax.reductions import masked_mean

each_surrogate = pytest.mark.parametrize(
    "surrogate",
    [losses.clipped_surrogate, partial(losses.cispo, epsilon_low=0.2, epsilon_high=0.2)],
    ids=["ppo", "cispo"],
)


@pytest.fixture
def batch(rng):
    logprobs, old_logprobs = -rng.exponential(size=(2, 4, 7)).astype(np.float32)
    return logprobs, old_logprobs, rng.normal(size=(4, 7)).astype(np.float32)


def test_clipped_surrogate_by_hand():
    ratios = np.array([0.5, 0.5, 1.0, 1.1, 2.0, 2.0])
    advantages = np.array([1.0, -1.0, 3.0, 1.0, 1.0, -1.0])
    # Clipped only where moving further away would look like an improvement.
    expected = [-0.5, 0.9, -3.0, -1.1, -1.3, 2.0]
    loss = losses.clipped_surrogate(
        np.log(ratios), np.zeros(6), advantages, epsilon_low=0.1, epsilon_high=0.3
    )
    np.testing.assert_allclose(loss, expected, rtol=1e-6)


def test_clipped_surrogate_stops_the_gradient_only_where_clipped(gradient_of):
    logprobs = np.log([0.5, 0.5, 2.0, 2.0, 1.1]).astype(np.float32)
    advantages = np.array([1.0, -1.0, 1.0, -1.0, 1.0], np.float32)
    gradient = gradient_of(losses.clipped_surrogate)(logprobs, np.zeros(5), advantages)
    np.testing.assert_allclose(gradient, [-0.5, 0.0, 0.0, 2.0, -1.1], rtol=1e-6)


def test_cispo_by_hand():
    logprobs = np.log([0.5, 0.5, 1.0, 2.0])
    loss = losses.cispo(
        logprobs, np.zeros(4), np.array([1.0, -1.0, 2.0, 1.0]), epsilon_low=0.2, epsilon_high=0.3
    )
    np.testing.assert_allclose(
        loss, -np.array([0.8, -0.8, 2.0, 1.3]) * logprobs, rtol=1e-6, atol=1e-7
    )


def test_cispo_gives_every_token_a_gradient(gradient_of):
    logprobs = np.log([0.5, 3.0]).astype(np.float32)
    cispo = partial(losses.cispo, epsilon_low=0.2, epsilon_high=0.2)
    gradient = gradient_of(cispo)(logprobs, np.zeros(2), np.ones(2))
    np.testing.assert_allclose(gradient, [-0.8, -1.2], rtol=1e-6)


def test_reinforce_by_hand():
    loss = losses.reinforce(np.array([-1.0, -2.0]), np.array([0.5, -3.0]))
    np.testing.assert_allclose(loss, [0.5, -6.0])


def test_surrogate_matches_a_loop(batch):
    logprobs, old_logprobs, advantages = batch
    expected = np.zeros_like(logprobs)
    for index in np.ndindex(*logprobs.shape):
        ratio = np.exp(np.float64(logprobs[index]) - old_logprobs[index])
        clipped = min(max(ratio, 0.8), 1.2)
        expected[index] = -min(ratio * advantages[index], clipped * advantages[index])
    loss = losses.clipped_surrogate(logprobs, old_logprobs, advantages)
    np.testing.assert_allclose(loss, expected, rtol=1e-5, atol=1e-6)


@each_surrogate
def test_at_ratio_one_the_gradient_is_that_of_reinforce(batch, surrogate, gradient_of):
    logprobs, _, advantages = batch
    gradient = gradient_of(surrogate)(logprobs, logprobs, advantages)
    plain = gradient_of(losses.reinforce)(logprobs, advantages)
    np.testing.assert_allclose(gradient, plain, rtol=1e-6)


@each_surrogate
def test_no_gradient_to_old_logprobs_and_advantages(batch, surrogate, gradient_of):
    for gradient in gradient_of(surrogate, (1, 2))(*batch):
        np.testing.assert_array_equal(gradient, 0)


def test_absurd_ratios_leave_finite_gradients(gradient_of):
    logprobs = jnp.array([-1.0, -1.0, -1000.0, -1000.0])
    old_logprobs = jnp.array([-1000.0, -1000.0, -1.0, -1.0])
    advantages = jnp.array([1.0, -1.0, 1.0, -1.0])
    arguments = logprobs, old_logprobs, advantages
    assert np.isfinite(losses.clipped_surrogate(*arguments)).all()
    assert np.isfinite(gradient_of(losses.clipped_surrogate)(*arguments)).all()


def test_importance_ratio(batch):
    logprobs, old_logprobs, _ = batch
    ratio = losses.importance_ratio(logprobs, old_logprobs)
    np.testing.assert_allclose(ratio, np.exp(logprobs - old_logprobs), rtol=1e-6)
    np.testing.assert_array_equal(losses.importance_ratio(logprobs, logprobs), 1)


def test_an_undefined_token_shows_in_the_value_and_not_in_the_gradient(gradient_of):
    logprobs = jnp.array([-1.0, -jnp.inf, jnp.nan])
    loss = losses.reinforce(logprobs, jnp.ones(3))
    assert np.isfinite(loss[0])
    assert np.isnan(loss[1:]).all()
    gradient = gradient_of(losses.reinforce)(logprobs, jnp.ones(3))
    np.testing.assert_array_equal(gradient, [-1.0, 0.0, 0.0])


def test_reference_policy_loss(golden, precision):
    z = {
        k: precision.cast(v)
        for k, v in np.load(golden / "text2grad_ppo_0.npz").items()
        if k != "meta"
    }
    loss = losses.clipped_surrogate(z["new_logprobs"], z["old_logprobs"], z["advantages"])
    precision.assert_close(masked_mean(loss, z["mask"]), z["policy_loss"])
    ratio = losses.importance_ratio(z["new_logprobs"], z["old_logprobs"])
    # The reference counts the tokens whose clipped branch is strictly the larger loss.
    clipped = np.asarray(loss > -ratio * z["advantages"])
    precision.assert_close(masked_mean(clipped.astype(precision.dtype), z["mask"]), z["clipfrac"])
