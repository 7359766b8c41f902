import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t2g_jax import losses
from t2g_jax.models import heads


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


def test_a_severity_is_shared_out(rng):
    """Half poor, half neutral; a quarter good, the rest neutral."""
    targets = {-0.5: [0.5, 0.5, 0], 0.25: [0, 0.75, 0.25], 1: [0, 0, 1], 0: [0, 1, 0]}
    logits, weights = rng.normal(size=3), np.array([2.0, 0.5, 1.0])
    log_probs = logits - np.log(np.exp(logits).sum())
    for severity, target in targets.items():
        np.testing.assert_allclose(losses.span_targets(severity), target)
        loss = losses.span_reward_cross_entropy(logits, severity, class_weights=weights)
        np.testing.assert_allclose(loss, -(weights * target * log_probs).sum(), rtol=1e-5)
    for other in (1.5, -100, np.nan):
        np.testing.assert_array_equal(losses.span_targets(other), 0)
        np.testing.assert_array_equal(losses.span_reward_cross_entropy(logits, other), 0)


WEIGHTS = [(1.0, 1.0, 1.0), (5.0, 1.0, 1.0), (2.0, 0.1, 7.0)]


def minimized(labels, weights):
    """Logits that minimize the loss over tokens that nothing tells apart."""
    gradient = jax.jit(
        jax.grad(
            lambda logits: losses.span_reward_cross_entropy(
                jnp.broadcast_to(logits, (len(labels), 3)), labels, class_weights=weights
            ).mean()
        )
    )
    logits = jnp.zeros(3)
    for _ in range(800):
        logits -= gradient(logits)
    return logits


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize(
    "labels",
    [
        [-1, 1, 0, 0],  # as often good as poor: worth nothing
        [-1, 1, 1, 0, 0, 0],
        [-0.5, 0.25, 0.25, 0, 1],
    ],
)
def test_class_weights_are_divided_out(labels, weights):
    labels = jnp.array(labels, jnp.float32)
    logits = minimized(labels, weights)
    shares = losses.span_targets(labels).mean(0)
    p = losses.span_probabilities(logits, class_weights=weights)
    np.testing.assert_allclose(p, shares, atol=2e-3)
    np.testing.assert_allclose(p @ heads.SPAN_CLASSES, labels.mean(), atol=2e-3)


def test_what_was_not_divided_out_was_a_reward_of_its_own():
    """Good as often as poor, a tenth each, but (0.1 − 5 · 0.1) / (5 · 0.1 + 0.8 + 0.1) is not 0."""
    shares, weights = np.array([0.1, 0.8, 0.1]), np.array([5.0, 1.0, 1.0])
    logits = np.log(weights * shares)
    undivided = losses.span_probabilities(logits) @ heads.SPAN_CLASSES
    divided = losses.span_probabilities(logits, class_weights=weights) @ heads.SPAN_CLASSES
    assert undivided == pytest.approx(-0.4 / 1.4, abs=1e-6)
    assert divided == pytest.approx(0, abs=1e-6)


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
    with pytest.raises(ValueError, match=r"class_weights must be at least 0, got \(1, -1, 1\)"):
        losses.span_reward_cross_entropy(jnp.zeros(3), 0, class_weights=(1, -1, 1))
    with pytest.raises(ValueError, match=r"class_weights must be positive, got \(1, 0, 1\)"):
        losses.span_probabilities(jnp.zeros(3), class_weights=(1, 0, 1))
