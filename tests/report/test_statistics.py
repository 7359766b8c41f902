import re

import numpy as np
import pytest
from scipy.special import stdtrit

from t2g_jax.report.statistics import clustered_interval, reward_interval

Z = 1.959963984540054


def wilson_interval(successes, trials):
    """Wilson's score interval for independent trials, JASA 1927."""
    mean, shrink = successes / trials, Z**2 / trials
    half = Z * (mean * (1 - mean) / trials + shrink / (4 * trials)) ** 0.5
    return tuple((mean + shrink / 2 + sign * half) / (1 + shrink) for sign in (-1, 1))


def test_more_confidence_is_wider_and_more_prompts_are_narrower():
    def width(bounds):
        return bounds[1] - bounds[0]

    correct = np.array([[1.0], [1.0], [0.0], [1.0]])
    assert width(clustered_interval(correct, confidence=0.99)) > width(clustered_interval(correct))
    assert width(clustered_interval(np.tile(correct, (9, 1)))) < width(clustered_interval(correct))


def test_equal_samples_count_once_a_prompt():
    """Repeating each prompt's only sample eight times adds nothing."""
    prompts = (np.arange(50) < 20).astype(float)[:, None]
    np.testing.assert_allclose(
        clustered_interval(np.repeat(prompts, 8, axis=1)), clustered_interval(prompts), rtol=1e-12
    )


def test_hand_worked_cluster_variance():
    correct = np.array([[1, 1], [1, 0], [0, 0], [1, 0]])
    means, mean = np.array([1, 0.5, 0, 0.5]), 0.5
    variance = ((means - mean) ** 2).sum() / (4 * 3)
    trials, t = 0.25 / variance, stdtrit(3, 0.975)
    half = t * (0.25 / trials + t**2 / (4 * trials**2)) ** 0.5 / (1 + t**2 / trials)
    np.testing.assert_allclose(clustered_interval(correct), (0.5 - half, 0.5 + half), rtol=1e-9)


def test_never_more_sure_than_independent_samples():
    """Prompts that agree by chance (each exactly half right) do not buy infinite confidence."""
    correct = np.tile([[0.0, 1.0]], (30, 4))
    low, high = clustered_interval(correct)
    naive = wilson_interval(correct.sum(), correct.size)
    assert low <= naive[0]
    assert high >= naive[1]


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_unanimous_samples_count_one_trial_a_prompt(value):
    low, high = clustered_interval(np.full((200, 8), value))
    assert (low if value == 0 else high) == value
    assert 0.015 < high - low < 0.025


def test_contains_the_mean_and_stays_in_the_unit_interval():
    rng = np.random.default_rng(0)
    for _ in range(300):
        prompts, samples = rng.integers(1, 12), rng.integers(1, 6)
        correct = rng.random((prompts, samples)) < rng.random()
        low, high = clustered_interval(correct)
        assert 0.0 <= low <= correct.mean() <= high <= 1.0
    assert clustered_interval([[True, False]]) == (0.0, 1.0)


@pytest.mark.parametrize("mean", [0.5, 0.9])
def test_covers_the_truth_where_a_naive_interval_does_not(mean):
    """Beta-binomial prompts with correlation .5, 40 prompts of 8 samples, 2,000 repetitions."""
    rng = np.random.default_rng(1)
    hits = naive = 0
    for _ in range(2000):
        p = rng.beta(mean, 1 - mean, size=(40, 1))
        correct = rng.random((40, 8)) < p
        low, high = clustered_interval(correct)
        hits += low <= mean <= high
        low, high = wilson_interval(correct.sum(), correct.size)
        naive += low <= mean <= high
    assert 0.935 < hits / 2000 < 0.985
    assert naive / 2000 < 0.8


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: clustered_interval([[1.0]], confidence=95), "strictly between 0 and 1"),
        (lambda: clustered_interval([1, 0, 1]), "[prompts, samples]"),
        (lambda: clustered_interval(np.zeros((0, 8))), "[prompts, samples]"),
        (lambda: clustered_interval([[-0.1, 1.0]]), "pass correctness, not the reward"),
        (lambda: clustered_interval([[np.nan, 1.0]]), "outside [0, 1]"),
    ],
)
def test_errors_say_what_to_pass(call, says):
    with pytest.raises(ValueError, match=re.escape(says)):
        call()


def test_the_interval_of_a_mean_reward():
    rewards = np.array([[1.0, 3.0], [2.0, 4.0], [6.0, 8.0]])  # prompts of mean 2, 3 and 7
    low, high = reward_interval(rewards)
    error = np.sqrt(((2 - 4) ** 2 + (3 - 4) ** 2 + (7 - 4) ** 2) / (3 * 2))
    assert (low + high) / 2 == pytest.approx(4)
    assert (high - low) / 2 == pytest.approx(4.302653 * error)  # Student's t, 2 degrees
    assert reward_interval(rewards[None]) == (low, high)
    assert reward_interval(rewards - 10) == (pytest.approx(low - 10), pytest.approx(high - 10))
    assert reward_interval(rewards[:1]) == (-np.inf, np.inf)
    wider = reward_interval(np.stack([rewards, rewards + 20]))
    assert wider[1] - wider[0] > high - low  # trainings that differ count for few
    for bad in (rewards[0], np.zeros((0, 1)), rewards * np.nan):
        with pytest.raises(ValueError, match="rewards has"):
            reward_interval(bad)
