import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from t2g_jax.tasks.puzzles.boxed import boxed, find_boxed


@pytest.mark.parametrize(
    ("text", "content"),
    [
        (r"\boxed{1}", "1"),
        ("first \\boxed{1}, no: \\boxed{2}.", "2"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\boxed{3}}", "3"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{1 \\ 2 \\}", r"1 \\ 2 \\"),
        ("\\boxed {\n1\n}", "\n1\n"),
        (r"\\boxed{4}", "4"),
        (r"}} {{ \boxed{5} {", "5"),
        (r"\boxed{6} and then \boxed{7", "6"),  # cut off: the last complete one counts
        (r"\boxed{}", ""),
    ],
)
def test_finds_the_last_balanced_box(text, content):
    box = find_boxed(text)
    assert box.content == content
    assert text[box.start : box.end] == content


@pytest.mark.parametrize("text", ["", "1", r"\boxed", r"\boxed{1", r"boxed{1}", r"\boxed{\}", "{}"])
def test_no_box(text):
    assert find_boxed(text) is None


@given(st.text("\\boxed{} \n01", max_size=80))
def test_any_text(text):
    box = find_boxed(text)
    assert box is None or text[box.start : box.end] == box.content


@given(st.text("01 \nab", max_size=20), st.text(max_size=20))
def test_finds_what_boxed_wrote(answer, before):
    assert find_boxed(before.replace("\\", "") + boxed(answer)).content.strip() == answer.strip()


@pytest.mark.parametrize("piece", ["\\", "{", "}", "\\boxed{", "\\boxed ", "\\boxed{}", " "])
def test_linear_time(piece):
    start = time.perf_counter()
    find_boxed(piece * 100_000)
    assert time.perf_counter() - start < 5
