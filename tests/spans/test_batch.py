import jax
import numpy as np
import pytest

from t2g_jax import spans
from t2g_jax.spans import Quote

TEXT = "The cat sat on the mat"
OFFSETS = [(0, 3), (3, 7), (7, 11), (11, 14), (14, 18), (18, 22)]


def test_one_text_by_hand():
    found = spans.rewards(TEXT, [("cat sat", 1.0), Quote("the mat", -0.5)], OFFSETS, 8)
    assert isinstance(found, jax.Array)
    np.testing.assert_array_equal(found, [0, 1, 1, 0, -0.5, -0.5, 0, 0])


def test_a_batch_is_its_texts():
    texts = [TEXT, "A dog", "", "no quotes"]
    quotes = [[("cat", 1.0), ("on", -1.0), ("The cat", -1.0)], ["dog"], [], []]
    offsets = [OFFSETS, [(0, 1), (1, 5)], [], [(0, 2), (2, 9)]]
    found = spans.rewards(texts, quotes, offsets, 7)
    assert found.shape == (4, 7)
    for row, given in zip(found, zip(texts, quotes, offsets, strict=True), strict=True):
        np.testing.assert_array_equal(row, spans.rewards(*given, 7))
    np.testing.assert_array_equal(found[0], [-1, -1, 0, -1, 0, 0, 0])
    np.testing.assert_array_equal(found[1], [0, 1, 0, 0, 0, 0, 0])


def test_the_text_may_start_after_a_prompt_and_be_cut():
    found = spans.rewards([TEXT, TEXT], [["mat"], ["cat"]], [OFFSETS] * 2, 6, start=[2, 0])
    np.testing.assert_array_equal(found, [[0, 0, 0, 0, 0, 0], [0, 1, 0, 0, 0, 0]])
    np.testing.assert_array_equal(
        spans.rewards(TEXT, ["cat"], OFFSETS, length=5, start=2), [0, 0, 0, 1, 0]
    )
    assert spans.rewards([], [], [], 5).shape == (0, 5)


@pytest.mark.parametrize(("overlap", "both"), [("poor", -1), ("sum", 0), ("mean", 0), ("last", 1)])
def test_overlaps(overlap, both):
    quotes = [("cat sat", -1.0), ("sat on", 1.0)]
    found = spans.rewards(TEXT, quotes, OFFSETS, 6, overlap=overlap)
    np.testing.assert_array_equal(found, [0, -1, both, 1, 0, 0])


def test_what_is_nowhere_is_told():
    unaligned = []
    quotes = [["dog", "cat"], [("the", 1.0), ("mouse", -1.0)]]
    found = spans.rewards([TEXT] * 2, quotes, [OFFSETS] * 2, 6, unaligned=unaligned)
    np.testing.assert_array_equal(found.sum(-1), [1, 1])
    assert [lost.quote.text for lost in unaligned] == ["dog", "mouse"]
    loose = [("the cat sad on the mat", 1.0)]
    assert spans.rewards(TEXT, loose, OFFSETS, 6, fuzzy_threshold=None).sum() == 0


def test_rows_must_agree():
    with pytest.raises(ValueError, match=r"text and quotes .* text has 2 and quotes has 1"):
        spans.rewards([TEXT] * 2, [["cat"]], [OFFSETS] * 2, 6)
    with pytest.raises(ValueError, match=r"text and offsets .* text has 1 and offsets has 6"):
        spans.rewards([TEXT], [["cat"]], OFFSETS, 6)
    with pytest.raises(ValueError, match=r"text and start .* text has 1 and start has 2"):
        spans.rewards([TEXT], [["cat"]], [OFFSETS], 6, start=[0, 1])
    with pytest.raises(ValueError, match=r"length must be at least 0, got -3"):
        spans.rewards(TEXT, ["cat"], OFFSETS, length=-3)
    with pytest.raises(ValueError, match=r"overlap must be 'poor'.*'best'"):
        spans.rewards(TEXT, ["cat"], OFFSETS, 6, overlap="best")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([TEXT] * 2, ["cat sat", "The"], [OFFSETS] * 2, 6), r"got 'cat sat'; give \['cat sat'\]"),
        (([TEXT] * 2, "it", [OFFSETS] * 2, 6), r"quotes must be a list .* got 'it'; give \['it'\]"),
        ((TEXT, "cat", OFFSETS, 6), r"quotes must be a list .* got 'cat'"),
        ((None, [], [], 6), r"text must be a string or a list of them, got None"),
        (([None], [[]], [[]], 6), r"text must be a string, got None"),
        ((TEXT, ["cat"], OFFSETS, 6.0), r"length must be an integer, got 6\.0"),
    ],
)
def test_a_string_is_not_a_list(arguments, message):
    """A quote read letter by letter would be found nowhere, or everywhere."""
    with pytest.raises(TypeError, match=message):
        spans.rewards(*arguments)


def test_a_text_starts_at_an_integer():
    for start in (1.5, [0.0]):
        with pytest.raises(TypeError, match=r"start must be an integer, or one for each text, got"):
            spans.rewards([TEXT], [["cat"]], [OFFSETS], 6, start=start)
