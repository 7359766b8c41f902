"""Knights and knaves: who always tells the truth and who always lies, from what they say."""

import itertools
import json
import random
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from t2g_jax.tasks.base import Critique, CritiqueLevel, Example, Floor, Judge, JudgeError, TaskError
from t2g_jax.tasks.puzzles.boxed import boxed, scan
from t2g_jax.tasks.puzzles.gym import gym_module
from t2g_jax.tasks.puzzles.quoting import phrase, quote_at, read_box
from t2g_jax.tasks.puzzles.reasoning import ReasoningTask

_GYM = gym_module("logic.knights_knaves")
_Config: Any = _GYM.KnightsKnavesConfig
Statement = Sequence[Any]
"""("telling-truth" | "lying", person), or ("not" | "and" | "or" | "->" | "<=>", statement, ...)."""
Roles = tuple[bool, ...]
"""For each person, in the order they are introduced: do they tell the truth?"""


@dataclass(frozen=True)
class Island:
    """People, what they are called who tell the truth and who lie ("a hero", "a villain"), and
    what each of them says."""

    names: tuple[str, ...]
    role_names: tuple[str, str]
    statements: tuple[Statement, ...]
    solution: Roles
    question: str


@dataclass
class KnightsKnavesSettings(_Config):
    """reasoning-gym's settings, and one more.

    one_cast: 1 gives the people of all puzzles the same names and kinds, so that a small model need
    not first learn to copy names.
    """

    one_cast: int = 0

    def validate(self) -> None:
        super().validate()
        # reasoning-gym would look for a second person forever.
        assert self.n_people > 1 or self.depth_constraint < 2, (
            "one person alone can say nothing about others: raise n_people to 2 or more"
        )


class KnightsKnaves(ReasoningTask[tuple[int, int], Island]):
    """Knights and knaves of reasoning-gym, each with exactly one solution."""

    name = "knights_knaves"
    gym_config = KnightsKnavesSettings
    largest = {"n_people": 12, "depth_constraint": 8, "width_constraint": 8}
    presets = {
        "paper": {"n_people": 5, "depth_constraint": 3, "width_constraint": 3},
        "tiny": {"n_people": 3, "depth_constraint": 2, "width_constraint": 2, "one_cast": 1},
    }
    default_mistakes = {"believe": 0.2, "guess": 0.3, "half": 0.5}
    """believe: takes everyone at their word; guess: reads nothing; half: makes sure of the first
    half of the statements only."""

    def draw(self, rng: random.Random) -> tuple[int, int]:
        return rng.randint(0, 2**31), rng.randint(0, 2**31)

    def build(self, ticket: tuple[int, int]) -> Island:
        statements_seed, words_seed = ticket
        sampler = _GYM.KKProblemSampler(
            statements_seed,
            n_people=self.settings["n_people"],
            depth_constraint=self.settings["depth_constraint"],
            width_constraint=self.settings["width_constraint"],
        )
        problems = sampler.sample_valid_problems(1)
        if not problems:
            raise TaskError(
                f"{self.name}: found no puzzle with exactly one solution; raise n_people or "
                f"depth_constraint (settings: {self.settings})"
            )
        words_seed = 0 if self.settings["one_cast"] else words_seed
        words = _GYM.KKProblemFormatter(words_seed, problems[0]).format_problem()
        role_names = words["knight_knave"]
        return Island(
            names=tuple(map(str, words["names"])),
            role_names=(str(role_names["a_knight"]), str(role_names["a_knave"])),
            statements=problems[0]["statements"],
            solution=problems[0]["solution"],
            question=words["quiz"],
        )

    def content(self, puzzle: Island) -> str:
        return json.dumps(puzzle.statements)  # other names do not make it another problem

    def example(self, puzzle: Island, id: str) -> Example:
        if self.prompt_style == "full":
            prompt = f"{puzzle.question}\n\nPut your final answer in \\boxed{{}}."
        else:
            prompt = _short_question(puzzle)
        metadata = {
            "names": list(puzzle.names),
            "role_names": list(puzzle.role_names),
            "statements": json.loads(self.content(puzzle)),
            "solution": list(puzzle.solution),
        }
        return Example(id, prompt, to_text(metadata, puzzle.solution), metadata)

    def is_correct(self, example: Example, answer: str) -> bool:
        claims = parse(answer, example.metadata)
        return claims is not None and roles(claims, example.metadata) == [
            {role} for role in example.metadata["solution"]
        ]

    def floor(self, examples: Sequence[Example]) -> Floor:
        """The most common roles, by the order in which the people are introduced."""
        if not examples:
            raise ValueError("floor: needs at least one example")
        counts = Counter(tuple(e.metadata["solution"]) for e in examples)
        best, count = counts.most_common(1)[0]
        words = ", ".join("knight" if role else "knave" for role in best)
        return Floor(count / len(examples), f"always says {words}, in the order of the people")

    def solve(self, example: Example) -> str:
        return boxed(example.answer)

    def demonstrate(self, example: Example, rng: random.Random) -> str:
        people = len(example.metadata["names"])
        everything = list(itertools.product([True, False], repeat=people))
        match self.pick_mistake(rng):
            case "believe":
                attempts = everything[:1]
            case "guess":
                attempts = everything
            case _:
                read = (people + 1) // 2
                attempts = [
                    attempt
                    for attempt in everything
                    if all(holds(example.metadata, attempt, person) for person in range(read))
                ]
        attempt = attempts[int(rng.random() * len(attempts))]
        return boxed(to_text(example.metadata, attempt))

    def judge(self, level: CritiqueLevel) -> Judge:
        return KnightsKnavesJudge(level)


