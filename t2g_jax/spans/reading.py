"""A text as it is compared: its plain spelling, its words, and where both may be cut.

The plain spelling drops what never changes a meaning (Unicode's ways to write one character, case,
shapes of quotation marks and dashes, amounts of white space) and nothing that may: x² is not x2.
"""

import re
import unicodedata
from bisect import bisect_left
from collections import defaultdict
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from typing import NamedTuple

import regex

Place = tuple[int, int]

# A user-perceived character. Flags are paired first: `\X` looks back over all of a run of them.
_GRAPHEME = regex.compile(r"[\U0001F1E6-\U0001F1FF]{2}[\p{M}\p{EMod}\u200d]*|\X")
# Longer clusters stay as they are: to order n marks on one letter takes n² steps.
_LONGEST_CLUSTER = 32
_MARKS = regex.compile(r"\p{M}{32}")


class Unit(NamedTuple):
    """A word, number or sign of a plain text, at start ≤ i < end of it."""

    key: str
    kind: str
    start: int
    end: int


WORD, NUMBER, SIGN = "word", "number", "sign"
# Quotation marks, ellipses, hyphens within words, asterisks of emphasis: they may differ.
MARK = "mark"


class Reading:
    """A text and, each made when first needed, its plain spelling, units and boundaries."""

    def __init__(self, text: str):
        self.text = text

    @cached_property
    def plain(self) -> "Plain":
        return _plain(self.text)

    @cached_property
    def units(self) -> list[Unit]:
        """All units but marks, in order."""
        return [unit for unit in self._with_marks if unit.kind != MARK]

    @cached_property
    def _with_marks(self) -> list[Unit]:
        return _units(self.plain.text)

    @property
    def steps(self) -> int:
        """About how many microseconds it takes to make all of this, by what there is to make."""
        spelled = len(self.plain.text) - len(self.text)
        return len(self.text) + max(spelled, 0) // 4 + 4 * len(self._with_marks)

    @cached_property
    def _starts(self) -> list[int]:
        return [unit.start for unit in self.units]

    @cached_property
    def positions(self) -> dict[str, list[int]]:
        """Which units have a key."""
        found: dict[str, list[int]] = defaultdict(list)
        for i, unit in enumerate(self.units):
            found[unit.key].append(i)
        return dict(found)

    def raw(self, place: Place) -> str:
        """A place of the plain text as it is written, in one of Unicode's forms."""
        start, end = self.plain.original(place)
        return _composed(self.text[start:end])

    def units_in(self, place: Place) -> list[Unit]:
        """The units within a place of the plain text."""
        first, last = (bisect_left(self._starts, i) for i in place)
        return [unit for unit in self.units[first:last] if unit.end <= place[1]]

    @cached_property
    def code(self) -> "Code":
        return _code(self.text)

    @cached_property
    def _cuts(self) -> bytearray | None:
        """1 where a grapheme cluster starts or ends; None: anywhere."""
        if not _CLUSTERING.search(self.text):
            return None
        cuts = bytearray(len(self.text) + 1)
        cuts[0] = 1
        for match in _GRAPHEME.finditer(self.text):
            cuts[match.end()] = 1
        return cuts

    def is_whole(self, place: Place) -> bool:
        """Whether no character, word or number runs on across either end of a place of the text."""
        return not any(self._runs_on(i) for i in place)

    def _runs_on(self, i: int) -> bool:
        text = self.text
        if not 0 < i < len(text):
            return False
        if self._cuts is not None and not self._cuts[i]:
            return True
        before, after = text[max(0, i - 10) : i], text[i : i + 10]
        before, after = visible(before), visible(after)  # words run on across what is invisible
        left, right = before[-1:], after[:1]
        if not (left and right) or left.isspace() or right.isspace():
            return False
        if _is_wordy(left) and _is_wordy(right):
            return True
        return any(head.search(before) and tail.match(after) for head, tail in _INSIDE)


@dataclass(frozen=True)
class Code:
    """Places of a text, disjoint and in order: sentences and blocks of code, and code in prose."""

    blocks: list[Place]
    inline: list[Place]


def _is_wordy(char: str) -> bool:
    letter = char.isalnum() or char == "_" or unicodedata.category(char)[0] == "M"
    return letter and not _UNSPACED.match(char)


