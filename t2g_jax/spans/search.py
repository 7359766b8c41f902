"""Where in a text a quote may have been taken from, in a bounded number of steps.

A passage fits if its units are those of the quote, one by one, each spelled as it may be
(`sameness`). So what a search costs is known beforehand: it begins at the rarest unit of the quote
and drops, unit by unit, the places where the next does not fit.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from functools import cached_property
from itertools import pairwise

import numpy as np
from rapidfuzz import fuzz

from t2g_jax.spans import sameness, words
from t2g_jax.spans.reading import WORD, Place, Reading, Unit

STEPS = 1_500_000
"""Most steps for a text and all its quotes together; a step takes about a microsecond."""

STEPS_EACH = 240_000
"""Most steps for one quote, besides those that its text takes to be read."""

# Units of a quote whose places vote for where it is, the rarest first, and votes of each.
_VOTERS, _VOTES = 100, 200


class TooLong(Exception):
    """A search takes more steps than it may."""


class Budget:
    """Steps that are left. Counted, not timed: what is found is the same on every machine."""

    def __init__(self) -> None:
        self._left = STEPS
        self._here = 0

    def begin(self) -> None:
        """Begins with another quote."""
        self._here = min(STEPS_EACH, self._left)

    def spend(self, steps: int) -> None:
        """Takes steps before they are gone.

        Raises:
          TooLong: there are not so many left; then there are none.
        """
        fits = steps <= self._here
        self.charge(steps)
        if not fits:
            raise TooLong

    def charge(self, steps: int) -> None:
        """Counts steps that were gone anyhow."""
        spent = min(steps, self._here)
        self._here -= spent
        self._left -= spent

    def share(self, steps: int) -> None:
        """Counts steps that were gone for all quotes, not for the one that happens to be first."""
        self._left -= min(steps, self._left)
        self._here = min(self._here, self._left)

    @property
    def spent(self) -> int:
        """Steps that are gone."""
        return STEPS - self._left

    @property
    def over(self) -> bool:
        """Whether the quotes together have no steps left."""
        return self._left == 0


class Search:
    """A text that quotes are searched for in."""

    def __init__(self, text: Reading, budget: Budget):
        self.text = text
        self.budget = budget

    def passages(self, quote: Reading, units: Sequence[Unit]) -> list[Place]:
        """Every passage, as units of the text, that can only mean the same as units of a quote.

        Raises:
          TooLong: it takes too many steps.
        """
        fitting = [self._fitting(unit) for unit in units]
        if not units or not all(fitting):
            return []
        count = [sum(len(self.text.positions[key]) for key in keys) for keys in fitting]
        order = sorted(range(len(units)), key=count.__getitem__)
        first = order[0]
        self.budget.spend(count[first])
        starts = [at - first for key in fitting[first] for at in self.text.positions[key]]
        last = len(self.text.units) - len(units)
        places = np.array(sorted(at for at in starts if 0 <= at <= last), int)
        for i in order[1:]:
            if not len(places):
                return []
            self.budget.spend(len(places) // 50 + len(self._keys) // 1000 + 5)
            fits = np.zeros(len(self._keys), bool)
            fits[[self._keys[key] for key in fitting[i]]] = True
            places = places[fits[self._ids[places + i]]]
        self.budget.spend(5 * len(places) * len(units))
        found = [(at, at + len(units)) for at in places.tolist()]
        return [p for p in found if sameness.same(quote, units, self.text, self._units(p))]

    def nearest(self, units: Sequence[Unit]) -> Place | None:
        """The passage with most of these units at their distance from each other, if any.

        Raises:
          TooLong: it takes too many steps.
        """
        where = self.text.positions
        known = [i for i, unit in enumerate(units) if unit.key in where]
        known = sorted(known, key=lambda i: len(where[units[i].key]))[:_VOTERS]
        votes: Counter[int] = Counter()
        for i in known:
            places = where[units[i].key][:_VOTES]
            self.budget.spend(2 * len(places))
            votes.update(place - i for place in places)
        if not votes:
            return None
        near = range(-2, 3)
        best = max(votes, key=lambda at: (sum(votes.get(at + i, 0) for i in near), votes[at], -at))
        size = sum(len(unit.key) + 1 for unit in units)
        near = near if size < 1000 else range(1)
        self.budget.spend(2 * len(near) * (10 + size // 4 + size * size // 30_000))
        end = len(self.text.units)
        starts = {min(max(best + i, 0), end - 1) for i in near}
        ends = {min(max(best + len(units) + i, 1), end) for i in near}
        like = lambda place: (self.likeness(units, place), place)  # noqa: E731
        start, _ = max(((at, max(max(ends), at + 1)) for at in starts), key=like)
        return max(((start, at) for at in ends if start < at), key=like, default=None)

    def likeness(self, units: Sequence[Unit], place: Place) -> float:
        """How alike the units of a quote and of a passage are, by letters: 0 to 100."""
        both = units, self._units(place)
        return fuzz.ratio(*(" ".join(unit.key for unit in side) for side in both))

    def respaced(self, quote: Reading, units: Sequence[Unit]) -> list[Unit]:
        """Units of a quote, words joined or parted as in the text, where that has them only so."""
        known = self.text.positions
        found: list[Unit] = []
        for unit in units:
            last = found[-1] if found else unit
            joined = last.key + unit.key
            apart = last.end < unit.start and not (last.key in known and unit.key in known)
            if apart and joined in known and _may_join(quote, last, unit):
                found[-1] = Unit(joined, WORD, last.start, unit.end)
            elif unit.key not in known and unit.key in self._joined:
                left, right = self._joined[unit.key]
                middle = unit.start + len(left)
                found.append(Unit(left, WORD, unit.start, middle))
                found.append(Unit(right, WORD, middle, unit.end))
            else:
                found.append(unit)
        return found

    def _units(self, place: Place) -> list[Unit]:
        return self.text.units[slice(*place)]

    def _fitting(self, unit: Unit) -> set[str]:
        """The spellings of a unit of a quote in the text."""
        found = {unit.key} if unit.key in self.text.positions else set()
        if unit.kind == WORD and sameness.is_plain(unit.key):
            bare = unit.key.removesuffix("'s")
            forms = {key for stem in words.stems(bare) for key in self._by_stem.get(stem, ())}
            self.budget.spend(20 * len(forms))
            found.update(key for key in forms if sameness.may_be(unit, key))
            if not found and len(bare) >= words.SHORTEST:
                near = self._by_ends.get((bare[0], bare[-1]), ())
                self.budget.spend(len(near))
                found.update(key for key, other in near if words.is_misspelling(bare, other))
        return found

    @cached_property
    def _keys(self) -> dict[str, int]:
        return {key: i for i, key in enumerate(self.text.positions)}

    @cached_property
    def _ids(self) -> np.ndarray:
        """The number of each unit's key."""
        ids = np.zeros(len(self.text.units), np.int32)
        for key, i in self._keys.items():
            ids[self.text.positions[key]] = i
        return ids

    @cached_property
    def _plain(self) -> list[str]:
        return [key for key in self._keys if sameness.is_plain(key)]

    @cached_property
    def _by_stem(self) -> dict[str, list[str]]:
        found = defaultdict(list)
        for key in self._plain:
            for stem in words.stems(key.removesuffix("'s")):
                found[stem].append(key)
        return found

    @cached_property
    def _by_ends(self) -> dict[tuple[str, str], list[tuple[str, str]]]:
        found = defaultdict(list)
        for key in self._plain:
            bare = key.removesuffix("'s")
            if len(bare) >= words.SHORTEST:
                found[bare[0], bare[-1]].append((key, bare))
        return found

    @cached_property
    def _joined(self) -> dict[str, tuple[str, str]]:
        """Words that stand side by side and may be written as one."""
        return {
            a.key + b.key: (a.key, b.key)
            for a, b in pairwise(self.text.units)
            if a.end < b.start and _may_join(self.text, a, b)
        }


def _may_join(text: Reading, a: Unit, b: Unit) -> bool:
    """Whether two words of a text mean the same written as one."""
    hyphen = text.plain.text[a.end : b.start] == "-"
    return words.may_join(a.key, b.key, hyphen=hyphen)
