import jax.numpy as jnp
import numpy as np
import pytest

from t2g_jax import losses


def test_matches_a_loop(rng):
    logits = rng.normal(size=(3, 5, 3))
    labels = rng.integers(-1, 2, (3, 5))
    weights = np.array([2.0, 0.1, 1.0])
    expected = np.zeros((3, 5))
    for index in np.ndindex(3, 5):
        log_probs = logits[index] - np.log(np.sum(np.exp(logits[index])))
        label = labels[index] + 1
        expected[index] = -weights[label] * log_probs[label]
    loss = losses.span_reward_cross_entropy(logits, labels, class_weights=weights)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_classes_are_poor_neutral_good():
    logits = np.log([0.7, 0.2, 0.1])
    for label, probability in ((-1, 0.7), (0, 0.2), (1, 0.1)):
        loss = losses.span_reward_cross_entropy(logits, label)
        np.testing.assert_allclose(loss, -np.log(probability), rtol=1e-6)


def test_labels_may_be_floats(rng):
    logits = rng.normal(size=(4, 3))
    labels = np.array([-1, 0, 1, 0])
    np.testing.assert_array_equal(
        losses.span_reward_cross_entropy(logits, labels),
        losses.span_reward_cross_entropy(logits, labels.astype(np.float32)),
    )


def test_other_labels_are_not_labels(gradient_of):
    logits, labels = jnp.zeros((2, 3)), jnp.array([-100, 7])
    np.testing.assert_array_equal(losses.span_reward_cross_entropy(logits, labels), 0)
    gradient = gradient_of(losses.span_reward_cross_entropy)(logits, labels)
    np.testing.assert_array_equal(gradient, 0)


def test_an_undefined_token_has_no_gradient(gradient_of):
    logits = jnp.array([[jnp.nan, 0.0, 0.0], [0.0, 0.0, 0.0]])
    labels = jnp.array([0, 0])
    loss = losses.span_reward_cross_entropy(logits, labels)
    np.testing.assert_allclose(loss, [np.nan, np.log(3)], rtol=1e-6)
    gradient = gradient_of(losses.span_reward_cross_entropy)(logits, labels)
    np.testing.assert_array_equal(gradient[0], 0)


def test_shapes_must_agree():
    with pytest.raises(ValueError, match=r"logits .*labels .*\(2, 4\).*\(2,\)"):
        losses.span_reward_cross_entropy(jnp.ones((2, 4)), jnp.zeros(2))
    with pytest.raises(ValueError, match=r"class_weights .*\(2,\)"):
        losses.span_reward_cross_entropy(jnp.ones((2, 3)), jnp.zeros(2), class_weights=jnp.ones(2))
