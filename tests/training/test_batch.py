"""Rows become batches: where each field goes, and that laying rows end to end changes nothing."""

import dataclasses

import jax
import numpy as np
import pytest
from cases import BY_NAME, FIELDS, pad, row

from t2g_jax.parallel.shapes import round_up
from t2g_jax.training.batch import micro_batches, pack, places, unpack
from t2g_jax.training.sequences import (
    Field,
    TeacherSequence,
    TokenSequence,
    Weight,
    from_arrays,
    to_arrays,
)
from t2g_jax.training.terms import ADVANTAGES, NLL_WEIGHT, SPAN_LABELS, SPAN_WEIGHT

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
    found = from_arrays(arrays, FIELDS)
    fields = [field for field in FIELDS if field.name in arrays]
    jax.tree.map(
        np.testing.assert_array_equal,
        pad(found, length=4, fields=fields),
        pad(rows, length=4, fields=fields),
    )
    assert found[0].tokens.dtype == np.int32
    assert found[0].fields["cutoffs"].dtype == np.float32
    assert from_arrays(to_arrays([]), FIELDS) == []


def test_tokens_without_a_cutoff_are_not_truncated():
    item = row(([5], {}), ([7], {"cutoffs": -2.0}))
    np.testing.assert_array_equal(item.fields["cutoffs"], [-np.inf, -2])


LONG = Field("advantages", padding=1.0)  # declared otherwise than by the terms


@pytest.mark.parametrize(
    ("tokens", "values", "message"),
    [
        ([1, 2], {ADVANTAGES: [0, 0, 0]}, r"advantages has shape \(3,\), but there are 2 tokens"),
        ([1, 2], {ADVANTAGES: [0, 0], LONG: [0, 0]}, "two fields .* are called advantages"),
        ([1, 2], {NLL_WEIGHT: [1, 1]}, "nll_weight of the first token must be 0"),
        ([1, 2], {NLL_WEIGHT: [0, -1]}, "nll_weight must be finite, and not negative"),
        ([1, 2], {NLL_WEIGHT: [0, np.nan]}, "nll_weight must be finite, and not negative"),
        ([], {}, "a sequence needs one token at least"),
        ([[1, 2]], {}, r"a sequence needs one token at least, .* shape \(1, 2\)"),
        ([1.5, 2], {}, "tokens must be integers, not float64"),
        ([1, -2], {}, "a sequence has the token -2; tokens are not negative"),
        ([2**40, 1], {}, "tokens must fit into 32 bits, but there is 1099511627776"),
        (np.array([1, 2**32 - 100], np.uint32), {}, "tokens must fit into 32 bits, .* 4294967196"),
        ([1, -(2**40)], {}, "tokens must fit into 32 bits, but there is -1099511627776"),
    ],
)
def test_sequences_that_make_no_sense(tokens, values, message):
    with pytest.raises(ValueError, match=message):
        TokenSequence(tokens, values)


def test_the_first_token_may_be_marked():
    TokenSequence([1, 2], {SPAN_WEIGHT: [1, 1], SPAN_LABELS: [1, -1], ADVANTAGES: [3, 0]})


def test_sequences_do_not_change():
    """Nor by way of what they were made of, nor when another is made of one."""
    tokens, values = np.array([1, 2], np.int32), np.array([0, 1], np.float32)
    item = TokenSequence(tokens, {NLL_WEIGHT: values})
    tokens[0], values[1] = 9, 9
    assert (item.tokens.tolist(), item.fields["nll_weight"].tolist()) == ([1, 2], [0, 1])
    for array in (item.tokens, item.values[NLL_WEIGHT]):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 5
    with pytest.raises(TypeError):
        item.values[ADVANTAGES] = values
    with pytest.raises(dataclasses.FrozenInstanceError):
        item.tokens = tokens
    more = item.with_fields({ADVANTAGES: [0, 0.5], NLL_WEIGHT: [0, 2]})
    assert more.fields["nll_weight"].tolist() == [0, 2]
    assert (set(item.fields), item.fields["nll_weight"].tolist()) == ({"nll_weight"}, [0, 1])
    assert set(more.only([ADVANTAGES]).fields) == {"advantages"}
    with pytest.raises(ValueError, match="advantages has shape"):
        item.with_fields({ADVANTAGES: [1, 2, 3]})


