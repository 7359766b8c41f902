import math
import random
import re
import unicodedata

import pytest
import regex
from hypothesis import assume, given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from t2g_jax.spans import search
from t2g_jax.spans.align import align, to_token_spans
from t2g_jax.spans.quotes import CharSpan, Quote, TokenSpan

STORY = "The cat sat on the mat. The dog sat on the log, and the cat saw the dog."

# Emoji (joined, with modifiers), combining marks, CJK, Hangul (composed and not), right-to-left,
# ligatures, letters whose case changes their length, controls, white space of many kinds.
PIECES = [
    *"abcxyzABZ019 .,;!?\n\t_-'\"",
    *"ßﬁﬂéñÅİıςΣµ…—–“”‘’«»\u00a0\u00ad\u200b\u200d\u2003\u3000",
    *["e\u0301", "a\u0308\u0323", "x\u0302", "\u0301", "👍🏽", "👩\u200d👩\u200d👧", "🇫🇷", "❤️"],
    *["漢字", "かな", "カ\u3099", "ﾊﾞ", "한", "\u1112\u1161\u11ab", "שלום", "مرحبا", "ไทย", "हिन्दी"],
    *["the", "cat", " the ", "aa"],
]
texts = st.lists(st.sampled_from(PIECES) | st.characters(exclude_categories=["Cs"]), max_size=40)
texts = texts.map("".join)
WHITE = "".join(c for c in map(chr, range(0x3001)) if c.isspace())


@st.composite
def cuttings(draw, texts=texts):
    """A text and a place in it that is not white space alone."""
    text = draw(texts.filter(str.strip))
    start = draw(st.integers(0, len(text) - 1))
    end = draw(st.integers(start + 1, len(text)))
    assume(text[start:end].strip())
    return text, start, end


def places(alignment):
    return [(span.start, span.end) for span in alignment.spans]


def only_reason(text, quote, **options):
    alignment = align(text, [quote], **options)
    assert alignment.spans == ()
    return alignment.unaligned[0].reason


# Exact quotes


def test_a_phrase_that_occurs_once_is_found_exactly():
    alignment = align(STORY, [("sat on the mat", 1.0), ("saw", -0.5), "log"])
    assert [STORY[a:b] for a, b in places(alignment)] == ["sat on the mat", "saw", "log"]
    assert [span.reward for span in alignment.spans] == [1.0, -0.5, 1.0]
    assert {(span.how, span.score) for span in alignment.spans} == {("exact", 100.0)}
    assert alignment.unaligned == ()


@given(cuttings())
def test_any_substring_with_its_ordinal_is_found_where_it_was_taken(cutting):
    text, start, end = cutting
    phrase = text[start:end]
    ordinal = sum(text.startswith(phrase, i) for i in range(start + 1))
    (span,) = align(text, [Quote(phrase, 1.0, ordinal=ordinal)]).spans
    assert (span.start, span.end, span.how, span.score) == (start, end, "exact", 100.0)


@given(cuttings())
def test_any_substring_with_all_of_its_surroundings_is_found_where_it_was_taken(cutting):
    text, start, end = cutting
    quote = Quote(text[start:end], -1.0, before=text[:start], after=text[end:])
    assume(len(text) > end - start)
    assert places(align(text, [quote])) == [(start, end)]


def test_occurrences_are_counted_with_overlaps():
    quotes = [Quote("aa", 1.0, ordinal=i) for i in (1, 2, 3)]
    assert places(align("aaaa", quotes)) == [(0, 2), (1, 3), (2, 4)]


@pytest.mark.parametrize(
    ("quote", "place"),
    [
        (Quote("the", 1.0, before="sat on ", after=" mat"), (15, 18)),
        (Quote("the", 1.0, after=" log"), (39, 42)),
        (Quote("the", 1.0, before="LOG ,  and"), (52, 55)),  # misquoted, but nearest to one place
        (Quote("the", 1.0, before="saw"), (64, 67)),
        (Quote("sat", 1.0, before="The dog"), (32, 35)),
        (Quote("The", 1.0, ordinal=2, after=" dog"), (24, 27)),
    ],
)
def test_neighbors_tell_occurrences_apart(quote, place):
    assert places(align(STORY, [quote])) == [place]


