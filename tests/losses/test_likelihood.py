import jax.numpy as jnp
import numpy as np
import pytest

from t2g_jax import losses


def test_by_hand():
    logprobs = np.array([[-1.0, -2.0], [-3.0, -0.5]])
    np.testing.assert_allclose(losses.nll(logprobs), -logprobs)
    weights = np.array([[1.0, 0.5], [0.0, 2.0]])
    np.testing.assert_allclose(losses.nll(logprobs, token_weights=weights), -weights * logprobs)


def test_a_weight_of_zero_silences_any_token(gradient_of):
    logprobs = jnp.array([-1.0, -jnp.inf, jnp.nan])
    weights = jnp.array([2.0, 0.0, 0.0])

    def loss(logprobs):
        return losses.nll(logprobs, token_weights=weights)

    np.testing.assert_array_equal(loss(logprobs), [2.0, 0.0, 0.0])
    np.testing.assert_array_equal(gradient_of(loss)(logprobs), [-2.0, 0.0, 0.0])


def test_no_gradient_to_the_weights(gradient_of):
    gradient = gradient_of(lambda w: losses.nll(jnp.ones(3), token_weights=w))
    np.testing.assert_array_equal(gradient(jnp.ones(3)), 0)


def test_shapes_must_agree():
    with pytest.raises(ValueError, match=r"logprobs .*token_weights .*\(2, 3\).*\(2,\)"):
        losses.nll(jnp.ones((2, 3)), token_weights=jnp.ones(2))