def test_a_read_only_view_is_copied():
    """What it is a view of may still be written to."""
    tokens, values = np.array([1, 2], np.int32), np.array([0, 1], np.float32)
    views = tokens[:], values[:]
    for view in views:
        view.setflags(write=False)
    item = TokenSequence(views[0], {NLL_WEIGHT: views[1]})
    tokens[0], values[1] = 9, 9
    assert (item.tokens.tolist(), item.fields["nll_weight"].tolist()) == ([1, 2], [0, 1])
    again = item.with_fields({})
    assert again.tokens is item.tokens
    assert again.values[NLL_WEIGHT] is item.values[NLL_WEIGHT]


def test_a_teacher_reads_the_same_tokens_elsewhere():
    item = row(([1, 2], {}), ([6, 7, 8], {"policy_weight": 1.0}))
    asked = item.with_teacher([1, 2, 3, 4], slice(2, None))
    assert asked.teacher.tokens.tolist() == [1, 2, 3, 4, 6, 7, 8]
    assert asked.teacher.index.tolist() == [-1, -1, 4, 5, 6]
    assert item.teacher is None
    assert asked.with_fields({ADVANTAGES: np.zeros(5)}).teacher is asked.teacher


@pytest.mark.parametrize(
    ("tokens", "index", "message"),
    [
        ([9, 1, 2], [-1, 3], "index goes to 3, but it reads 3 tokens"),
        ([9, 1, 2], [-1, 1], "asked about tokens that it does not read there"),
        ([2, 1], [-1, 0], "cannot be asked about a first token"),
        ([9, 1, 2], [1, 2], "cannot be asked about a first token"),
        ([9, 1, 2], [2], r"index has shape \(1,\), but there are 2 tokens"),
        ([], [-1, -1], "a teacher's sequence needs one token at least"),
        ([9, 1, 2], [-1, 2.5], "index must be integers, not float64"),
        ([9, 1, 2], [-1, 2**40], "index must fit into 32 bits, but there is 1099511627776"),
    ],
)
def test_teachers_that_make_no_sense(tokens, index, message):
    with pytest.raises(ValueError, match=message):
        TokenSequence([1, 2], {}, TeacherSequence(tokens, index))


# ------------------------------------------------------------------ placement


def named(*names):
    return [BY_NAME[name] for name in names]


def test_fields_stand_where_they_are_used():
    """About predicting a token: where it is predicted. About a token: on it."""
    first = row(([1, 2], {}), ([3, 4], {"policy_weight": [1, 2], "cutoffs": [-3, -4]}))
    second = row(([5], {"span_labels": 1}), ([6], {"policy_weight": 5, "span_labels": -1}))
    batch = pack([first, second], length=8, fields=named("policy_weight", "cutoffs", "span_labels"))
    np.testing.assert_array_equal(batch.tokens, [[1, 2, 3, 4, 5, 6, 0, 0]])
    np.testing.assert_array_equal(batch.targets, [[2, 3, 4, 0, 6, 0, 0, 0]])
    np.testing.assert_array_equal(batch.positions, [[0, 1, 2, 3, 0, 1, 0, 0]])
    np.testing.assert_array_equal(batch.segment_ids, [[1, 1, 1, 1, 2, 2, 0, 0]])
    np.testing.assert_array_equal(batch.fields["policy_weight"], [[0, 1, 2, 0, 5, 0, 0, 0]])
    none = -np.inf
    np.testing.assert_array_equal(
        batch.fields["cutoffs"], [[none, -3, -4, none, none, none, none, none]]
    )
    np.testing.assert_array_equal(batch.fields["span_labels"], [[0, 0, 0, 0, 1, -1, 0, 0]])
    assert "nll_weight" not in batch.fields
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
            lay([item], length=2, fields=named("span_labels"))
        with pytest.raises(ValueError, match="field 'span_labels', which this batch does not take"):
            lay([item], length=4, fields=named("nll_weight"))


