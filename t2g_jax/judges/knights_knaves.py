"""A program that checks an answer to a puzzle of knights and knaves against what the people say."""

from collections.abc import Mapping, Sequence
from typing import Any

from t2g_jax.judges.base import (
    Critique,
    CritiqueLevel,
    JudgeError,
    phrase,
    quote_at,
    quote_box,
    quote_last_line,
)
from t2g_jax.tasks.base import Example
from t2g_jax.tasks.boxed import find_boxed
from t2g_jax.tasks.knights_knaves import Claim, holds, parse, roles, says_true


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
        box = find_boxed(completion)
        if box is None:
            return Critique("No answer in \\boxed{}.", quote_last_line(completion, -1.0))
        claims = parse(box.content, puzzle)
        if claims is None:
            text = "The answer in \\boxed{} does not say who is what."
            return Critique(text, quote_box(completion, box, -1.0))
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
