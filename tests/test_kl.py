import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t2g_jax import kl

ESTIMATORS = {
    kl.k1: lambda d: d,
    kl.k2: lambda d: d * d / 2,
    kl.k3: lambda d: np.exp(-d) - 1 + d,
    kl.absolute: abs,
}
each_estimator = pytest.mark.parametrize("estimator", ESTIMATORS, ids=lambda f: f.__name__)


@each_estimator
def test_matches_a_loop(estimator, rng, precision):
    logprobs, ref_logprobs = precision.cast(-rng.exponential(size=(2, 3, 5)))
    expected = np.zeros((3, 5), precision.dtype)
    for index in np.ndindex(3, 5):
        difference = float(logprobs[index]) - float(ref_logprobs[index])
        expected[index] = ESTIMATORS[estimator](difference)
    precision.assert_close(jax.jit(estimator)(logprobs, ref_logprobs), expected)


@each_estimator
def test_expectation_under_the_policy(estimator, rng):
    log_p, log_q = jax.nn.log_softmax(rng.normal(size=(2, 50)))
    mean = jnp.sum(jnp.exp(log_p) * estimator(log_p, log_q))
    if estimator in (kl.k1, kl.k3):
        np.testing.assert_allclose(mean, kl.full(log_p, log_q), rtol=1e-4)
    else:
        assert mean > 0


@each_estimator
def test_no_gradient_to_the_reference(estimator, rng):
    logprobs, ref_logprobs = -rng.exponential(size=(2, 4))
    gradient = jax.jit(jax.grad(lambda r: estimator(logprobs, r).sum()))(ref_logprobs)
    np.testing.assert_array_equal(gradient, 0)


@each_estimator
def test_undefined_tokens_and_absurd_ones_leave_finite_gradients(estimator):
    logprobs = jnp.array([-1.0, jnp.nan, -jnp.inf, -1.0, -1000.0, -1.0])
    ref_logprobs = jnp.array([-2.0, -1.0, -1.0, -jnp.inf, -1.0, -1000.0])
    gradient = jax.jit(jax.grad(lambda x: estimator(x, ref_logprobs).sum()))(logprobs)
    assert np.isfinite(gradient).all()
    np.testing.assert_array_equal(gradient[1:4], 0)
    assert np.isnan(estimator(logprobs, ref_logprobs)[1:4]).all()


def test_full_matches_a_loop_in_the_right_direction(rng, precision):
    policy, reference = (
        np.asarray(jax.nn.log_softmax(x)) for x in precision.cast(rng.normal(size=(2, 3, 4, 7)))
    )
    expected = np.zeros((3, 4), precision.dtype)
    for index in np.ndindex(3, 4):
        for v in range(7):
            p, q = float(policy[index][v]), float(reference[index][v])
            expected[index] += np.exp(p) * (p - q)
    precision.assert_close(jax.jit(kl.full)(policy, reference), expected)


def test_full_of_a_truncated_policy():
    policy, reference = np.log([[0.5, 0.5], [0.25, 0.25]])
    policy = np.append(policy, -np.inf)
    reference = np.append(reference, np.log(0.5))
    np.testing.assert_allclose(kl.full(policy, reference), np.log(2), rtol=1e-6)
    gradient = jax.jit(jax.grad(kl.full))(policy, reference)
    assert np.isfinite(gradient).all()
    assert kl.full(reference, policy) == np.inf


def test_full_of_an_undefined_row():
    policy = jnp.log(jnp.array([[0.5, 0.5], [jnp.nan, jnp.nan]]))
    reference = jnp.log(jnp.array([[0.25, 0.75], [0.5, 0.5]]))
    result = kl.full(policy, reference)
    assert np.isfinite(result[0])
    assert np.isnan(result[1])
    gradient = jax.jit(jax.grad(lambda x: kl.full(x, reference).sum()))(policy)
    np.testing.assert_array_equal(gradient[1], 0)
    assert np.isfinite(gradient[0]).all()


def test_reference_penalties_and_rewards(golden, precision):
    z = np.load(golden / "text2grad_ppo_0.npz")
    meta = json.loads(str(z["meta"]))
    logits, ref_logits, span_rewards, mask = (
        precision.cast(z[name]) for name in ("logits", "ref_logits", "span_rewards", "mask")
    )
    log_probs, ref_log_probs = jax.nn.log_softmax(logits), jax.nn.log_softmax(ref_logits)
    logprobs, ref_logprobs = (
        jnp.take_along_axis(x, z["tokens"][..., None], axis=-1)[..., 0]
        for x in (log_probs, ref_log_probs)
    )
    penalties = {
        "full": kl.full(log_probs, ref_log_probs),
        "kl": kl.k1(logprobs, ref_logprobs),
        "abs": kl.absolute(logprobs, ref_logprobs),
        "mse": kl.k2(logprobs, ref_logprobs),
    }
    for name, penalty in penalties.items():
        precision.assert_close(penalty, z[f"kl_{name}"])
        rewards = span_rewards * mask - meta["kl_coef"] * penalty
        precision.assert_close(rewards, z[f"rewards_{name}"])