# Scripts written without spaces between words: there, any two characters may be parted.
_NO_SPACES = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\ua4cf\uf900-\ufaff\uff66-\uff9f"
    "\U0001b000-\U0001b16f\U00020000-\U0003ffff"
)
_UNSPACED = regex.compile(f"[{_NO_SPACES}]")

# What stands before a sign that belongs to its number, as in "(-5", not "3-5".
_UNARY = r"(?<![^\s(\[{=<>,;:*/^+\-–−\"'~≈])"
_CONTRACTED = r"(?:t|s|re|ll|ve|m|d)(?!\w)"
# What ends just before a place, and what begins there, where words and numbers are cut in two.
_INSIDE = [
    (regex.compile(head), regex.compile(tail, regex.IGNORECASE))
    for head, tail in (
        (r"\p{L}$", rf"['’ʼ]{_CONTRACTED}"),  # is|n't is cut by its letters, it|'s here
        (r"\p{L}['’ʼ]$", _CONTRACTED),
        (_UNARY + r"[-−–‒]$", r"\.?\d"),
        (r"\d$", r"\.\d|,\d{3}(?!\d)"),
        (r"(?<![\p{L}.])\.$", r"\d"),
        (r"(?<!\d)\d{1,3}(?:,\d{3})*,$", r"\d{3}(?!\d)"),
        (r"\d[eE]$", r"[-+]\d"),
        (r"[=!<>:+\-*/%&|^]$", "="),  # operators, as <=
        (r"[-=]$", ">"),
        *((re.escape(char) + "$", re.escape(char)) for char in "&|+-*/<>:"),
        (r"\d[eE][-+]$", r"\d"),
        # non-|negative
        (
            r"(?i)(?<!\w)(?:non|un|in|im|il|ir|dis|mis|de|anti|counter|pseudo|quasi|semi|ex|pre"
            r"|post|sub|super|hyper|hypo|over|under|a)[-‐‑]$",
            r"\w",
        ),
    )
]


@dataclass(frozen=True)
class Plain:
    """A plain text; its character i stands for starts[i] ≤ j < ends[i] of the original."""

    text: str
    starts: list[int]
    ends: list[int]

    def original(self, place: Place) -> Place:
        return self.starts[place[0]], self.ends[place[1] - 1]

    def cuts_no_cluster(self, place: Place) -> bool:
        """Whether both ends of a place lie between clusters of the original."""
        return all(not 0 < i < len(self.text) or self.starts[i] >= self.ends[i - 1] for i in place)


def _plain(text: str) -> Plain:
    if text.isascii():
        kept = [
            i for i, char in enumerate(text) if not (char.isspace() and text[i - 1 : i].isspace())
        ]
        chars = [" " if char.isspace() else char for char in map(text.__getitem__, kept)]
        plain = "".join(chars).replace("`", "'").lower()
        return Plain(plain, kept, [*kept[1:], len(text)][: len(kept)])
    out: list[str] = []
    starts: list[int] = []
    ends: list[int] = []
    for start, end in _clusters(text):
        spelled = _spelled(text[start:end])
        for char in spelled if spelled.isspace() else spelled.replace(" ", ""):
            if char.isspace() and out and out[-1] == " ":
                ends[-1] = end
            else:
                out.append(" " if char.isspace() else char)
                starts.append(start)
                ends.append(end)
    return Plain("".join(out), starts, ends)


# Conjoining Hangul vowels and final consonants, and half-width Japanese voicing marks: they are
# composed with the letter before, whether or not a cluster ends there.
_JOINING = regex.compile("[\u1160-\u11ff\ud7b0-\ud7ff\uff9e\uff9f\uffa0-\uffdc\\p{M}]")


# What only texts with clusters of several characters have.
_CLUSTERING = regex.compile(
    r"[^\p{GCB=Other}\p{GCB=Control}\n\r\p{GCB=LV}\p{GCB=LVT}]|\r\n|[\uffa0-\uffdc]"
)


def _clusters(text: str) -> list[Place]:
    if not _CLUSTERING.search(text):
        return [(i, i + 1) for i in range(len(text))]
    found: list[Place] = []
    for match in _GRAPHEME.finditer(text):
        start, end = match.span()
        if found and _JOINING.match(text, start) and end - found[-1][0] <= _LONGEST_CLUSTER:
            start, _ = found.pop()
        found.append((start, end))
    return found


