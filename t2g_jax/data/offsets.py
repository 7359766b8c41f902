"""Where tokens are in a text, from their bytes."""


def decode_bytes(data: bytes) -> tuple[str, list[int]]:
    """Text of UTF-8 bytes, U+FFFD for each part that is none, and the character of each byte."""
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
    """Offsets of all tokens from those of the others: a silent one stands before its successor."""
    left, out = [*offsets, (length, length)][::-1], []
    for quiet in silent:
        out.append((left[-1][0], left[-1][0]) if quiet else left.pop())
    return out


def agreement(a: str, b: str) -> int:
    """How many characters two strings have in common at their start."""
    if a == b:
        return len(a)
    pairs = enumerate(zip(a, b, strict=False))
    return next((i for i, (x, y) in pairs if x != y), min(len(a), len(b)))


def _byte_alphabet() -> dict[str, int]:
    """The character that stands for each byte in byte-level BPE (GPT-2's table), inverted."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in visible]
    table = {chr(byte): byte for byte in visible}
    return table | {chr(256 + i): byte for i, byte in enumerate(others)}


BYTE_OF = _byte_alphabet()
