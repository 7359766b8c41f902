"""YAML by the core schema of YAML 1.2: what words mean, what is refused, what it may cost."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t2g_jax.config.yaml_text import dump, load
from t2g_jax.errors import ConfigError


def value_of(text):
    return load(f"a: {text}", source="mine.yaml")["a"]


def error_of(text):
    with pytest.raises(ConfigError) as caught:
        load(text, source="mine.yaml")
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("0042", 42),
        ("-007", -7),
        ("+3", 3),
        ("0o17", 15),
        ("0x1F", 31),
        ("1e-4", 1e-4),
        ("1E3", 1000.0),
        (".5", 0.5),
        ("1.", 1.0),
        ("-.INF", -math.inf),
        ("", None),
        ("~", None),
        ("NULL", None),
        ("True", True),
        ("FALSE", False),
        ("!!str 5", "5"),
        ("!!float 3", 3.0),
        ("! 5", "5"),
        ("'0042'", "0042"),
    ],
)
def test_words_of_the_core_schema(word, meant):
    value = value_of(word)
    assert value == meant
    assert type(value) is type(meant)


@pytest.mark.parametrize(
    "word", "12:30 1_000 yes no on Off y 0b11 190:20:30 1.5.2 2024-01-01 08:00 0o9 1e".split()
)
def test_what_yaml_1_1_took_for_something_else_is_text(word):
    assert value_of(word) == word


def test_not_a_number():
    assert math.isnan(value_of(".nan"))


def test_merge_keys():
    text = "base: &base {a: 1, b: 2}\nmore: &more {b: 3, c: 4}\nboth: {<<: [*base, *more], a: 0}"
    assert load(text, source="mine.yaml")["both"] == {"a": 0, "b": 2, "c": 4}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: 1\nb: 2\na: 3", "line 3: not valid YAML: the key 'a' appears twice"),
        ("a: 1\n? [x, y]\n: 2", "line 2: a key is a list or a section"),
        ("a: 1\n? {x: y}\n: 2", "line 2: a key is a list or a section"),
        ("a: {1: b}", "line 1: the key 1 is no text; put it in quotes"),
        ("true: 1", "line 1: the key true is no text"),
        ("~: 1", "line 1: the key ~ is no text"),
        ("a: 1\nb: &b [*b]", "line 2: *b stands inside the value that it stands for"),
        ("a: &a {<<: *a}", "line 1: *a stands inside the value that it stands for"),
        ("a: *b", "line 1: not valid YAML: *b has no &b before it"),
        ("<<: 3", "line 1: `<<` merges sections"),
        ("a: &a {x: 1}\nb:\n  <<: *a\n  <<: {x: 2}", "line 4: `<<` appears twice; give one a list"),
        ("a: !!python/object/apply:os.system [ls]", "line 1: the tag !!python/object/apply:os"),
        ("a: !!timestamp 2024-99-99", "line 1: the tag !!timestamp is not known"),
        ("a: !mine 3", "line 1: the tag !mine is not known"),
        ("a: !!int x", "line 1: 'x' is not what its tag !!int says"),
        ("a: !!set {b}", "line 1: the tag !!set is not known"),
        ("a: 1\nb: " + "9" * 5000, "line 2: an integer of 5000 digits is too long"),
        ("a: 1e999", "line 1: 1e999 is too large for a float"),
        ("a: 1e-999", "line 1: 1e-999 is too small for a float"),
        ("a:\n\tb: 1", "line 2: not valid YAML: "),
        ("a: 1\nb: \0", "line 2: not valid YAML: the character U+0000"),
        ("a: 1\nb: \x1b[0m", "line 2: not valid YAML: the character U+001B"),
        ("a: 1\n---\nb: 2", "line 2: a second document begins"),
        ("a: [", "line 1: not valid YAML: "),
        ("a: 'b", "line 1: not valid YAML: "),
        ("a: b: c", "line 1: not valid YAML: "),
        ("a: %b", "line 1: not valid YAML: "),
        (b"a: 1\nb: \xe9", "line 2: not UTF-8 text"),
        ("a: 1".encode("utf-16"), "line 1: not UTF-8 text"),
        (b"\x7fELF\x02\x01\x01\0", "line 1: "),
    ],
)
def test_refused_in_a_line(text, expected):
    message = error_of(text)
    assert message.startswith("mine.yaml, ")
    assert expected in message


def test_a_byte_order_mark_is_no_part_of_the_first_key():
    assert load("a: 1".encode("utf-8-sig"), source="mine.yaml") == {"a": 1}


@pytest.mark.parametrize("text", ["", "\n", "# nothing\n", "---\n", "--- ~\n"])
def test_nothing(text):
    assert load(text, source="mine.yaml") is None


def _bomb():
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    for i in range(1, 30):
        lines.append(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]")
    return "\n".join(lines)


def _tower():
    return "\n".join(["a0: &a0 [x]", *(f"a{i}: &a{i} [*a{i - 1}]" for i in range(1, 5000))])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (_bomb(), "more than 100,000 values, with what aliases (*) repeat"),
        (_tower(), "nested more than 50 levels deep"),
        ("a: " + "[" * 100_000, "nest"),
        ("a: " + "{b: " * 100_000, "nest"),
        ("- " * 100_000, "nested "),
        ("\n".join(" " * i + "a:" for i in range(1000)), "nested "),
        ("a: 1\n" * (1 << 19), "larger than 1 MiB"),
    ],
    ids=["bomb", "tower", "lists", "sections", "items", "lines", "large"],
)
def test_what_would_cost_too_much_is_refused(text, expected):
    assert expected in error_of(text)


_WORDS = (
    "0042 1e3 on null ~ yes 12:30 0x1F .inf .5 1. << = 2024-01-01 1_000 a:b #x -x !x &x *x %x @ ` "
    "| > ? - -- --- ... { } [ ] , : ' \" é \u2028 \x85 \ufeff \0 \x7f"
).split(" ")
_TEXTS = st.one_of(
    st.text(max_size=20),
    st.sampled_from([*_WORDS, "", "a: b", "a #b", "a\nb", "\n", " a ", "a\n", "\ta", "a\r\nb"]),
)
_VALUES = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(10**100), 10**100),
        st.floats(allow_nan=False),
        _TEXTS,
    ),
    lambda inside: st.lists(inside, max_size=3) | st.dictionaries(_TEXTS, inside, max_size=3),
    max_leaves=8,
)


@settings(max_examples=300)
@given(_VALUES)
def test_round_trip(value):
    again = load(dump(value), source="mine.yaml")
    assert repr(again) == repr(value)  # 1 is not 1.0 or True, and 0.0 not -0.0
