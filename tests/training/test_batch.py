"""Rows become batches: where each field goes, and that laying rows end to end changes nothing."""

import jax
import numpy as np
import pytest

from t2g_jax.parallel.shapes import round_up
from t2g_jax.training.batch import (
    PREDICTION_FIELDS,
    TOKEN_FIELDS,
    Batch,
    Row,
    from_arrays,
    micro_batches,
    pack,
    pad,
    places,
    row,
    to_arrays,
)

# ------------------------------------------------------------------ rows


def test_a_row_joins_its_parts():
    item = row(
        ([5, 6], {}),
        ([7, 8, 9], {"policy_weight": 1.0, "advantages": [0.1, 0.2, 0.3]}),
        ([4], {"nll_weight": 2.0}),
    )
    assert len(item) == 6
    np.testing.assert_array_equal(item.tokens, [5, 6, 7, 8, 9, 4])
    assert item.tokens.dtype == np.int32
    assert set(item.fields) == {"policy_weight", "advantages", "nll_weight"}
    np.testing.assert_array_equal(item.fields["policy_weight"], [0, 0, 1, 1, 1, 0])
    np.testing.assert_allclose(item.fields["advantages"], [0, 0, 0.1, 0.2, 0.3, 0])
    np.testing.assert_array_equal(item.fields["nll_weight"], [0, 0, 0, 0, 0, 2])


def test_rows_can_be_sent():
    """A field that only some of them have gets its default in the others."""
    rows = [
        row(([5], {}), ([7, 8], {"nll_weight": 1.0, "cutoffs": [-0.1, -np.inf]})),
        row(([4], {}), ([3], {"policy_weight": 2.0})),
    ]
    arrays = to_arrays(rows)
    assert set(arrays) == {"lengths", "tokens", "nll_weight", "cutoffs", "policy_weight"}
    found = from_arrays(arrays)
    fields = ("nll_weight", "cutoffs", "policy_weight")
    jax.tree.map(
        np.testing.assert_array_equal,
        pad(found, length=4, fields=fields),
        pad(rows, length=4, fields=fields),
    )
    assert found[0].tokens.dtype == np.int32
    assert found[0].fields["cutoffs"].dtype == np.float32
    assert from_arrays(to_arrays([])) == []


def test_tokens_without_a_cutoff_are_not_truncated():
    item = row(([5], {}), ([7], {"cutoffs": -2.0}))
    np.testing.assert_array_equal(item.fields["cutoffs"], [-np.inf, -2])


@pytest.mark.parametrize(
    ("tokens", "fields", "message"),
    [
        ([1, 2], {"advantage": [0, 0]}, "a row has no field 'advantage'"),
        ([1, 2], {"advantages": [0, 0, 0]}, "advantages has 3 values for 2 tokens"),
        ([1, 2], {"nll_weight": [1, 1]}, "nll_weight of the first token must be 0"),
        ([], {}, "a row needs one token at least"),
        ([[1, 2]], {}, r"a row needs one token at least, .* shape \(1, 2\)"),
    ],
)
def test_rows_that_make_no_sense(tokens, fields, message):
    with pytest.raises(ValueError, match=message):
        Row(tokens, fields)


def test_the_first_token_may_be_marked():
    Row([1, 2], {"span_weight": [1, 1], "span_labels": [1, -1], "advantages": [3, 0]})


# ------------------------------------------------------------------ placement


def test_every_field_has_a_default():
    assert set(PREDICTION_FIELDS) | set(TOKEN_FIELDS) == set(Batch.__dataclass_fields__) - {
        "tokens",
        "targets",
        "positions",
        "segment_ids",
    }


def test_fields_stand_where_they_are_used():
    """About predicting a token: where it is predicted. About a token: on it."""
    first = row(([1, 2], {}), ([3, 4], {"policy_weight": [1, 2], "cutoffs": [-3, -4]}))
    second = row(([5], {"span_labels": 1}), ([6], {"policy_weight": 5, "span_labels": -1}))
    batch = pack([first, second], length=8, fields=("policy_weight", "cutoffs", "span_labels"))
    np.testing.assert_array_equal(batch.tokens, [[1, 2, 3, 4, 5, 6, 0, 0]])
    np.testing.assert_array_equal(batch.targets, [[2, 3, 4, 0, 6, 0, 0, 0]])
    np.testing.assert_array_equal(batch.positions, [[0, 1, 2, 3, 0, 1, 0, 0]])
    np.testing.assert_array_equal(batch.segment_ids, [[1, 1, 1, 1, 2, 2, 0, 0]])
    np.testing.assert_array_equal(batch.policy_weight, [[0, 1, 2, 0, 5, 0, 0, 0]])
    none = -np.inf
    np.testing.assert_array_equal(batch.cutoffs, [[none, -3, -4, none, none, none, none, none]])
    np.testing.assert_array_equal(batch.span_labels, [[0, 0, 0, 0, 1, -1, 0, 0]])
    assert batch.nll_weight is None
    assert {leaf.dtype.name for leaf in jax.tree.leaves(batch)} == {"int32", "float32"}