@pytest.mark.parametrize(
    ("quote", "reason"),
    [
        (Quote("the", 1.0, before="on"), "does not tell them apart"),
        (Quote("the", 1.0, before="zzz qqq"), "none of them next to"),
        (Quote("the", 1.0, ordinal=1, after=" log"), "name different places"),
        (Quote("the", 1.0, ordinal=5), "ordinal 5 is out of range: the phrase occurs 4 times"),
        (Quote("mat", 1.0, ordinal=2), "ordinal 2 is out of range: the phrase occurs 1 time"),
        (Quote("the", 1.0, ordinal=0), "counts from 1"),
        (Quote("the", 1.0, ordinal=1.0), "counts from 1"),
        (Quote("the", 1.0), "ambiguous: the phrase occurs 4 times"),
        (Quote("", 1.0), "empty"),
        (Quote(" \n\u3000", 1.0), "empty"),
        (Quote("\u200b", 1.0), "empty"),
        (Quote("mat", math.nan), "nan"),
        (Quote("mat", -math.inf), "-inf"),
        (Quote("zebra", 1.0), "too short"),
        (Quote("ca", 1.0), "only within longer words or characters, as in 'cat'"),
        (Quote("CA", 1.0), "only within longer words or characters, as in 'cat'"),
        (Quote("a zebra in pyjamas", 1.0), "no passage is 90 % like it"),
    ],
)
def test_a_quote_without_a_certain_place_stays_unaligned_with_a_reason(quote, reason):
    assert reason in only_reason(STORY, quote)


def test_neighbors_do_not_matter_to_a_phrase_that_occurs_once():
    assert places(align(STORY, [Quote("mat", 1.0, before="wrong")])) == [(19, 22)]


def test_whole_words_are_preferred():
    assert places(align("This island is his", ["is"])) == [(12, 14)]
    assert places(align("a 12 b 2", ["2"])) == [(7, 8)]
    assert places(align("This islet", [Quote("is", 1.0, ordinal=1)])) == [(2, 4)]
    assert "ambiguous" in only_reason("This islet", "is")
    assert places(align("concatenate the Cat", ["cat"])) == [(16, 19)]  # rather than as it stands
    # No spaces part the words of these scripts, so no occurrence is more whole than another.
    assert "ambiguous" in only_reason("黒猫が、猫", "猫")
    assert places(align("y\u0301 y", ["y"])) == [(3, 4)]


def test_identical_quotes_share_out_their_places_in_reading_order():
    text = "foo bar foo bar foo"
    alignment = align(text, [("foo", 1.0), ("foo", -1.0), ("bar", 1.0), ("foo", 0.5)])
    assert places(alignment) == [(0, 3), (8, 11), (16, 19)]
    assert [span.reward for span in alignment.spans] == [1.0, -1.0, 0.5]
    assert "ambiguous" in alignment.unaligned[0].reason
    # A place named by ordinal is not given away again.
    named = Quote("bar", -1.0, ordinal=1)
    assert places(align(text, ["bar", named])) == [(12, 15), (4, 7)]
    assert "taken" in align(text, ["bar"] * 3).unaligned[0].reason


def test_good_and_poor_may_overlap_but_a_repeat_is_reported():
    alignment = align("foo bar", [("foo", 1.0), ("foo bar", -1.0), ("foo", -1.0), ("foo", 1.0)])
    assert places(alignment) == [(0, 3), (0, 7), (0, 3)]
    assert [span.reward for span in alignment.spans] == [1.0, -1.0, -1.0]
    assert "repeats" in alignment.unaligned[0].reason


# Normalized quotes