_PLAIN = str.maketrans(
    {
        **dict.fromkeys("‘’‚‛‹›′ʼ`", "'"),
        **dict.fromkeys("“”„‟«»⹂「」『』〝〞〟", '"'),
        **dict.fromkeys("‐‒–—―−⸺⸻", "-"),
    }
)
# What nobody sees: soft hyphens, zero-width spaces and joiners, marks of direction, selectors. Not
# what turns the order of letters around, fillers that are letters, and the tags of flags.
_INVISIBLE = regex.compile(
    r"[\p{DI}--[\u115f\u1160\u3164\uffa0\u202d\u202e\U000e0020-\U000e007f]]", regex.VERSION1
)
_INVISIBLE_IN_EMOJI = regex.compile("[\ufe0e\ufe0f]")
_EMOJI = regex.compile(r"\p{ExtPict}")
# Superscripts, fractions, letters in circles and mathematical fonts say more than what they are
# made of.
_MEANT = ("<super>", "<sub>", "<fraction>", "<circle>", "<font>")


@lru_cache(maxsize=1 << 16)
def _spelled(cluster: str) -> str:
    """A user-perceived character in its plain spelling."""
    if cluster.isascii():
        return "'" if cluster == "`" else cluster.lower()
    if len(cluster) > _LONGEST_CLUSTER:
        return cluster
    # A spacing acute, typed as an apostrophe, is a space and an accent.
    plain = visible(_composed(cluster).replace(" \u0301", "'")).translate(_PLAIN)
    return _composed(plain.casefold())


def visible(text: str) -> str:
    """A text without its invisible characters, but for those that join emoji."""
    if text.isascii():
        return text
    return (_INVISIBLE_IN_EMOJI if _EMOJI.search(text) else _INVISIBLE).sub("", text)


def _composed(text: str) -> str:
    """NFKC of a text, except where it would lose a meaning."""
    if text.isascii() or _MARKS.search(text):
        return text
    return unicodedata.normalize("NFC", "".join(map(_decomposed, text)))


@cache
def _decomposed(char: str) -> str:
    """NFKD of a character, except where it would lose a meaning."""
    tag, *parts = unicodedata.decomposition(char).split() or [""]
    if not tag or tag in _MEANT or char == "№":
        return char
    codes = parts if tag[0] == "<" else [tag, *parts]
    return "".join(_decomposed(chr(int(code, 16))) for code in codes)


_UNIT = regex.compile(
    rf"""
    (?P<unspaced>[{_NO_SPACES}]\p{{M}}*)
    |(?P<keycap>[\d*\#]\u20e3)
    |(?P<number>(?:{_UNARY}[-+](?=\.?\d))?(?:(?<![\d\w.])\.)?\p{{Nd}}+(?:\.\p{{Nd}}+)*
        (?:e[-+]?\p{{Nd}}+(?!\w))?)
    |(?P<word>[\p{{L}}\p{{M}}_](?:[\p{{L}}\p{{M}}\p{{Nd}}_--[{_NO_SPACES}]])*
        (?:'(?:[\p{{L}}\p{{M}}\p{{Nd}}_--[{_NO_SPACES}]])+)*)
    |(?P<ellipsis>\.(?:\ ?\.){{2,}})
    |(?P<dash>-+)
    |(?P<quotation>["'])
    |(?P<emphasis>\*{{1,3}})
    |(?P<sign>\S(?:[\p{{M}}\p{{EMod}}]|\u200d\S?)*)
    """,
    regex.VERBOSE | regex.VERSION1,
)
# One asterisk may be a product's: what it stresses is a word at least.
_EMPHASIS = regex.compile(
    r"(?<![\w*)\]])(\*\*\*?|\*(?=\p{L}{2}))(?=[^\s*])[^*]{1,200}(?<=[^\s*])\1(?![\w*(\[])"
)

_KINDS = {"word": WORD, "number": NUMBER, "ellipsis": MARK}
_OPENING = regex.compile(r"""(?<![^\s(\[{=,:])["'](?=\S)""")


