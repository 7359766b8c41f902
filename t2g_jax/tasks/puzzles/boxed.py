r"""Answers in `\boxed{...}`: writing them, and reading them again in whatever a model wrote."""

import re
from dataclasses import dataclass

# Escaped characters are skipped, so that `\{` and `\}` need not balance. Two backslashes before
# "boxed" are what models write when they think they are inside a JSON string.
_TOKENS = re.compile(r"\\{1,2}boxed\s*\{|\\.|[{}]", re.DOTALL)


@dataclass(frozen=True)
class Box:
    r"""The characters between the braces of a `\boxed{...}`: text[start:end] == content."""

    content: str
    start: int
    end: int


def boxed(answer: str) -> str:
    r"""`answer` in a box, with lines of its own if it has several."""
    return f"\\boxed{{\n{answer}\n}}" if "\n" in answer else f"\\boxed{{{answer}}}"


def find_boxed(text: str) -> Box | None:
    r"""The `\boxed{...}` that opens last, among those whose braces balance. Linear time."""
    open_braces: list[int | None] = []  # where the content of a box starts; None for a plain brace
    last = None
    for token in _TOKENS.finditer(text):
        match token[0][-1], len(token[0]):
            case "{", 1:
                open_braces.append(None)
            case "}", 1:
                start = open_braces.pop() if open_braces else None
                if start is not None and (last is None or start > last.start):
                    last = Box(text[start : token.start()], start, token.start())
            case "{", length if length > 2:
                open_braces.append(token.end())
    return last


def scan(text: str, parts: re.Pattern[str]) -> list[re.Match[str]] | None:
    """The parts, none of them empty, that `text` consists of; None if it holds anything else."""
    found: list[re.Match[str]] = []
    position = 0
    while position < len(text):
        part = parts.match(text, position)
        if part is None:
            return None
        found.append(part)
        position = part.end()
    return found