@pytest.mark.parametrize(
    ("text", "phrase", "found"),
    [
        ("He said “don’t — go” twice", '"DON\'T - GO"', "“don’t — go”"),
        ("one  two\n\tthree", "One two three", "one  two\n\tthree"),
        ("one two three", "one\n\n two", "one two"),
        ("a ﬁne Straße", "FINE STRASSE", "ﬁne Straße"),
        ("an oﬀer", "Offer", "oﬀer"),
        ("cafe\u0301 noir", "Café Noir", "cafe\u0301 noir"),
        ("café noir", "Cafe\u0301 Noir", "café noir"),
        ("wait… what", "wait... what", "wait… what"),
        ("ﾊﾞｽ stop", "バス Stop", "ﾊﾞｽ stop"),
        ("\u1112\u1161\u11ab글 x", "한글 X", "\u1112\u1161\u11ab글 x"),
        ("soft\u00adhyphen", "softhyphen", "soft\u00adhyphen"),
        ("x² ＋ 1", "x² + 1", "x² ＋ 1"),
        ("I ❤️ it", "i ❤ it", "I ❤️ it"),
    ],
)
def test_spelling_variants_align_to_original_characters(text, phrase, found):
    (span,) = align(f"… {text} …", [f"  {phrase} "]).spans
    assert (f"… {text} …"[span.start : span.end], span.how) == (found, "normalized")


WORDS = [
    "Don’t",
    "“Yes”",
    "stop—now",
    "ﬁne",
    "Straße",
    "cafe\u0301",
    "naïve",
    "ΣΑΣ",
    "漢字",
    "한글",
    "👍🏽",
]
WORDS += [
    "שלום",
    "oﬀer",
    "ＡＢＣ",
    "wait…",
    "soft\u00adly",
    "Éclair",
    "plain",
    "words",
    "too,",
    "12",
]


@given(
    words=st.lists(st.sampled_from(WORDS), unique=True, min_size=1),
    gaps=st.lists(st.sampled_from([" ", "  ", "\n", " \t", "\u3000"]), min_size=21, max_size=21),
    rng=st.randoms(use_true_random=False),
    form=st.sampled_from(["NFC", "NFD", "NFKC", "NFKD"]),
)
def test_variants_of_any_words_align_back(words, gaps, rng, form):
    text = "".join(word + gap for word, gap in zip(words, gaps, strict=False))
    first = rng.randrange(len(words))
    last = rng.randrange(first, len(words))
    start = text.index(words[first])
    end = text.index(words[last], start) + len(words[last])

    variant = "".join(rng.choice([c.upper(), c.lower(), c]) for c in text[start:end])
    variant = unicodedata.normalize(form, variant)
    variant = variant.translate({ord("“"): '"', ord("’"): "'", ord("—"): "-", 0xAD: None})
    variant = "".join(rng.choice(["  ", " \n", c]) if c.isspace() else c for c in variant)
    assert places(align(text, [variant], fuzzy_threshold=None)) == [(start, end)]


@given(texts.filter(str.strip), st.sampled_from(["NFC", "NFD", "NFKC", "NFKD"]))
def test_a_whole_text_is_found_in_every_unicode_form_of_itself(text, form):
    # The other forms lose what x², ½ and ① say.
    meant = re.compile("<(super|sub|fraction|circle|font)>")
    assume("K" not in form or not any(meant.match(unicodedata.decomposition(c)) for c in text))
    assume("№" not in text)
    unseen = regex.compile(r"\p{Default_Ignorable_Code_Point}")
    alignment = align(text, [unicodedata.normalize(form, text)], fuzzy_threshold=None)
    for found in alignment.spans:
        outside = text[: found.start] + text[found.end :]
        assert not unseen.sub("", outside).strip(WHITE)
    for unaligned in alignment.unaligned:
        assert "empty" in unaligned.reason
        assert not unseen.sub("", text).strip(WHITE)


@given(texts, st.lists(st.tuples(texts, st.floats()), max_size=4))
def test_every_quote_is_accounted_for_and_every_span_is_in_the_text(text, quotes):
    alignment = align(text, quotes, fuzzy_threshold=60)
    assert len(alignment.spans) + len(alignment.unaligned) == len(quotes)
    assert all(0 <= span.start < span.end <= len(text) for span in alignment.spans)
    assert all(math.isfinite(span.reward) and 60 <= span.score <= 100 for span in alignment.spans)
    assert all(unaligned.reason for unaligned in alignment.unaligned)


# Fuzzy quotes