# --- Logic ---------------------------------------------------------------------------------------


def says_true(metadata: Mapping[str, Any], attempt: Sequence[bool], person: int) -> bool:
    """Whether what this person says is true if the roles are those of `attempt`."""
    statement = metadata["statements"][person]
    return bool(_GYM.KnightsKnavesDataset.test_satisfiability(statement, attempt))


def holds(metadata: Mapping[str, Any], attempt: Sequence[bool], person: int) -> bool:
    """Whether this person may say what they say if the roles are those of `attempt`."""
    return says_true(metadata, attempt, person) == attempt[person]


# --- Text ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Claim:
    """ "Emma is a knight", and where it stands in the text."""

    person: int
    role: bool
    start: int
    end: int


def to_text(metadata: Mapping[str, Any], attempt: Sequence[bool]) -> str:
    """ "Emma is a knight, Liam is a knave, and Olivia is a knave", as the question asks for it."""
    knight, knave = metadata["role_names"]
    claims = [
        f"{name} is {knight if role else knave}"
        for name, role in zip(metadata["names"], attempt, strict=True)
    ]
    return ", and ".join((", ".join(claims[:-1]), claims[-1])) if len(claims) > 1 else claims[0]


def parse(text: str, metadata: Mapping[str, Any]) -> list[Claim] | None:
    """The claims in `text`; None if it holds anything else, or nothing.

    Order, case, articles, "and" and punctuation are free. reasoning-gym's own scorer takes
    "it is false that Emma is a knight" for a claim, and "Emma is a knight knave" too.
    """
    names = [name.lower() for name in metadata["names"]]
    role_words = [role.split()[-1].lower() for role in metadata["role_names"]]
    # (?ai: case is free for ASCII letters alone, or "ſ" would pass for "s".
    pattern = re.compile(
        rf"(?P<name>(?ai:{'|'.join(map(re.escape, names))}))"
        r"(?:\s+(?ai:is)\s+|\s*[:=]\s*|\s+)(?:(?ai:an?)\s+)?"
        rf"(?P<role>(?ai:{'|'.join(map(re.escape, role_words))}))\b"
        r"|(?P<between>[\s,;.&{}*]|(?ai:and)\b|\\text\b|\\\\)"
    )
    claims = []
    for part in scan(text, pattern) or ():
        if part["name"]:
            person = names.index(part["name"].lower())
            role = part["role"].lower() == role_words[0]
            claims.append(Claim(person, role, part.start(), part.end()))
    return claims or None


def roles(claims: Sequence[Claim], metadata: Mapping[str, Any]) -> list[set[bool]]:
    """For each person, the roles that they are said to have: one, none, or both."""
    return [
        {claim.role for claim in claims if claim.person == person}
        for person in range(len(metadata["names"]))
    ]


