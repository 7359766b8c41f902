"""Offsets for plain tokenizers of Hugging Face, which are not `ChatTokenizer`s."""

import family_tokenizers
import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from t2g_jax import spans

TEXTS = ("The cat sat.\n", "naïve café 漢字 👍🏽 at row 2", " two  blanks ", "")


def _plain(name):
    """The tokenizer of a family as `AutoTokenizer` would give it."""
    return family_tokenizers.FAMILIES[name].make().hugging_face


def _decoded(tokenizer, ids, **options):
    return tokenizer.decode(ids, clean_up_tokenization_spaces=False, **options)


@pytest.mark.parametrize("name", family_tokenizers.FAMILIES)
def test_every_family(name):
    """Byte-level and SentencePiece: all of the text belongs to tokens, in order."""
    tokenizer = _plain(name)
    for text in TEXTS:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        said = _decoded(tokenizer, ids)
        found = spans.offsets(tokenizer, ids, text=said)
        assert len(found) == len(ids)
        assert {i for start, end in found for i in range(start, end)} == set(range(len(said)))
        assert found == sorted(found)


@pytest.mark.parametrize("name", family_tokenizers.FAMILIES)
def test_as_the_chat_tokenizer_and_the_backend_have_them(name):
    chat = family_tokenizers.FAMILIES[name].make()
    ids = [*chat.encode("Look again: naïve 漢字"), chat.end_id]
    expected = chat.offsets(ids)
    for tokenizer in (chat, chat.hugging_face, chat.hugging_face.backend_tokenizer):
        assert spans.offsets(tokenizer, ids) == expected
    assert expected[-1][0] == expected[-1][1]


def test_sampled_tokens_are_not_encoded_again():
    """Two tokens where encoding would give one; and one of no text between them."""
    tokenizer = Tokenizer(models.BPE({"a": 0, "b": 1, "ab": 2, "<end>": 3}, [("a", "b")]))
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<end>", special=True)])
    assert spans.offsets(tokenizer, [0, 3, 1, 2]) == [(0, 1), (1, 1), (1, 2), (2, 4)]
    with_special = spans.offsets(tokenizer, [0, 3, 1], skip_special_tokens=False)
    assert with_special == [(0, 1), (1, 6), (6, 7)]
    assert tokenizer.decode([0, 3, 1], skip_special_tokens=False) == "a<end>b"


def test_bytes_of_one_character_share_it():
    tokenizer = Tokenizer(
        models.BPE({c: i for i, c in enumerate(pre_tokenizers.ByteLevel.alphabet())}, [])
    )
    tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Fuse()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    ids = wrapped.encode("é!")
    assert spans.offsets(wrapped, ids) == [(0, 1), (0, 1), (1, 2)]
    assert spans.offsets(wrapped, ids[:1]) == [(0, 1)]  # half a character is one of its own
    assert spans.offsets(wrapped, [ids[2], 10**6, ids[2]]) == [(0, 1), (1, 1), (1, 2)]


class Slow:
    """A tokenizer written in Python, with what `transformers` lets one ask of it."""

    added_tokens_decoder = {0: AddedToken("<s>", special=True)}
    tokens = ("<s>", "▁The", "▁cat", "s")

    def __len__(self):
        return len(self.tokens)

    def convert_ids_to_tokens(self, id):
        return self.tokens[id]

    def decode(self, ids, skip_special_tokens=False, clean_up_tokenization_spaces=None):
        assert clean_up_tokenization_spaces is False
        kept = [self.tokens[i] for i in ids if not (i == 0 and skip_special_tokens)]
        return "".join(kept).replace("▁", " ").removeprefix(" ")


def test_slow_tokenizers():
    assert spans.offsets(Slow(), [0, 1, 2, 3, 9]) == [(0, 0), (0, 3), (3, 7), (7, 8), (8, 8)]


def test_refusals():
    tokenizer = _plain(next(iter(family_tokenizers.FAMILIES)))
    ids = tokenizer("The cat", add_special_tokens=False)["input_ids"]
    with pytest.raises(ValueError, match=r"from character 4 on: 'cat', not 'dog'"):
        spans.offsets(tokenizer, ids, text="The dog")
    with pytest.raises(TypeError, match=r"a dict is no tokenizer of Hugging Face"):
        spans.offsets({"The": 0}, [0])


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([0, -100], r"ids must be in \[0, 2³²\), but ids\[1\] is -100; leave padding out"),
        ([2**40], r"but ids\[0\] is 1099511627776"),
        ([0, 1.5], r"ids must be integers, those of one sequence, but ids\[1\] is 1\.5"),
        ([[0, 1]], r"one sequence, but ids\[0\] is \[0, 1\]"),
        (np.zeros((2, 2), int), r"one sequence, but ids\[0\] is array"),
    ],
)
def test_ids_are_those_of_one_sequence(ids, message):
    with pytest.raises(ValueError, match=message):
        spans.offsets(Slow(), ids)
    assert spans.offsets(Slow(), np.array([1, 2], np.uint8)) == spans.offsets(Slow(), [1, 2])
