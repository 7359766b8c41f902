import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t2g_jax.reductions import Reduction, count, masked_mean, masked_sum, reduce, sequence_sum

HOWS = list(Reduction)


@pytest.fixture
def batch(rng):
    values = rng.normal(size=(4, 6)).astype(np.float32)
    mask = rng.random((4, 6)) < 0.6
    mask[2] = False
    return values, mask


@pytest.fixture
def segments(rng):
    """Sequences of many lengths side by side, padding (0) at the end of some rows."""
    return np.array(
        [[1, 1, 1, 1, 2, 3], [1, 2, 2, 3, 3, 3], [1, 1, 1, 0, 0, 0], [2, 2, 2, 2, 2, 2]]
    )


def _unpacked(segment_ids, *arrays):
    """[rows, T] with one sequence in each row."""
    places = [
        (row, segment_ids[row] == segment)
        for row in range(len(segment_ids))
        for segment in np.unique(segment_ids[row])
    ]
    for array in arrays:
        rows = np.zeros((len(places), array.shape[1]), array.dtype)
        for i, (row, where) in enumerate(places):
            rows[i, : where.sum()] = array[row, where]
        yield rows


def _loop(values, mask, how):
    rows = [row[keep] for row, keep in zip(values, mask, strict=True) if keep.any()]
    if how is Reduction.TOKEN_MEAN:
        return np.concatenate(rows).mean()
    if how is Reduction.SEQUENCE_MEAN_TOKEN_MEAN:
        return np.mean([row.mean() for row in rows])
    return np.mean([row.sum() for row in rows])


def test_masked_sum_and_mean_by_hand():
    values = np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    mask = np.array([[True, False, True], [False, False, False]])
    assert masked_sum(values, mask) == 4
    assert masked_mean(values, mask) == 2
    np.testing.assert_array_equal(masked_sum(values, mask, axis=-1), [4, 0])
    np.testing.assert_array_equal(masked_mean(values, mask, axis=-1), [2, 0])
    np.testing.assert_array_equal(masked_mean(values, mask, axis=0), [1, 0, 3])


def test_a_float_mask_weighs():
    assert masked_sum(np.array([1.0, 3.0]), np.array([0.5, 2.0])) == 6.5
    np.testing.assert_allclose(
        masked_mean(np.array([1.0, 3.0]), np.array([0.5, 2.0])), 2.6, rtol=1e-6
    )


@pytest.mark.parametrize("how", HOWS)
def test_reduce_matches_a_loop(batch, how):
    np.testing.assert_allclose(reduce(*batch, how), _loop(*batch, how), rtol=1e-5)


@pytest.mark.parametrize("how", HOWS)
def test_micro_batches_add_up(batch, how):
    values, mask = batch
    whole = reduce(values, mask, how)
    total = count(mask, how)
    parts = sum(
        reduce(values[rows], mask[rows], how, denominator=total)
        for rows in (slice(0, 1), slice(1, 4))
    )
    np.testing.assert_allclose(parts, whole, rtol=1e-5)
    np.testing.assert_allclose(count(mask[:1], how) + count(mask[1:], how), total)


@pytest.mark.parametrize("how", HOWS)
def test_packed_rows_reduce_as_unpacked_ones(batch, segments, how, precision):
    values, mask = (precision.cast(x) for x in batch)
    unpacked = list(_unpacked(segments, values, mask))
    packed = jax.jit(reduce, static_argnames="how")(values, mask, how=how, segment_ids=segments)
    precision.assert_close(packed, reduce(*unpacked, how))
    precision.assert_close(packed, _loop(*unpacked, how))
    assert count(mask, how, segment_ids=segments) == count(unpacked[1], how)


def test_sequence_sum_by_hand():
    values = np.array([[1.0, 2.0, 4.0, 8.0, np.nan]])
    mask = np.array([[1.0, 0.5, 1.0, 1.0, 0.0]])
    np.testing.assert_array_equal(sequence_sum(values, mask), [[14.0] * 5])
    segment_ids = np.array([[1, 1, 2, 2, 0]])
    expected = [[2.0, 2.0, 12.0, 12.0, 0.0]]
    np.testing.assert_array_equal(sequence_sum(values, mask, segment_ids=segment_ids), expected)