@pytest.mark.parametrize(
    ("phrase", "found"),
    [
        ("the quikc brown red fox jumps", None),  # a short word is none that is misspelled
        ("elegant redish fox jumps", "elegant reddish fox jumps"),
        ("legant redish fox jumps", None),
        (
            "elegant reddish fox jumped over the lazy dogs",
            "elegant reddish fox jumps over the lazy dog",
        ),
        ("“elegant reddish fox jump…” ", "elegant reddish fox jumps"),
    ],
)
def test_a_misquoted_phrase_is_found_between_words(phrase, found):
    text = "So: The elegant reddish fox jumps over the lazy dog; and that was all."
    spans = align(text, [phrase]).spans
    assert [(text[span.start : span.end], span.how) for span in spans] == [(found, "fuzzy")] * bool(
        found
    )
    assert all(90 <= span.score < 100 for span in spans)
    assert "not in the text" in only_reason(text, phrase, fuzzy_threshold=None)


def test_the_threshold_decides():
    text = "the lazy brown dog sleeps"
    assert "no passage is 99" in only_reason(text, "the lazy brown dogs sleep", fuzzy_threshold=99)
    assert places(align(text, ["the lazy brown dogs sleep"], fuzzy_threshold=95)) == [(0, 25)]
    for threshold in (0, 101, math.nan):
        with pytest.raises(ValueError, match="fuzzy_threshold"):
            align(text, [], fuzzy_threshold=threshold)


def test_equally_like_passages_are_ambiguous_unless_named():
    text = "The answer is surely yes. Later: The answer is surely yes!"
    assert "occurs 2 times" in only_reason(text, "the answer is surley yes")
    quotes = [
        Quote("the answer is surley yes", 1.0, ordinal=1),
        Quote("the answer is surley yes", 1.0, before="Later: "),
    ]
    assert places(align(text, quotes)) == [(0, 24), (33, 57)]


def test_a_long_quote_of_a_short_text_is_not_found_in_it():
    assert only_reason("cat", "a cat sat on the mat and stayed")


@given(texts, st.text("βδξψωϠ ", min_size=1, max_size=30))
def test_rubbish_never_aligns(text, rubbish):
    assume(not set(rubbish.strip()) & set(text.casefold()))
    assert align(text, [rubbish]).spans == ()
    assert align(text, [rubbish], fuzzy_threshold=50).spans == ()


def test_a_text_of_white_space_holds_no_quote():
    assert "no passage" in only_reason("\r", "a phrase of some length")


def test_random_words_never_align():
    rng = random.Random(0)
    word = lambda: "".join(rng.choices("abcdefghijklmnop", k=rng.randint(2, 9)))  # noqa: E731
    text = " ".join(word() for _ in range(800))
    quotes = [" ".join(word() for _ in range(rng.randint(2, 8))) for _ in range(200)]
    assert align(text, quotes).spans == ()


@pytest.mark.parametrize("quote", [None, 3, ("a",), ("a", "b"), ("a", None), Quote(None, 1.0)])
def test_something_that_is_no_quote_is_a_type_error(quote):
    with pytest.raises(TypeError):
        align("a", [quote])


# Whole words, numbers and characters


