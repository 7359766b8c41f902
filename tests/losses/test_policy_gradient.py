from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t2g_jax import losses
from t2g_jax.reductions import Reduction, masked_mean, reduce


def _gspo(logprobs, old_logprobs, advantages, **settings):
    """All tokens count."""
    return losses.gspo(logprobs, old_logprobs, advantages, jnp.ones_like(logprobs), **settings)


each_surrogate = pytest.mark.parametrize(
    "surrogate",
    [losses.clipped_surrogate, partial(losses.cispo, epsilon_low=0.2, epsilon_high=0.2), _gspo],
    ids=["ppo", "cispo", "gspo"],
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


def test_sequence_ratio_by_hand():
    ratios = np.log([[2.0, 8.0, 5.0, 3.0]])
    mask = np.array([[1, 1, 0, 0.5]])  # what does not count, and what counts
    old = np.zeros((1, 4))
    third = np.cbrt(2 * 8 * 3)
    np.testing.assert_allclose(losses.sequence_ratio(ratios, old, mask), [[third] * 4], rtol=1e-6)
    packed = losses.sequence_ratio(ratios, old, mask, segment_ids=np.array([[1, 1, 2, 3]]))
    np.testing.assert_allclose(packed, [[4, 4, 1, 3]], rtol=1e-6)


def test_gspo_by_hand():
    """Two sequences of two tokens; the ratios are 2 and ½, as a geometric mean."""
    logprobs = np.log([[1.0, 4.0], [0.25, 1.0]])
    old, mask = np.zeros((2, 2)), np.ones((2, 2))
    advantages = np.array([[1.0, -1.0], [1.0, -1.0]])
    loss = losses.gspo(logprobs, old, advantages, mask, epsilon_low=0.1, epsilon_high=0.3)
    # Clipped where a move further away would look like an improvement, token by token.
    np.testing.assert_allclose(loss, [[-1.3, 2.0], [-0.5, 0.9]], rtol=1e-6)


def test_gspo_matches_a_loop(rng, precision):
    logprobs, old = -rng.exponential(size=(2, 5, 7))
    old = 0.5 * (logprobs + old)
    advantages, mask = rng.normal(size=(5, 7)), rng.random((5, 7)) < 0.7
    mask[2] = False
    segments = np.sort(rng.integers(0, 3, (5, 7)), axis=-1)
    expected, ratios = np.zeros((2, *mask.shape))
    for row, t in np.ndindex(*mask.shape):
        where = mask[row] & (segments[row] == segments[row, t])
        ratio = np.exp((logprobs[row, where] - old[row, where]).mean()) if where.any() else 1.0
        clipped = min(max(ratio, 0.9), 1.05)
        ratios[row, t] = ratio
        expected[row, t] = -min(ratio * advantages[row, t], clipped * advantages[row, t])
    assert (ratios < 0.9).any()
    assert (ratios > 1.05).any()
    given = [precision.cast(x) for x in (logprobs, old, advantages)]
    gspo = jax.jit(partial(losses.gspo, epsilon_low=0.1, epsilon_high=0.05))
    precision.assert_close(gspo(*given, mask, segment_ids=segments), expected)
    ratio = jax.jit(losses.sequence_ratio)(*given[:2], mask, segment_ids=segments)
    precision.assert_close(ratio, ratios)


def test_gspo_masked_is_sliced_and_packed_is_unpacked(batch):
    logprobs, old_logprobs, advantages = (x[:1] for x in batch)
    mask = np.array([[1, 1, 0, 1, 0, 1, 1]], bool)
    segments = np.array([[1, 1, 1, 2, 2, 2, 2]])
    garbage = np.resize([np.nan, np.inf, -np.inf], mask.shape)
    dirty = [np.where(mask, x, garbage) for x in (logprobs, old_logprobs, advantages)]
    packed = np.asarray(losses.gspo(*dirty, mask, segment_ids=segments))
    for segment in (1, 2):
        where = mask & (segments == segment)
        sliced = [x[where][None] for x in (logprobs, old_logprobs, advantages)]
        alone = losses.gspo(*sliced, np.ones_like(sliced[0]))
        np.testing.assert_allclose(packed[where], alone[0], rtol=1e-6)


def test_the_gradient_of_gspo_is_that_of_its_equation(batch, precision):
    """Eq. 5: the mean over sequences of min(sA, clip(s) A), s a function of all their tokens."""
    logprobs, old_logprobs, _ = (precision.cast(x) for x in batch)
    mask = np.arange(7) < np.array([[7], [3], [1], [4]])
    advantage = precision.cast(np.array([[1.0], [-2.0], [0.5], [-1.0]]))
    # One of each: below and above the clip range, with either sign of the advantage.
    wanted = np.array([[0.5], [0.5], [2.0], [2.0]])
    now = (logprobs - old_logprobs).mean(where=mask, axis=1, keepdims=True)
    old_logprobs = precision.cast(old_logprobs + now - np.log(wanted))
    epsilons = {"epsilon_low": 0.3, "epsilon_high": 0.4}

    def equation(logprobs):
        log_ratios = jnp.where(mask, logprobs - old_logprobs, 0)
        s = jnp.exp(log_ratios.sum(1) / mask.sum(1))
        a = advantage[:, 0]
        return -jnp.minimum(s * a, jnp.clip(s, 0.7, 1.4) * a).mean()

    def ours(logprobs):
        advantages = jnp.broadcast_to(advantage, logprobs.shape)
        loss = losses.gspo(logprobs, old_logprobs, advantages, mask, **epsilons)
        return reduce(loss, mask, Reduction.SEQUENCE_MEAN_TOKEN_MEAN)

    (value, gradient), (expected, expected_gradient) = (
        jax.jit(jax.value_and_grad(f))(logprobs) for f in (ours, equation)
    )
    precision.assert_close(value, expected)
    precision.assert_close(gradient, expected_gradient)
    learned = np.abs(gradient).sum(1) > 0
    assert learned.tolist() == [True, False, False, True]


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


def test_no_gradient_to_what_the_ratio_was_sampled_from(batch, gradient_of):
    logprobs, old_logprobs, _ = batch
    mask = np.ones_like(logprobs)
    for ratio in (losses.importance_ratio, lambda *x: losses.sequence_ratio(*x, mask)):
        mine, olds = gradient_of(ratio, (0, 1))(logprobs, old_logprobs)
        assert np.asarray(mine).all()
        np.testing.assert_array_equal(olds, 0)


@each_surrogate
def test_absurd_ratios_leave_finite_gradients(gradient_of, surrogate):
    logprobs = jnp.array([[-1.0], [-1.0], [-1000.0], [-1000.0]])
    old_logprobs = jnp.array([[-1000.0], [-1000.0], [-1.0], [-1.0]])
    advantages = jnp.array([[1.0], [-1.0], [1.0], [-1.0]])
    arguments = logprobs, old_logprobs, advantages
    assert np.isfinite(surrogate(*arguments)).all()
    assert np.isfinite(gradient_of(surrogate)(*arguments)).all()


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
    acts = losses.clip_acts("ppo", ratio, z["advantages"], epsilon_low=0.2, epsilon_high=0.2)
    inside = z["mask"] > 0
    np.testing.assert_array_equal(acts[inside], clipped[inside])
    precision.assert_close(masked_mean(clipped.astype(precision.dtype), z["mask"]), z["clipfrac"])


CLIPS = {  # ratio, advantage: does the clip act?
    "ppo": [(1.3, 1, True), (1.3, -1, False), (0.7, 1, False), (0.7, -1, True)],
    "gspo": [(1.3, 1, True), (1.3, -1, False), (0.7, 1, False), (0.7, -1, True)],
    "cispo": [(1.3, 1, True), (1.3, -1, True), (0.7, 1, True), (0.7, -1, True)],
    "reinforce": [(1.3, 1, False), (1.3, -1, False), (0.7, 1, False), (0.7, -1, False)],
}
NEVER = [(1.0, 1), (1.15, 2), (0.85, -2), (9.0, 0), (0.1, 0), (np.nan, 1), (9.0, np.nan)]


@pytest.mark.parametrize("surrogate", CLIPS)
def test_where_the_clip_acts_by_hand(surrogate):
    cases = [*CLIPS[surrogate], *[(*pair, False) for pair in NEVER]]
    ratio, advantages, expected = zip(*cases, strict=True)
    found = losses.clip_acts(surrogate, ratio, advantages, epsilon_low=0.2, epsilon_high=0.2)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("surrogate", ["ppo", "cispo"])
def test_the_clip_acts_where_it_changes_the_gradient(batch, surrogate, gradient_of):
    logprobs, old_logprobs, advantages = batch
    loss = losses.clipped_surrogate if surrogate == "ppo" else losses.cispo
    tight = {"epsilon_low": 0.2, "epsilon_high": 0.3}
    clipped, free = (
        gradient_of(partial(loss, **epsilons))(logprobs, old_logprobs, advantages)
        for epsilons in (tight, {"epsilon_low": np.inf, "epsilon_high": np.inf})
    )
    ratio = losses.importance_ratio(logprobs, old_logprobs)
    acts = losses.clip_acts(surrogate, ratio, advantages, **tight)
    np.testing.assert_array_equal(acts, ~np.isclose(clipped, free, rtol=1e-6, atol=0))
    outside = (ratio < 0.8) | (ratio > 1.3)
    assert (surrogate == "cispo") == bool((acts == outside).all())


def test_clip_acts_knows_its_surrogates():
    with pytest.raises(ValueError, match="'sapo'"):
        losses.clip_acts("sapo", jnp.ones(2), jnp.ones(2), epsilon_low=0.2, epsilon_high=0.2)


@pytest.mark.parametrize("name", ["epsilon_low", "epsilon_high"])
@pytest.mark.parametrize("wrong", [-0.1, np.nan])
def test_clip_ranges_are_not_negative(batch, name, wrong):
    x = batch[0]
    epsilons = {"epsilon_low": 0.2, "epsilon_high": 0.2, name: wrong}
    for loss in (losses.clipped_surrogate, losses.cispo, losses.gspo):
        with pytest.raises(ValueError, match=rf"{name} must be at least 0, got {wrong}"):
            loss(x, x, x, **epsilons)
    with pytest.raises(ValueError, match=rf"{name} must be at least 0, got {wrong}"):
        losses.clip_acts("ppo", x, x, **epsilons)
    with pytest.raises(ValueError, match=rf"{name} must be at least 0, got {wrong}"):
        losses.self_distillation(x, x, correction="ppo", old_logprobs=x, **epsilons)


def test_clip_ranges_may_be_traced(batch):
    x = batch[0]
    for loss in (losses.clipped_surrogate, losses.cispo, losses.gspo):
        epsilons = {"epsilon_low": 0.1, "epsilon_high": 0.3}
        found = jax.jit(lambda e, loss=loss: loss(x, x[::-1], x, **e))(epsilons)
        np.testing.assert_allclose(found, loss(x, x[::-1], x, **epsilons), rtol=1e-5)
