"""Where tokens are in the text that they decode to, without encoding that text again.

Sampled tokens need not be those that encoding would give, so that a tokenizer's own offsets, which
come of encoding, may be of other tokens.
"""

import json
import operator
import re
from collections.abc import Iterable, Sequence
from itertools import groupby, pairwise
from typing import Any, Protocol

Offsets = Sequence[tuple[int, int]]
"""Per token its (start, end) in the text, end exclusive; zero width: a token without text."""

_BYTE_TOKEN = re.compile("<0x[0-9A-F]{2}>")


def offsets(
    tokenizer: Any, ids: Iterable[int], *, text: str | None = None, skip_special_tokens: bool = True
) -> list[tuple[int, int]]:
    """Where each token is in the text of all, for any tokenizer of Hugging Face.

    For those that spell text in bytes (GPT-2, Llama 3, Qwen) a token is where its bytes are; for
    others (SentencePiece: Llama 2, Gemma, T5) it ends where decoding more and more tokens stops
    agreeing with the whole text. Tokens that share a character, its bytes being spread over them,
    all get it. Special tokens, and ids that the tokenizer does not know, have zero width.

    >>> from tokenizers import Tokenizer, decoders, models
    >>> from t2g_jax import spans
    >>> tokenizer = Tokenizer(models.BPE({"The": 0, "Ġcat": 1, "Ġsat": 2}, []))
    >>> tokenizer.decoder = decoders.ByteLevel()
    >>> tokenizer.decode([0, 1, 2])
    'The cat sat'
    >>> spans.offsets(tokenizer, [0, 1, 2])
    [(0, 3), (3, 7), (7, 11)]

    Args:
      tokenizer: of `transformers` (as from `AutoTokenizer`), fast or slow, a
        `tokenizers.Tokenizer`, or our `ChatTokenizer`.
      ids: token ids, of one sequence, without the −100 that some pad labels with.
      text: what the offsets are to be in, if you have it; checked to be what the tokens say.
      skip_special_tokens: as in `decode`. False: special tokens are part of the text.

    Returns:
      [(start, end)] in characters of `tokenizer.decode(ids, skip_special_tokens=…,
      clean_up_tokenization_spaces=False)`, end exclusive, one per token.

    Raises:
      TypeError: the tokenizer cannot decode.
      ValueError: ids are not integers of 0 or more, or not of one sequence; the tokens say another
        text than `text`.
    """
    ids = _token_ids(ids)
    locator = TokenLocator(_vocabulary(tokenizer), skip_special_tokens=skip_special_tokens)
    said = locator.decode(ids)
    if text is not None and said != text:
        at = agreement(said, text)
        raise ValueError(
            f"the tokens say another text than the one given, from character {at} on: "
            f"{said[at : at + 20]!r}, not {text[at : at + 20]!r}; decode them with "
            f"skip_special_tokens={skip_special_tokens}, clean_up_tokenization_spaces=False"
        )
    return locator.locate(ids)


class Vocabulary(Protocol):
    """What is asked of a tokenizer: what `tokenizers.Tokenizer` has."""

    decoder: Any

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str: ...

    def id_to_token(self, id: int) -> str | None: ...

    def get_added_tokens_decoder(self) -> dict[int, Any]: ...


