import jax
import numpy as np
import pytest

from t2g_jax.spans.masks import span_mask, token_rewards

OVERLAPS = ("poor", "sum", "mean", "last")


def _loop(starts, ends, rewards, length, overlap):
    result = np.zeros((*starts.shape[:-1], length))
    for *row, token in np.ndindex(*result.shape):
        covering = [
            reward
            for start, end, reward in zip(starts[*row], ends[*row], rewards[*row], strict=True)
            if start <= token < end
        ]
        if covering:
            result[*row, token] = {
                "poor": min,
                "sum": sum,
                "mean": np.mean,
                "last": lambda x: x[-1],
            }[overlap](covering)
    return result


@pytest.fixture
def spans(rng):
    starts = rng.integers(0, 10, (3, 2, 5))
    ends = starts + rng.integers(0, 5, starts.shape)
    return starts, ends, rng.choice([-1.0, -0.5, 0.0, 1.0], starts.shape)


@pytest.mark.parametrize("overlap", OVERLAPS)
def test_token_rewards_match_a_loop(spans, overlap):
    result = token_rewards(*spans, 12, overlap=overlap)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, _loop(*spans, 12, overlap), rtol=1e-6)


def test_span_mask_matches_a_loop(spans):
    starts, ends, _ = spans
    result = span_mask(starts, ends, 12)
    assert result.dtype == bool
    np.testing.assert_array_equal(result, _loop(starts, ends, np.ones(starts.shape), 12, "poor"))


def test_by_hand():
    starts, ends, rewards = [[0, 2, 5, 0]], [[3, 4, 5, 0]], [[1.0, -1.0, 7.0, 7.0]]
    np.testing.assert_array_equal(span_mask(starts, ends, 6), [[1, 1, 1, 1, 0, 0]])
    for overlap, both in (("poor", -1), ("sum", 0), ("mean", 0), ("last", -1)):
        np.testing.assert_array_equal(
            token_rewards(starts, ends, rewards, 6, overlap=overlap), [[1, 1, both, -1, 0, 0]]
        )


def test_the_poorest_wins_by_default(spans):
    np.testing.assert_array_equal(
        token_rewards(*spans, 12), token_rewards(*spans, 12, overlap="poor")
    )


@pytest.mark.parametrize("overlap", OVERLAPS)
def test_padding_and_no_spans(overlap):
    padded = token_rewards([[3, 0]], [[3, 0]], [[np.nan, np.inf]], 4, overlap=overlap)
    np.testing.assert_array_equal(padded, np.zeros((1, 4)))
    empty = np.zeros((2, 0))
    np.testing.assert_array_equal(
        token_rewards(empty, empty, empty, 4, overlap=overlap), np.zeros((2, 4))
    )
    assert not span_mask(empty, empty, 4).any()


def test_what_lies_outside_the_row_is_ignored():
    np.testing.assert_array_equal(span_mask([-2, 3], [1, 9], 4), [1, 0, 0, 1])


@pytest.mark.parametrize("overlap", OVERLAPS)
def test_rewards_get_gradients_only_from_the_tokens_they_decide(overlap):
    gradient = jax.grad(lambda r: token_rewards([0, 1], [2, 3], r, 4, overlap=overlap).sum())
    expected = {"poor": [1, 2], "sum": [2, 2], "mean": [1.5, 1.5], "last": [1, 2]}[overlap]
    np.testing.assert_allclose(gradient(np.array([1.0, -1.0], np.float32)), expected)


def test_refusals():
    with pytest.raises(ValueError, match=r"starts and ends .*\(2,\).*\(3,\)"):
        span_mask([0, 1], [1, 2, 3], 4)
    with pytest.raises(ValueError, match=r"starts and rewards .*\(2,\).*\(1,\)"):
        token_rewards([0, 1], [1, 2], [1.0], 4)
    with pytest.raises(ValueError, match="'worst'"):
        token_rewards([0], [1], [1.0], 4, overlap="worst")
    with pytest.raises(ValueError, match="length must be at least 0, got -1"):
        span_mask([0], [1], -1)
    with pytest.raises(TypeError, match=r"length must be an integer, got 2\.0"):
        token_rewards([0], [1], [1.0], 2.0)