def _units(text: str) -> list[Unit]:
    stressed = _EMPHASIS.finditer(text)
    emphasis = {i for m in stressed for i in (m.start(), m.end() - len(m[1]))}
    units: list[Unit] = []
    is_open = {'"': False, "'": False}
    for match in _UNIT.finditer(text):
        name, key = match.lastgroup, match[0]
        start, end = match.span()
        kind = _KINDS.get(name, SIGN)
        if name == "emphasis":
            kind = MARK if start in emphasis else SIGN
        elif name == "quotation":
            # After a number or a lone letter it is a prime, as in 6" and f', unless it closes.
            last = units[-1] if units and units[-1].end == start else None
            prime = last is not None and (
                last.kind == NUMBER
                or (last.kind == WORD and len(last.key) == 1)
                or (last.kind == SIGN and last.key == key)
            )
            kind = SIGN if prime and not is_open[key] else MARK
            is_open[key] = _OPENING.search(text, max(0, start - 1), start + 2) is not None
        elif name == "dash":
            # "--" is a dash among words, but -v and --v are two options, 3-2 and 3--2 two numbers.
            if not (text[max(0, start - 1) : start].isalnum() or text[end : end + 1].isalnum()):
                key = "-"
            if _is_punctuation(text, start, end):
                kind = MARK
        units.append(Unit(key, kind, start, end))
    return units


def _is_punctuation(text: str, start: int, end: int) -> bool:
    """Whether a dash is no minus: it stands between words, not between letters or numbers.

    One of the words, or if there is space between, both are longer than a letter; and it is not the
    beginning of a word, as that of an option.
    """
    left, right = text[max(0, start - 3) : start], text[end : end + 3]
    apart = left[-1:] == " " or right[:1] == " "
    if left[-1:] == " " and right[:1] != " ":
        return False
    left, right = left.rstrip()[-2:], right.lstrip()[:2]
    if not (left[-1:].isalpha() and right[:1].isalpha()):
        return False
    longer = len(left) == 2 and left.isalpha(), len(right) == 2 and right.isalpha()
    return all(longer) if apart else any(longer)


# What prose has no use for: calls, operators of two characters, assignments, LaTeX, tags, and
# lines that begin as statements do.
_CODE = regex.compile(
    r"""
    [;{}]\s*$
    | \b[A-Za-z_]\w*\((?!(?:e?s|ies)\))
    | \b[A-Za-z_]\w*\[[\w:"'-]
    | [=!<>]=|&&|\|\||->|=>|::|(?:\+|-|\*|/|%|:)=|\+\+|<<|>>
    | \b[A-Za-z_][\w.]{0,60}+\s*+=\s*+[\w"'\[({+-]
    | \\[A-Za-z]+ | </?[A-Za-z]\w{0,30}+[^<>]{0,100}>
    | ^\s*+(?:(?:def|class)\s+\w+\s*[(:]
        | (?:import\s+[\w.]+|from\s+[\w.]+\s+import\b)
        | (?:if|elif|for|while|with|try|except|else|finally|switch|case)\b.*:\s*$
        | (?:return|raise|yield|assert|let|const|var|void|print|echo|\#include|\#define)\s
            (?!.*[.?!]\s*$)
        | (?i:select\b.*\bfrom\b))
    """,
    regex.VERBOSE,
)
_SENTENCE = regex.compile(r"[^\n]+?(?:[.!?](?=\s)|(?=\n)|$)")
_FENCED = regex.compile(r"```.*?(?:```|\Z)", regex.DOTALL)
_INLINE = regex.compile(r"(?<!`)`[^`\n]+`(?!`)")


def _code(text: str) -> Code:
    inline = [match.span() for match in _INLINE.finditer(text)]
    prose = _INLINE.sub(lambda match: " " * len(match[0]), text)
    found = [match.span() for match in _FENCED.finditer(text)]
    found += [match.span() for match in _SENTENCE.finditer(prose) if _CODE.search(match[0])]
    blocks: list[Place] = []
    for start, end in sorted(found):
        if blocks and start <= blocks[-1][1]:
            blocks[-1] = blocks[-1][0], max(end, blocks[-1][1])
        else:
            blocks.append((start, end))
    return Code(blocks, inline)