def test_sequence_sum_matches_a_loop(batch, segments, precision):
    values, mask = precision.cast(batch[0]), batch[1]
    expected, by_row = np.zeros((2, *values.shape))
    for row, t in np.ndindex(*values.shape):
        together = mask[row] & (segments[row] == segments[row, t])
        expected[row, t], by_row[row, t] = values[row, together].sum(), values[row, mask[row]].sum()
    dirty = np.where(mask, values, np.inf)
    summed = jax.jit(sequence_sum)
    precision.assert_close(summed(dirty, mask, segment_ids=segments), expected)
    precision.assert_close(summed(dirty, mask), by_row)


def test_sequences_of_one_number_that_are_apart_are_two():
    """Packing counts from 1 in each row, so a number tells sequences apart only side by side."""
    found = sequence_sum(np.ones((1, 5)), np.ones((1, 5)), segment_ids=np.array([[1, 1, 2, 1, 1]]))
    np.testing.assert_array_equal(found, [[2, 2, 1, 2, 2]])


def test_shares_of_float64_values_are_float64():
    with jax.enable_x64(True):
        mean = reduce(np.ones((1, 3)), np.ones((1, 3), bool), Reduction.SEQUENCE_MEAN_TOKEN_MEAN)
        assert abs(mean - 1) < 1e-15


def test_counts(batch):
    _, mask = batch
    assert count(mask, Reduction.TOKEN_MEAN) == mask.sum()
    assert count(mask, Reduction.SEQUENCE_MEAN_TOKEN_MEAN) == 3
    assert count(mask, Reduction.SEQUENCE_MEAN_TOKEN_SUM) == 3


@pytest.mark.parametrize("how", HOWS)
def test_the_mask_hides_anything(batch, how):
    values, mask = batch
    dirty = np.where(mask, values, np.resize([np.nan, np.inf, -np.inf], values.shape))
    for reduction in (
        lambda x: reduce(x, mask, how),
        lambda x: masked_mean(x, mask),
        lambda x: masked_mean(x, mask, -1).sum(),
    ):
        both = jax.jit(jax.value_and_grad(reduction))
        value, gradient = both(dirty)
        clean_value, clean_gradient = both(values)
        np.testing.assert_array_equal(value, clean_value)
        np.testing.assert_array_equal(gradient, clean_gradient)


@pytest.mark.parametrize("how", HOWS)
def test_an_empty_mask_gives_zero(how):
    for denominator in (None, 0):
        value, gradient = jax.jit(
            jax.value_and_grad(
                lambda x, d=denominator: reduce(x, jnp.zeros((2, 3)), how, denominator=d)
            )
        )(jnp.full((2, 3), jnp.nan))
        assert value == 0
        np.testing.assert_array_equal(gradient, 0)
    assert masked_mean(jnp.ones((2, 3)), jnp.zeros((2, 3), bool)) == 0


def test_refusals(batch):
    values, mask = batch
    with pytest.raises(ValueError, match=r"values and mask .*\(4, 6\).*\(4, 5\)"):
        masked_mean(values, mask[:, :5])
    with pytest.raises(ValueError, match=r"values and mask .*\(4, 6\).*\(6,\)"):
        reduce(values, mask[0], Reduction.TOKEN_MEAN)
    with pytest.raises(ValueError, match=r"values and segment_ids .*\(4, 6\).*\(4,\)"):
        reduce(values, mask, Reduction.SEQUENCE_MEAN_TOKEN_SUM, segment_ids=jnp.ones(4))
    with pytest.raises(ValueError, match=r"values and segment_ids .*\(4, 6\).*\(3, 6\)"):
        sequence_sum(values, mask, segment_ids=jnp.ones((3, 6)))
    with pytest.raises(ValueError, match=r"'token_mean', .*not 'mean'"):
        reduce(values, mask, "mean")


@pytest.mark.parametrize("how", HOWS)
def test_counts_go_by_either_name(batch, segments, how):
    _, mask = batch
    assert count(where=mask, how=how) == count(mask, how)
    packed = {"segment_ids": segments}
    assert count(where=mask, how=how, **packed) == count(mask, how, **packed)
    with pytest.raises(ValueError, match=r"mask and where .*one of them"):
        count(mask, how, where=mask)
    with pytest.raises(ValueError, match=r"count needs mask, or where"):
        count(how=how)