def test_rows_go_where_they_fit_first():
    rows = [row(([i] * n, {})) for i, n in enumerate((5, 6, 3, 2), start=1)]
    batch = pack(rows, length=8)
    np.testing.assert_array_equal(
        batch.tokens, [[1, 1, 1, 1, 1, 3, 3, 3], [2, 2, 2, 2, 2, 2, 4, 4]]
    )
    np.testing.assert_array_equal(
        batch.segment_ids, [[1, 1, 1, 1, 1, 2, 2, 2], [1, 1, 1, 1, 1, 1, 2, 2]]
    )


def test_padded_rows_keep_their_place():
    rows = [row(([i] * n, {})) for i, n in enumerate((1, 3, 2), start=1)]
    batch = pad(rows, length=4, multiple=2)
    np.testing.assert_array_equal(
        batch.tokens, [[1, 0, 0, 0], [2, 2, 2, 0], [3, 3, 0, 0], [0, 0, 0, 0]]
    )
    np.testing.assert_array_equal(batch.segment_ids[3], 0)


def test_rows_that_do_not_fit():
    item = row(([1, 2, 3], {"span_labels": 1}))
    for lay in (pack, pad):
        with pytest.raises(ValueError, match="a row of 3 tokens does not fit into length 2"):
            lay([item], length=2, fields=("span_labels",))
        with pytest.raises(ValueError, match="field 'span_labels', which this batch does not take"):
            lay([item], length=4, fields=("nll_weight",))


def test_places_are_where_packed_rows_lie(rng):
    rows = [row((rng.integers(1, 99, n), {})) for n in rng.integers(1, 9, 30)]
    batch, where = pack(rows, length=12), places(rows, 12)
    for item, place in zip(rows, where, strict=True):
        np.testing.assert_array_equal(batch.tokens[place], item.tokens)
        np.testing.assert_array_equal(batch.positions[place], np.arange(len(item)))
        assert len(set(batch.segment_ids[place])) == 1
    assert sum(map(len, rows)) == (batch.segment_ids > 0).sum()


def test_no_rows_make_an_empty_batch():
    batch = pack([], length=4, fields=("nll_weight",), multiple=2)
    assert batch.tokens.shape == (2, 4)
    assert not any(leaf.any() for leaf in jax.tree.leaves(batch))


# ------------------------------------------------------------------ shapes


def test_round_up_leaves_two_shapes_for_each_doubling():
    assert [round_up(n) for n in (0, 1, 2, 3, 5, 9, 33, 60)] == [1, 1, 2, 3, 6, 12, 48, 64]
    assert [round_up(n, 8) for n in (0, 1, 8, 9, 24, 33, 70)] == [8, 8, 8, 16, 24, 48, 96]
    for multiple in (1, 3, 8):
        results = {n: round_up(n, multiple) for n in range(1, 600)}
        for n, result in results.items():
            assert result >= n
            assert result % multiple == 0
            assert result - n <= max(result / 3, multiple - 1), (n, multiple)
        for low in (64, 128, 256):
            within = {r for r in results.values() if low * multiple < r <= 2 * low * multiple}
            assert len(within) <= 2


def test_micro_batches_split_the_rows():
    batch = pad([row(([i, i], {})) for i in range(6)], length=2)
    parts = micro_batches(batch, 3)
    np.testing.assert_array_equal(parts.tokens[:, :, 0], [[0, 1], [2, 3], [4, 5]])
    assert parts.nll_weight is None
    with pytest.raises(ValueError, match="6 batch rows cannot be split into 4 micro-batches"):
        micro_batches(batch, 4)


# ------------------------------------------------------------------ packed = unpacked


def assert_close(a, b, tolerance=1e-6):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=tolerance)


def test_packing_changes_neither_loss_nor_gradients(
    params, rows, fields, gradient_of_loss, settings
):
    packed = pack(rows, length=32, fields=fields)
    padded = pad(rows, length=32, fields=fields)
    assert packed.tokens.shape[0] < padded.tokens.shape[0]
    expected = gradient_of_loss(params, padded, settings)
    assert_close(gradient_of_loss(params, packed, settings), expected)
    reversed_rows = pack(rows[::-1], length=32, fields=fields)
    assert_close(gradient_of_loss(params, reversed_rows, settings), expected)


def test_what_stands_where_nothing_counts_does_not_matter(
    params, rows, fields, gradient_of_loss, settings
):
    """Any token, infinities and NaN in padding; any value where a row's weight is 0."""
    batch = pack(rows, length=32, fields=fields)
    expected = gradient_of_loss(params, batch, settings)
    garbage = {name: getattr(batch, name).copy() for name in (*fields, "tokens", "targets")}
    padding = batch.segment_ids == 0
    for name in ("tokens", "targets"):
        garbage[name][padding] = 13
    learned = sum(getattr(batch, f"{kind}_weight") for kind in ("policy", "distill", "nll")) > 0
    for number, name in enumerate(fields):
        if not name.endswith("_weight"):
            counts = batch.span_weight > 0 if name == "span_labels" else learned
            garbage[name][~counts] = (np.nan, np.inf, -np.inf)[number % 3]
    assert_close(gradient_of_loss(params, batch.replace(**garbage), settings), expected)