class TokenLocator:
    """Finds tokens in the text of all, again and again, for one tokenizer.

    >>> from tokenizers import Tokenizer, decoders, models
    >>> from t2g_jax.spans.token_offsets import TokenLocator
    >>> tokenizer = Tokenizer(models.BPE({"The": 0, "Ġcat": 1}, []))
    >>> tokenizer.decoder = decoders.ByteLevel()
    >>> TokenLocator(tokenizer).locate([0, 1])
    [(0, 3), (3, 7)]
    """

    def __init__(self, vocabulary: Vocabulary, *, skip_special_tokens: bool = True):
        self._vocabulary = vocabulary
        self._skip = skip_special_tokens
        added = vocabulary.get_added_tokens_decoder()
        self._special_ids = {i for i, token in added.items() if token.special}
        self._is_byte_level = _is_byte_level(vocabulary.decoder)

    def decode(self, ids: Sequence[int]) -> str:
        return self._vocabulary.decode(ids, skip_special_tokens=self._skip)

    def locate(self, ids: Iterable[int]) -> list[tuple[int, int]]:
        """[(start, end)] in `decode(ids)`, see `offsets`."""
        ids = _token_ids(ids)
        text = self.decode(ids)
        if self._is_byte_level:
            pieces = [b"" if self._is_silent(i) else self._bytes(i) for i in ids]
            chars, start_of = decode_bytes(b"".join(pieces))
            if chars == text:
                return byte_offsets(pieces, start_of, len(text))
        return self._prefix_offsets(ids, text)

    def _is_silent(self, i: int) -> bool:
        special = self._skip and i in self._special_ids
        return special or self._vocabulary.id_to_token(i) is None

    def _bytes(self, i: int) -> bytes:
        token = self._vocabulary.id_to_token(i)
        try:
            return bytes(BYTE_OF[char] for char in token)
        except KeyError:  # an added token, spelled as it is
            return token.encode()

    def _prefix_offsets(self, ids: list[int], text: str) -> list[tuple[int, int]]:
        """Offsets by decoding longer and longer prefixes, for any decoder.

        A token ends where the text decoded up to it stops agreeing with the whole text. Prefixes
        are decoded from an anchor, moved along where the rest of the text decodes on its own, so
        the cost grows little faster than the length.
        """
        loud = [i for i in ids if not self._is_silent(i)]
        ends, anchor, origin = [0], 0, 0
        for k in range(len(loud)):
            if k - anchor >= 64:
                rest = self.decode(loud[k:])
                if text.endswith(rest) and len(text) - len(rest) >= ends[-1]:
                    anchor, origin = k, len(text) - len(rest)
            prefix = self.decode(loud[anchor : k + 1])
            agreed = origin + agreement(prefix, text[origin : origin + len(prefix)])
            ends.append(max(agreed, ends[-1]))
        offsets = list(pairwise(ends))

        # SentencePiece's byte tokens: a run of them is its UTF-8 text, or one U+FFFD each.
        is_byte = [bool(_BYTE_TOKEN.fullmatch(self._vocabulary.id_to_token(i))) for i in loud]
        for byte, run in groupby(range(len(loud)), key=is_byte.__getitem__):
            if byte:
                tokens = list(run)
                first, last = ends[tokens[0]], ends[tokens[-1] + 1]
                sizes = [len(char.encode()) for char in text[first:last]]
                if len(sizes) == len(tokens):
                    sizes = [1] * len(tokens)
                char_of = [first + c for c, size in enumerate(sizes) for _ in range(size)]
                exact = len(char_of) == len(tokens)
                for n, k in enumerate(tokens):
                    offsets[k] = (char_of[n], char_of[n] + 1) if exact else (first, last)

        return with_silent(offsets, [self._is_silent(i) for i in ids], len(text))


def decode_bytes(data: bytes) -> tuple[str, list[int]]:
    """Text of UTF-8 bytes, U+FFFD for each part that is none, and the character of each byte.

    >>> from t2g_jax.spans import token_offsets
    >>> token_offsets.decode_bytes("é!".encode() + b"\\xff")
    ('é!�', [0, 0, 1, 2])
    """
    text: list[str] = []
    char_of: list[int] = []
    at = 0
    while at < len(data):
        try:
            valid, bad = data[at:].decode(), 0
        except UnicodeDecodeError as error:
            valid, bad = data[at : at + error.start].decode(), error.end - error.start
        for char in valid:
            char_of += [len(text)] * len(char.encode())
            text.append(char)
        if bad:
            char_of += [len(text)] * bad
            text.append("\ufffd")
        at = len(char_of)
    return "".join(text), char_of


def byte_offsets(pieces: list[bytes], char_of: list[int], length: int) -> list[tuple[int, int]]:
    """Offsets of tokens from their bytes, and from the character of each byte of the text.

    >>> from t2g_jax.spans import token_offsets
    >>> token_offsets.byte_offsets([b"a", b"", b"bc"], [0, 1, 2], length=3)
    [(0, 1), (1, 1), (1, 3)]
    """
    offsets, at = [], 0
    for piece in pieces:
        start = char_of[at] if at < len(char_of) else length
        at += len(piece)
        offsets.append((start, char_of[at - 1] + 1 if piece else start))
    return offsets