@pytest.mark.parametrize(
    ("text", "phrase", "place"),
    [
        ("concatenate the cat", "cat", "16-19"),
        ("then he left", "he", "5-7"),
        ("15 or -5, 2.5, 5,000 and 5", "5", "25-26"),
        ("15 or −5, .5, 5e3 and 3-5.", "5", "24-25"),
        ("It isn't so, it is", "is", "16-18"),
        ("you can't, he can", "can", "14-17"),
        ("non-negative or negative", "negative", "16-24"),
        ("👍🏽 good, 👍 bad", "👍", "9-10"),
        ("👩‍👩‍👧 and 👩", "👩", "10-11"),
        ("🇪🇫🇷🇩 or 🇫🇷", "🇫🇷", "8-10"),
        ("caf\u0065\u0301 e", "e", "6-7"),
        ("caf\u0065\u0301 cafe", "cafe", "6-10"),
        ("\u1112\u1161\u11ab \u1112\u1161", "\u1112\u1161", "4-6"),
        ("a\r\nb \r", "\r", None),
        ("concatenate", "cat", None),
        ("15", "5", None),
        ("-5", "5", None),
        ("👍🏽", "👍", None),
        ("It isn't", "is", None),
        ("x²", "x", None),
        ("snake_case", "case", None),
        ("the dog's", "dog", None),
        ("猫が好き", "好", "2-3"),  # words of these scripts are not apart
        ("f(x)=y", "x", "2-3"),
        ("l'homme", "homme", "2-7"),
        ("x-5 and 3-5", "x-5", "0-3"),
        ("un\u00adsafe, un\u200bsafe, un\u2060safe and safe", "safe", "30-34"),
        ("a <= b and a < b", "a <", "11-14"),
        ("i == j or i = j", "=", "12-13"),
        ("1\ufe0f\u20e3 and 1", "1", "8-9"),
    ],
)
def test_an_unnamed_phrase_is_whole_words_numbers_and_characters(text, phrase, place):
    found = [f"{start}-{end}" for start, end in places(align(text, [phrase]))]
    assert found == [place] * (place is not None)


@given(texts, st.data())
def test_no_unnamed_phrase_cuts_a_character_in_two(text, data):
    assume(text.strip())
    start = data.draw(st.integers(0, len(text) - 1))
    end = data.draw(st.integers(start + 1, len(text)))
    phrase = data.draw(st.sampled_from([str, str.upper]))(text[start:end])
    cuts = {0} | {match.end() for match in regex.finditer(r"\X", text)}
    for place in places(align(text, [phrase])):
        assert set(place) <= cuts


def test_a_misquote_neither_starts_nor_ends_within_a_word():
    text = "It isn't safe to use it here, whatever the signs say."
    assert "differs in: 'is' / \"isn't\"" in only_reason(text, "It is safe to use it here")
    text = "A 👍🏽 for the results, and they are clearly excelent 👍🏽"
    assert align(text, ["they are clearly excellent 👍"]).spans == ()
    (found,) = align(text, ["they are clearly excellent 👍🏽"]).spans
    assert text[found.start :] == "they are clearly excelent 👍🏽"


def test_an_ordinal_or_verbatim_neighbors_name_a_place_within_a_word():
    assert places(align("concatenate", [Quote("cat", 1.0, ordinal=1)])) == [(3, 6)]
    assert places(align("concatenate", [Quote("cat", 1.0, before="con", after="e")])) == [(3, 6)]
    assert "only within" in only_reason("concatenate", Quote("cat", 1.0, before="the "))


# Bounds


