import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t2g_jax import losses
from t2g_jax.reductions import masked_mean


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


def test_weights_by_role():
    roles = np.array([[0, 1, 2, 3, 7, -1]])
    np.testing.assert_array_equal(
        losses.role_weights(roles, {1: 0.25, 3: 1.0}), [[0, 0.25, 0, 1, 0, 0]]
    )
    np.testing.assert_array_equal(
        losses.role_weights(roles, [0.0, 0.5, 0.0, 2.0]), [[0, 0.5, 0, 2, 0, 0]]
    )
    np.testing.assert_array_equal(losses.role_weights(roles, {}), np.zeros((1, 6)))
    mapped = jax.jit(lambda roles: losses.role_weights(roles, {3: 1.0}))(roles)
    np.testing.assert_array_equal(mapped, [[0, 0, 0, 1, 0, 0]])


def test_roles_are_numbers_from_zero():
    with pytest.raises(ValueError, match=r"roles must be integers, got float32"):
        losses.role_weights(jnp.ones((1, 2)), [1.0])
    with pytest.raises(ValueError, match=r"numbered from 0.*\[-1\]"):
        losses.role_weights(jnp.zeros((1, 2), int), {-1: 1.0})
    for role in ("tool", 1.0, None):
        with pytest.raises(ValueError, match=rf"weights has \[{role!r}\]; give"):
            losses.role_weights([[0]], {role: 1.0})


def test_echo_learns_the_answers_beside_the_policy(gradient_of):
    """Of a turn and its answer, either term moves its own tokens alone, by its own denominator."""
    agent, tool = 1, 2
    roles = jnp.array([[agent, agent, tool, tool, tool, 0]])
    logprobs = jnp.linspace(-3, -1, 6)[None]
    actions = roles == agent
    answers = losses.role_weights(roles, {tool: 1.0})

    def objective(logprobs):
        policy = losses.reinforce(logprobs, [[2.0]], where=actions)
        answered = losses.nll(logprobs, token_weights=answers)
        return masked_mean(policy, actions) + 0.05 * masked_mean(answered, answers)

    np.testing.assert_allclose(
        gradient_of(objective)(logprobs), [[-1, -1, -0.05 / 3, -0.05 / 3, -0.05 / 3, 0]], rtol=1e-6
    )