def without_holes(offsets: list[tuple[int, int]], length: int) -> list[tuple[int, int]]:
    """Offsets in a text that was normalized for its tokens, every character belonging to a token.

    What a normalizer composes with the character before, or drops, belongs to the tokens that end
    just before it: in "e" and U+0301, which NFC makes one, to the token of "e". What it drops at
    the start belongs to the first token.

    >>> from t2g_jax.spans import token_offsets
    >>> token_offsets.without_holes([(1, 2), (3, 4)], length=5)
    [(0, 3), (3, 5)]
    """
    covered = bytearray(length)
    for start, end in offsets:
        covered[start:end] = b"\1" * (end - start)
    until = list(range(length + 1))  # the end of the hole that begins at a position
    for at in reversed(range(length)):
        if not covered[at]:
            until[at] = until[at + 1]
    filled = [(start, until[end]) if start < end else (start, end) for start, end in offsets]
    first = next((t for t, (start, end) in enumerate(filled) if start < end), 0)
    head = until[0] if length else 0
    for t, (start, end) in enumerate(filled):
        if head and t >= first and start <= head and (start < end or t == first):
            filled[t] = (0, max(end, head))
    return filled


def with_silent(
    offsets: list[tuple[int, int]], silent: list[bool], length: int
) -> list[tuple[int, int]]:
    """Offsets of all tokens from those of the others: a silent one stands before its successor.

    >>> from t2g_jax.spans import token_offsets
    >>> token_offsets.with_silent([(0, 1), (1, 2)], [False, True, False], length=2)
    [(0, 1), (1, 1), (1, 2)]
    """
    left, out = [*offsets, (length, length)][::-1], []
    for quiet in silent:
        out.append((left[-1][0], left[-1][0]) if quiet else left.pop())
    return out


def agreement(a: str, b: str) -> int:
    """How many characters two strings have in common at their start.

    >>> from t2g_jax.spans import token_offsets
    >>> token_offsets.agreement("the cat", "the dog")
    4
    """
    if a == b:
        return len(a)
    pairs = enumerate(zip(a, b, strict=False))
    return next((i for i, (x, y) in pairs if x != y), min(len(a), len(b)))


def _token_ids(ids: Iterable[int]) -> list[int]:
    found = []
    for place, given in enumerate(ids):
        try:
            found.append(operator.index(given))
        except TypeError:
            raise ValueError(
                f"ids must be integers, those of one sequence, but ids[{place}] is {given!r}"
            ) from None
        if not 0 <= found[-1] < 2**32:  # of which tokenizers keep 32 bits
            raise ValueError(
                f"ids must be in [0, 2³²), but ids[{place}] is {given!r}; leave padding out"
            )
    return found


def _byte_alphabet() -> dict[str, int]:
    """The character that stands for each byte in byte-level BPE (GPT-2's table), inverted."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in visible]
    table = {chr(byte): byte for byte in visible}
    return table | {chr(256 + i): byte for i, byte in enumerate(others)}


BYTE_OF = _byte_alphabet()


def _vocabulary(tokenizer: Any) -> Vocabulary:
    """The vocabulary of a tokenizer of `transformers`, of what wraps one, or is one itself."""
    tokenizer = getattr(tokenizer, "hugging_face", tokenizer)
    backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
    if hasattr(backend, "id_to_token"):
        return backend
    if hasattr(tokenizer, "decode") and hasattr(tokenizer, "convert_ids_to_tokens"):
        return _Slow(tokenizer)
    raise TypeError(
        f"a {type(tokenizer).__name__} is no tokenizer of Hugging Face: give one of "
        "`transformers`, or a `tokenizers.Tokenizer`"
    )


class _Slow:
    """A tokenizer of `transformers` that is written in Python, as a `Vocabulary`."""

    decoder = None

    def __init__(self, tokenizer: Any):
        self._tokenizer = tokenizer

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        known = [i for i in ids if self.id_to_token(i) is not None]
        return self._tokenizer.decode(
            known, skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False
        )

    def id_to_token(self, id: int) -> str | None:
        if not 0 <= id < len(self._tokenizer):
            return None
        return self._tokenizer.convert_ids_to_tokens(id)

    def get_added_tokens_decoder(self) -> dict[int, Any]:
        return self._tokenizer.added_tokens_decoder


def _is_byte_level(decoder: Any) -> bool:
    """Whether a decoder of `tokenizers`, or one of several in a row, joins bytes."""
    if decoder is None:
        return False
    state = json.loads(decoder.__getstate__())
    return "ByteLevel" in [state.get("type"), *(d["type"] for d in state.get("decoders", ()))]
