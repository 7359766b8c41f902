"""What the reasoning-gym puzzles have in common: settings, splits, prompts and scoring.

The puzzles are drawn as in the code of RLTF (arXiv 2602.02482): one stream of 20,000 from one seed,
of which the last ones are for testing. So with the paper's settings and 200 test examples these are
the puzzles of the published results. Unlike there, a puzzle of the test split is never trained on:
where the stream repeats one (seven in a hundred binary matrices), training sees another instead.
"""

import abc
import dataclasses
import functools
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Generic, TypeVar

from t2g_jax.tasks.base import CritiqueLevel, Example, Floor, Judge, Score, Split, TaskError
from t2g_jax.tasks.puzzles.boxed import find_boxed

STREAM_SIZE = 20_000
ATTEMPTS = 1_000

Ticket = TypeVar("Ticket")
"""What the stream holds for a puzzle: all that must be drawn in order, and cheap to draw."""
Puzzle = TypeVar("Puzzle")


class ReasoningTask(abc.ABC, Generic[Ticket, Puzzle]):
    """A puzzle of reasoning-gym as a `Task`. See `make_task` for the arguments."""

    name: str
    system: str = ""
    gym_config: ClassVar[type]
    """The dataclass of the dataset's settings."""
    largest: ClassVar[dict[str, int]]
    """Settings beyond which a puzzle takes minutes and gigabytes, or never ends."""
    presets: ClassVar[dict[str, dict[str, float]]]
    default_mistakes: ClassVar[dict[str, float]]

    def __init__(
        self,
        *,
        preset: str = "paper",
        settings: Mapping[str, float] | None = None,
        seed: int = 0,
        train_size: int = 19_800,
        test_size: int = 200,
        prompt_style: str = "full",
        mistakes: Mapping[str, float] | None = None,
    ) -> None:
        self._known("preset", [preset], self.presets)
        self._known("prompt_style", [prompt_style], ("full", "short"))
        self._known("mistakes", mistakes or (), self.default_mistakes)
        if train_size < 1 or not 1 <= test_size < STREAM_SIZE:
            raise TaskError(
                f"{self.name}: train_size ({train_size}) and test_size ({test_size}) must be at "
                f"least 1, and test_size below {STREAM_SIZE}"
            )
        if seed < 0:  # `random` would take its absolute value
            raise TaskError(f"{self.name}: seed ({seed}) must be at least 0")
        self.settings = self._checked_settings({**self.presets[preset], **(settings or {})})
        self.seed = seed
        self.train_size = train_size
        self.test_size = test_size
        self.prompt_style = prompt_style
        self.mistakes = dict(mistakes or self.default_mistakes)
        if min(self.mistakes.values()) < 0 or not sum(self.mistakes.values()) > 0:
            raise TaskError(f"{self.name}: mistakes must be at least 0, and one above 0")

    # --- What each puzzle says of itself --------------------------------------------------------

    @abc.abstractmethod
    def draw(self, rng: random.Random) -> Ticket:
        """What comes next in the stream."""

    @abc.abstractmethod
    def build(self, ticket: Ticket) -> Puzzle:
        """The puzzle itself; never draws from the stream."""

    @abc.abstractmethod
    def content(self, puzzle: Puzzle) -> str:
        """What makes two puzzles the same problem."""

    @abc.abstractmethod
    def example(self, puzzle: Puzzle, id: str) -> Example:
        """The puzzle as a prompt, with what scoring needs."""

    @abc.abstractmethod
    def is_correct(self, example: Example, answer: str) -> bool:
        """Whether the text inside the box solves the puzzle. Never raises."""

    @abc.abstractmethod
    def floor(self, examples: Sequence[Example]) -> Floor: ...

    @abc.abstractmethod
    def solve(self, example: Example) -> str: ...

    @abc.abstractmethod
    def demonstrate(self, example: Example, rng: random.Random) -> str: ...

    @abc.abstractmethod
    def judge(self, level: CritiqueLevel) -> Judge: ...

    # --- What all puzzles share -----------------------------------------------------------------

    def split(self, split: Split) -> Sequence[Example]:
        """The test split is a list; training examples are made when they are asked for.

        Raises:
          TaskError: there are too few different puzzles to keep the splits apart.
        """
        self._known("split", [split], ("train", "test"))
        return self._test if split == "test" else self._train

    def extract_answer(self, completion: str) -> str | None:
        r"""What the last `\boxed{...}` holds, without needless blanks; None without a box."""
        box = find_boxed(completion)
        if box is None:
            return None
        lines = (" ".join(line.split()) for line in box.content.splitlines())
        return "\n".join(line for line in lines if line)

    def score(self, example: Example, completion: str) -> Score:
        """1 if right, 0 if wrong, −0.1 if wrong and without a box."""
        answer = self.extract_answer(completion)
        correct = answer is not None and self.is_correct(example, answer)
        return Score.of(correct=correct, formatted=answer is not None)

    def pick_mistake(self, rng: random.Random) -> str:
        """A kind of mistake, as often as `mistakes` says."""
        return pick(self.mistakes, rng)

    @functools.cached_property
    def _stream(self) -> list[Ticket]:
        rng = random.Random(self.seed)
        return [self.draw(rng) for _ in range(STREAM_SIZE)]

    @functools.cached_property
    def _test_puzzles(self) -> list[Puzzle]:
        return [self.build(ticket) for ticket in self._stream[-self.test_size :]]

    @functools.cached_property
    def _test(self) -> list[Example]:
        first = STREAM_SIZE - self.test_size
        return [
            self.example(puzzle, f"{self.name}-{self.seed}-test-{first + i}")
            for i, puzzle in enumerate(self._test_puzzles)
        ]

    @functools.cached_property
    def _test_contents(self) -> frozenset[str]:
        return frozenset(self.content(puzzle) for puzzle in self._test_puzzles)

    @functools.cached_property
    def _train(self) -> "TrainSplit":
        self._replacement(-1)  # fails now, and not in the middle of training
        return TrainSplit(self.train_size, self._train_example)

    def _train_example(self, index: int) -> Example:
        if index < STREAM_SIZE - self.test_size:
            puzzle = self.build(self._stream[index])
            if self.content(puzzle) in self._test_contents:
                puzzle = self._replacement(index)
        else:
            puzzle = self._replacement(index)
        return self.example(puzzle, f"{self.name}-{self.seed}-train-{index}")

    def _replacement(self, index: int) -> Puzzle:
        """A puzzle that is not in the test split, drawn apart from the stream."""
        rng = random.Random(f"{self.name}/{self.seed}/{index}")  # text seeds ignore PYTHONHASHSEED
        for _ in range(ATTEMPTS):
            puzzle = self.build(self.draw(rng))
            if self.content(puzzle) not in self._test_contents:
                return puzzle
        raise TaskError(
            f"{self.name}: no training puzzle in {ATTEMPTS} draws that is not among the "
            f"{len(self._test_contents)} different test puzzles; make the puzzles larger "
            f"(settings: {self.settings}) or test_size ({self.test_size}) smaller"
        )

    def _known(self, what: str, given: Any, known: Any, *, of: str = "") -> None:
        for name in given:
            if name not in known:
                raise TaskError(
                    f"{of or self.name}: unknown {what} {name!r}; known: {', '.join(known)}"
                )

    def _checked_settings(self, settings: dict[str, Any]) -> dict[str, Any]:
        defaults: dict[str, Any] = {
            field.name: field.default
            for field in dataclasses.fields(self.gym_config)
            if field.name not in ("size", "seed")
        }
        self._known("setting", settings, defaults, of=self._settings)
        for key, value in settings.items():
            whole = isinstance(defaults[key], int)
            if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
                kind = "a whole number" if whole else "a number"
                raise TaskError(f"{self._settings}: setting `{key}` is {value!r}; must be {kind}")
            if value > (largest := self.largest.get(key, math.inf)):
                raise TaskError(
                    f"{self._settings}: setting `{key}` is {value}; must be at most {largest}"
                )
        settings = {**defaults, **settings}
        try:
            self.gym_config(**settings).validate()
        except AssertionError as error:
            raise TaskError(f"{self._settings}: {settings}: {error}") from error
        return settings

    @property
    def _settings(self) -> str:
        """What is wrong, as a config names it."""
        return f"task.settings of {self.name}"


class TrainSplit(Sequence[Example]):
    """Examples that are made when they are asked for, always the same at the same index."""

    def __init__(self, size: int, make: Any) -> None:
        self._size = size
        self._make = make

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[Example]:
        return (self._make(i) for i in range(self._size))

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self._make(i) for i in range(self._size)[index]]
        return self._make(range(self._size)[index])


def pick(weights: Mapping[str, float], rng: random.Random) -> str:
    """A key, with probability proportional to its weight."""
    threshold = rng.random() * sum(weights.values())
    for key, weight in weights.items():
        threshold -= weight
        if threshold < 0:
            return key
    return max(weights, key=weights.__getitem__)  # rounding