def _short_question(puzzle: Island) -> str:
    knight, knave = puzzle.role_names
    lines = [
        f"{name}: {_say(statement, puzzle)}."
        for name, statement in zip(puzzle.names, puzzle.statements, strict=True)
    ]
    rule = f"{knight} tells the truth, {knave} lies."
    return "\n".join((rule.capitalize(), *lines, "Who is what? Answer in \\boxed{}."))


def _say(statement: Statement, puzzle: Island, inner: bool = False) -> str:
    """A statement in words, with parentheses around all that is not simple."""
    operator, *parts = statement
    if operator in ("telling-truth", "lying"):
        return f"{puzzle.names[parts[0]]} is {puzzle.role_names[operator == 'lying']}"
    said = [_say(part, puzzle, inner=True) for part in parts]
    match operator:
        case "not":
            text = f"not {said[0]}"
        case "->":
            text = f"if {said[0]} then {said[1]}"
        case "<=>":
            text = f"{said[0]} if and only if {said[1]}"
        case _:
            text = f" {operator} ".join(said)
    return f"({text})" if inner else text


# --- The judge --------------------------------------------------------------------------------


class KnightsKnavesJudge:
    """Names the people whose words contradict the answer, and the first whose role is wrong.

    Its quotes are the claims ("Emma is a knight"): good where the role is right, poor where not.

    Args:
      level: how much the text says; the quotes are the same at every level.
      max_listed: errors that the text lists one by one at CritiqueLevel.WHERE.
    """

    name = "knights_knaves"

    def __init__(self, level: CritiqueLevel, *, max_listed: int = 8) -> None:
        self.level = level
        self.max_listed = max_listed

    def critique(self, example: Example, completion: str) -> Critique:
        """Raises JudgeError if the example does not come with its statements and solution."""
        puzzle = example.metadata
        for key in ("names", "role_names", "statements", "solution"):
            if key not in puzzle:
                raise JudgeError(
                    "incomplete example", f"{example.id}: `{key}` is missing from its metadata"
                )
        read = read_box(
            completion, lambda text: parse(text, puzzle), problem="does not say who is what"
        )
        if isinstance(read, Critique):
            return read
        box, claims = read
        said = roles(claims, puzzle)
        correct = said == [{role} for role in puzzle["solution"]]
        text = "Correct." if correct else self._describe(puzzle, said)
        quotes = [
            quote_at(completion, box.start + claim.start, box.start + claim.end, reward)
            for claim, reward in zip(claims, _rewards(claims, puzzle["solution"]), strict=True)
        ]
        if not all(said):  # what is poor about people left out is to have stopped before them
            quotes.append(quote_at(completion, box.end, box.end + 1, -1.0))
        return Critique(text, tuple(quotes))

    def _describe(self, puzzle: Mapping[str, Any], said: Sequence[set[bool]]) -> str:
        names = puzzle["names"]
        missing = [name for name, role in zip(names, said, strict=True) if not role]
        double = [name for name, role in zip(names, said, strict=True) if len(role) > 1]
        start = ""
        if missing or double:
            what = [f"{len(missing)} without a role."] * bool(missing)
            what += [f"{len(double)} with two roles."] * bool(double)
            where = [f"{name} has no role." for name in missing]
            where += [f"{name} has two roles." for name in double]
        else:
            attempt = [role for (role,) in said]
            wrong = [p for p in range(len(names)) if not holds(puzzle, attempt, p)]
            liars = sum(attempt[p] for p in wrong)
            what = [f"{liars} said to tell the truth would lie."] * bool(liars)
            what += [f"{len(wrong) - liars} said to lie would tell the truth."] * (
                len(wrong) > liars
            )
            where = [
                f"What {names[p]} says would be {str(says_true(puzzle, attempt, p)).lower()}."
                for p in wrong
            ]
            astray = next(p for p, role in enumerate(puzzle["solution"]) if role != attempt[p])
            start = f"Look again at {names[astray]}."
        text = phrase(self.level, what=" ".join(what), where=where, max_listed=self.max_listed)
        return f"{text} {start}" if start and self.level is CritiqueLevel.WHERE else text


def _rewards(claims: Sequence[Claim], solution: Sequence[bool]) -> list[float]:
    return [1.0 if claim.role == solution[claim.person] else -1.0 for claim in claims]