def test_five_hundred_quotes_of_a_long_text_take_few_steps(monkeypatch):
    """A tenth of what they may; seconds are measured by `python -m benchmarks`."""
    rng = random.Random(0)
    text = " ".join("".join(rng.choices("abcdefgh", k=rng.randint(2, 9))) for _ in range(1800))
    words = list(re.finditer(r"\w+", text))
    cut = [(words[i].start(), words[i + 5].end()) for i in rng.choices(range(1790), k=500)]
    marked = [Quote(text[a], 1.0, before=text[a - 9 : a]) for a, _ in cut]
    reasons = {item.reason for item in align(text, marked + ["a"] * 500).unaligned}
    assert not any("too long" in reason for reason in reasons)
    monkeypatch.setattr(search, "STEPS", search.STEPS // 10)
    for change in (str, str.upper):
        found = align(text, [change(text[a:b]) for a, b in cut])
        assert len(found.spans) > 400
        assert not any("too long" in item.reason for item in found.unaligned)


# Token spans


def span(start, end, reward=1.0, quote="", how="exact"):
    return CharSpan(start, end, reward, quote, how, 100.0)


@pytest.mark.parametrize(
    ("spans", "offsets", "tokens"),
    [
        ([span(2, 5)], [(0, 1), (1, 5), (5, 6)], [(1, 2)]),  # "a| foo|." : " foo" belongs to foo
        ([span(1, 5, quote=" foo")], [(0, 1), (1, 2), (2, 5)], [(2, 3)]),  # the lone space does not
        ([span(0, 5, quote="a foo")], [(0, 1), (1, 2), (2, 5)], [(0, 3)]),  # unless it is inside
        ([span(1, 3)], [(0, 2), (2, 4)], [(0, 2)]),
        ([span(0, 1)], [(0, 1), (0, 1), (0, 1), (1, 2)], [(0, 3)]),  # one character, three tokens
        ([span(1, 2)], [(0, 1), (0, 2), (1, 2)], [(1, 3)]),  # a token across two characters
        ([span(0, 1), span(1, 2)], [(0, 0), (0, 1), (1, 1), (1, 2), (0, 0)], [(1, 2), (3, 4)]),
        ([span(0, 2)], [(0, 0), (0, 1), (1, 1), (1, 2), (2, 2)], [(1, 4)]),
        ([span(5, 9)], [(0, 1), (1, 5)], [(0, 0)]),  # cut off before the span
        ([span(0, 1)], [], [(0, 0)]),
        ([], [(0, 1)], []),
    ],
)
def test_a_span_covers_the_tokens_that_share_a_character_with_it(spans, offsets, tokens):
    found = to_token_spans(spans, offsets)
    assert found == tuple(TokenSpan(a, b, 1.0) for a, b in tokens)


def test_token_spans_keep_order_and_reward():
    spans = [span(3, 5, -1.0), span(0, 2, 0.5)]
    assert to_token_spans(spans, [(0, 2), (2, 5)]) == (
        TokenSpan(1, 2, -1.0),
        TokenSpan(0, 1, 0.5),
    )


@pytest.mark.parametrize(
    ("spans", "offsets", "message"),
    [
        ([span(2, 2)], [(0, 3)], "empty or reversed"),
        ([span(-1, 2)], [(0, 3)], "empty or reversed"),
        ([span(0, 2, math.nan)], [(0, 3)], "not finite"),
        ([], [(0, 3), (1, 2)], "backwards at token 1"),
        ([], [(3, 5), (0, 2)], "backwards at token 1"),
        ([], [(3, 1)], "backwards at token 0"),
    ],
)
def test_impossible_spans_and_offsets_are_errors(spans, offsets, message):
    with pytest.raises(ValueError, match=message):
        to_token_spans(spans, offsets)


@pytest.fixture(scope="module")
def bpe():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([STORY, "漢字 👍🏽 ❤️ שלום ﬁne " * 9], trainer)
    return tokenizer


@given(cutting=cuttings())
def test_through_a_byte_level_tokenizer_a_quote_covers_the_tokens_of_its_bytes(bpe, cutting):
    text, start, end = cutting
    phrase = text[start:end]
    ordinal = sum(text.startswith(phrase, i) for i in range(start + 1))
    encoding = bpe.encode(text)
    alignment = align(text, [Quote(phrase, -1.0, ordinal=ordinal)])
    (found,) = to_token_spans(alignment.spans, encoding.offsets)

    start, end = (
        start + len(phrase) - len(phrase.lstrip()),
        end - len(phrase) + len(phrase.rstrip()),
    )
    first, last = len(text[:start].encode()), len(text[:end].encode())
    covered, at = [], 0
    for t, token in enumerate(encoding.tokens):  # each character of a token stands for one byte
        if at < last and at + len(token) > first:
            covered.append(t)
        at += len(token)
    assert list(range(found.start, found.end)) == covered
    assert found.reward == -1.0


@pytest.mark.parametrize(
    ("text", "quotes", "message"),
    [
        ("The cat", "cat", r"quotes must be a list of quotes, got 'cat'; give \['cat'\]"),
        ("The cat", Quote("cat", 1.0), r"quotes must be a list .*; give \[Quote\(text='cat'"),
        ("The cat", {"cat": -1.0}, r"quotes must be a list .*; give \(phrase, reward\) pairs"),
        ("The cat", None, r"quotes must be a list of quotes, got None; give \[\] for none"),
        (None, ["cat"], r"text must be a string, got None"),
        (b"The cat", ["cat"], r"text must be a string, got b'The cat'"),
    ],
)
def test_what_is_no_text_and_no_list_of_quotes_is_refused(text, quotes, message):
    with pytest.raises(TypeError, match=message):
        align(text, quotes)
