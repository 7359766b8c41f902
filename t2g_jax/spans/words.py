"""Whether two English words are one: another form of it, or a misspelling.

Likeness says little of that: "legal" is like "illegal", "mediation" like "meditation". So a word
that is in the dictionary is a misspelling of no other, and a form must be one by the rules of
spelling. In doubt, two words are two.
"""

import gzip
import json
import re
from functools import cache, lru_cache
from importlib import resources

from rapidfuzz.distance import OSA

SHORTEST = 6
"""Letters of the shortest word that may be misspelled."""


def is_form(a: str, b: str) -> bool:
    """Whether two lower-case words are one with other endings: none, -s, -ed or -ing.

    Not -ed and -ing: "confused" and "confusing", "was killed" and "was killing" are not the same.

    >>> from t2g_jax.spans import words
    >>> words.is_form("walk", "walking"), words.is_form("confused", "confusing")
    (True, False)
    """
    if {a, b} & _FIXED or frozenset((a, b)) in _UNLIKE:
        return False
    left, right = _stems(a), _stems(b)
    return any(
        {left[stem], right[stem]} != {"ed", "ing"} and stem in _dictionary()
        for stem in left.keys() & right.keys()
    )


def stems(word: str) -> tuple[str, ...]:
    """What may be left of a lower-case word without its ending, the word itself among them.

    >>> from t2g_jax.spans import words
    >>> "walk" in words.stems("walking")
    True
    """
    return tuple(_stems(word))


def is_misspelling(a: str, b: str) -> bool:
    """Whether one of two lower-case words is a word and the other it, misspelled.

    A letter within a long word is wrong, missing, doubled or swapped with the next; from 11 letters
    on, two of them.

    >>> from t2g_jax.spans import words
    >>> words.is_misspelling("definitely", "definitly"), words.is_misspelling("legal", "illegal")
    (True, False)
    """
    if min(len(a), len(b)) < SHORTEST or a[0] != b[0] or a[-1] != b[-1]:
        return False
    allowed = 1 if max(len(a), len(b)) < 11 else 2
    if OSA.distance(a, b, score_cutoff=allowed) > allowed or {a, b} & (_FIXED - _HARMLESS):
        return False
    return (a in _dictionary()) != (b in _dictionary()) and not _are_opposite(a, b)


def may_join(a: str, b: str, *, hyphen: bool = False) -> bool:
    """Whether two words mean the same written as one: data base, but not now here.

    With a hyphen between, so do the parts of a word: co-operate, but not re-cover.

    >>> from t2g_jax.spans import words
    >>> words.may_join("data", "base"), words.may_join("now", "here")
    (True, False)
    """
    if not all(word.isascii() and word.isalpha() for word in (a, b)):
        return False
    if hyphen and a not in _PARTED and a + b in _dictionary():
        return True
    return min(len(a), len(b)) > 2 and not {a, b} & _FIXED and a not in _PARTS


@lru_cache(maxsize=1 << 16)
def _stems(word: str) -> dict[str, str]:
    found = {word: ""}
    if re.search("[^su]s$", word) and not word.endswith("is"):
        found[word[:-1]] = "s"
        if word.endswith("ies") and len(word) > 4:
            found[word[:-3] + "y"] = "s"
        elif re.search("(?:s|x|z|ch|sh|o)es$", word):
            found[word[:-2]] = "s"
    elif word.endswith("uses"):
        found[word[:-1]] = "s"
    for ending in ("ed", "ing"):
        if word.endswith(ending):
            bare = word[: -len(ending)]
            found[bare + "e"] = ending
            if not re.fullmatch("[^aeiou]*[aeiouy][^aeiouywx]", bare):  # "hoped" is not of "hop"
                found[bare] = ending
            if re.search(r"([bdfglmnprtvz])\1$", bare):
                found[bare[:-1]] = ending
            if ending == "ed" and bare.endswith("i"):
                found[bare[:-1] + "y"] = ending
    return {stem: ending for stem, ending in found.items() if len(stem) > 2}


def _are_opposite(a: str, b: str) -> bool:
    """Whether a prefix or a chemical ending tells two words apart."""
    for one, other in _PREFIXES:
        if (a.startswith(one) and b.startswith(other)) or (
            a.startswith(other) and b.startswith(one)
        ):
            return True
    ends = _CHEMICAL.search(a), _CHEMICAL.search(b)
    return None not in ends and ends[0][0] != ends[1][0]


@cache
def _dictionary() -> frozenset[str]:
    """160,000 English words and names with their forms, lower-case."""
    file = resources.files("spellchecker") / "resources" / "en.json.gz"
    return frozenset(json.loads(gzip.decompress(file.read_bytes())))


# Words that say how things are related, how many they are, or that they are not: no form of one is
# another ("on", "one", "ones").
_FIXED = frozenset(
    """
    a all along although am an and another any anybody anyone anything are around as at be because
    been before behind being below beneath beside besides between beyond both but by can cannot
    could did do does doing done down during each either else enough even ever every everybody
    everyone everything except few fewer for from further had has have having he hence her hers
    herself him himself his how however if in inside instead into is it its itself just least less
    like likely likes many may me might mine more most much must my myself neither never no nobody
    none nor not nothing now of off often on once one ones only onto or other others ought our ours
    ourselves out outside over own past per perhaps rather same several shall she should since so
    some somebody someone something sometime sometimes still such than that the their theirs them
    themselves then there these they this those though through thus till to too toward towards under
    unless until up upon us use used very was we were what whatever when where whereas whether which
    while who whole whom whose why will with within without would yet you your yours yourself

    zero two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen
    sixteen seventeen eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety
    hundred hundreds thousand thousands million millions billion billions trillion trillions dozen
    dozens half halves quarter quarters double single triple first second seconds third thirds
    fourth fifth sixth seventh eighth ninth tenth percent percents percentage

    arms bear bound ceiling close closed customs damages evening fell felled found founded goods
    ground grounded grounds hundredth laid lay left lie lied looks manners mean meaning means
    morning news outing right rights saw sawed short shorts spirits united units wound wounded
    """.split()
)
# Of these, those that turn no meaning around: misspelled, they are still themselves.
_HARMLESS = frozenset("although because herself himself ourselves themselves".split())
_UNLIKE = frozenset(
    frozenset(pair.split("/"))
    for pair in """
    arm/arms custom/customs damage/damages ceil/ceiling good/goods look/looks manner/manners
    new/news out/outing spirit/spirits unit/united
    build/building meet/meeting end/ending see/seeing seed/sees bore/boring interest/interesting
    miss/missing lack/lacking follow/following exceed/exceeding accord/according
    """.split()
)
_PREFIXES = [
    tuple(pair.split("/"))
    for pair in """
    ante/anti de/dis endo/exo hetero/homo hyper/hypo inter/intra macro/micro maxi/mini mono/multi
    per/pre per/pro post/pre pre/pro sub/super un/uni
    """.split()
]
_PARTS = frozenset("anti counter dis mis multi non per post pre pro pseudo semi sub super".split())
# Before a hyphen these make another word than without: re-sign, un-ionized, not-able.
_PARTED = frozenset("no not re un".split())
_CHEMICAL = re.compile("(?:ane|ene|yne|ine|one|ol|al|ide|ite|ate|ic|ous)s?$")
