import json

import jax.numpy as jnp
import numpy as np
import pytest

from t2g_jax import losses
from t2g_jax.reductions import masked_mean


def test_by_hand():
    values = np.array([1.0, 1.0, 1.0, 0.0])
    old_values = np.array([0.0, 0.0, 1.0, 0.5])
    returns = np.array([1.0, 0.0, 3.0, 0.3])
    # Predictions clipped to 0.2, 0.2, 1.0, 0.3; the larger of both squared errors counts.
    np.testing.assert_allclose(
        losses.clipped_value(values, old_values, returns),
        0.5 * np.array([0.8**2, 1.0, 4.0, 0.3**2]),
        rtol=1e-6,
    )


def test_the_gradient_stops_where_a_prediction_has_moved_far_enough_towards_its_return(gradient_of):
    values, old_values, returns = np.array([[1.0, 0.1], [0.0, 0.0], [2.0, 2.0]], np.float32)
    gradient = gradient_of(losses.clipped_value)(values, old_values, returns)
    np.testing.assert_allclose(gradient, [0.0, -1.9], rtol=1e-6)


def test_no_gradient_to_old_values_and_returns(rng, gradient_of):
    arrays = rng.normal(size=(3, 2, 5)).astype(np.float32)
    for gradient in gradient_of(losses.clipped_value, (1, 2))(*arrays):
        np.testing.assert_array_equal(gradient, 0)


def test_reference_value_loss(golden, precision):
    z = np.load(golden / "text2grad_ppo_0.npz")
    meta = json.loads(str(z["meta"]))
    vpreds, values, returns, mask = (
        precision.cast(z[name]) for name in ("vpreds", "values", "returns", "mask")
    )
    values = values * mask
    loss = losses.clipped_value(vpreds, values, returns, epsilon=meta["value_clip"])
    precision.assert_close(meta["vf_coef"] * masked_mean(loss, mask), z["value_loss_times_coef"])
    acts = losses.value_clip_acts(vpreds, values, returns, epsilon=meta["value_clip"])
    precision.assert_close(masked_mean(precision.cast(acts * 1.0), mask), z["vf_clipfrac"])
    moved = np.asarray(loss > 0.5 * (vpreds - returns) ** 2)
    precision.assert_close(masked_mean(precision.cast(moved * 1.0), mask), z["vf_clipfrac"])


def test_where_the_value_clip_acts_by_hand():
    """Only on the way to the return, and beyond ε of the old value."""
    values, old, returns, expected = zip(
        (1.0, 0.0, 2.0, True),  # clipped to 0.2, which is further from 2
        (1.0, 0.0, -2.0, False),  # away from −2: nothing to hold back
        (0.1, 0.0, 2.0, False),
        (-1.0, 0.0, -2.0, True),
        (1.0, 0.0, 0.5, False),  # past the return, and further from it than 0.2 is
        (1e30, 0.0, 2e30, True),  # also where distances have no square in float32
        (np.nan, 0.0, 2.0, False),
        strict=True,
    )
    found = losses.value_clip_acts(np.float32(values), np.float32(old), np.float32(returns))
    np.testing.assert_array_equal(found, expected)


def test_refusals():
    x = jnp.zeros((2, 3))
    for function in (losses.clipped_value, losses.value_clip_acts):
        with pytest.raises(ValueError, match=r"epsilon must be at least 0, got -0\.2"):
            function(x, x, x, epsilon=-0.2)