def test_places_are_where_packed_rows_lie(rng):
    rows = [row((rng.integers(1, 99, n), {})) for n in rng.integers(1, 9, 30)]
    batch, where = pack(rows, length=12), places(rows, 12)
    for item, place in zip(rows, where, strict=True):
        np.testing.assert_array_equal(batch.tokens[place], item.tokens)
        np.testing.assert_array_equal(batch.positions[place], np.arange(len(item)))
        assert len(set(batch.segment_ids[place])) == 1
    assert sum(map(len, rows)) == (batch.segment_ids > 0).sum()


def test_teachers_lie_in_the_batch_row_of_their_student():
    """Each slot that predicts a token knows the slot there that predicts the same one."""
    one = row(([1, 2], {}), ([6, 7], {})).with_teacher([1, 2, 3], slice(2, None))
    two = row(([4], {}), ([8], {})).with_teacher([4, 5], slice(1, None))
    batch = pack([one, two], length=8, teacher_length=12)
    np.testing.assert_array_equal(batch.teacher.tokens, [[1, 2, 3, 6, 7, 4, 5, 8, 0, 0, 0, 0]])
    np.testing.assert_array_equal(batch.teacher.segment_ids, [[1] * 5 + [2] * 3 + [0] * 4])
    np.testing.assert_array_equal(batch.teacher.slots, [[-1, 2, 3, -1, 6, -1, -1, -1]])
    asked = batch.teacher.slots >= 0
    theirs = np.take_along_axis(batch.teacher.targets, np.maximum(batch.teacher.slots, 0), 1)
    np.testing.assert_array_equal(theirs[asked], batch.targets[asked])
    # Where a teacher's sequences do not fit together, their students go apart, too.
    apart = pack([one, two], length=8, teacher_length=7)
    assert apart.tokens.shape[0] == 2
    assert places([one, two], 8, 7) == [(0, slice(0, 4)), (1, slice(0, 2))]


def test_teachers_need_room():
    item = row(([1], {}), ([6], {})).with_teacher([1, 2, 3], slice(1, None))
    with pytest.raises(ValueError, match="a row has a teacher, which this batch does not take"):
        pack([item], length=8)
    with pytest.raises(ValueError, match="teacher's row of 4 tokens does not fit into length 3"):
        pack([item], length=8, teacher_length=3)
    with pytest.raises(ValueError, match="sequences with a teacher cannot be sent"):
        to_arrays([item])
    without = pack([item.only([])], length=8, teacher_length=4).teacher
    assert (without.slots == -1).all()


def test_unpacked_is_what_was_packed(rng):
    """About predicting a token, back from the slot before it; about a token, from its own."""
    rows = [
        row(
            (rng.integers(0, 9, 1), {}), (rng.integers(0, 9, n), {"advantages": rng.normal(size=n)})
        )
        for n in rng.integers(1, 7, 9)
    ]
    marked = [item.with_fields({SPAN_LABELS: rng.normal(size=len(item))}) for item in rows]
    batch = pack(marked, length=12, fields=named("advantages", "span_labels"))
    for item, place in zip(marked, places(marked, 12), strict=True):
        found = unpack(batch.fields, place, {"span_labels"})
        assert found.keys() == item.fields.keys()
        for name, values in item.fields.items():
            np.testing.assert_array_equal(found[name], values)


def test_no_rows_make_an_empty_batch():
    batch = pack([], length=4, fields=named("nll_weight"), multiple=2)
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
    assert parts.fields == {}
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
    padding = batch.segment_ids == 0
    tokens, targets = (np.where(padding, 13, x) for x in (batch.tokens, batch.targets))
    learned = sum(batch.fields[f"{kind}_weight"] for kind in ("policy", "distill", "nll")) > 0
    garbage = {name: values.copy() for name, values in batch.fields.items()}
    for number, field in enumerate(fields):
        if not isinstance(field, Weight) and field.name != "kl_weight":
            counts = batch.fields["span_weight"] > 0 if field == SPAN_LABELS else learned
            garbage[field.name][~counts] = (np.nan, np.inf, -np.inf)[number % 3]
    changed = batch.replace(tokens=tokens, targets=targets, fields=garbage)
    assert_close(gradient_of_loss(params, changed, settings), expected)
