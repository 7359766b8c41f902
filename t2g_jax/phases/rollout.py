"""Episodes: a first attempt, a critique, a second attempt. Tokens in, tokens out."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax

from t2g_jax.judges.base import Critique, JudgeError
from t2g_jax.models.heads import Params
from t2g_jax.phases.context import Context
from t2g_jax.sampling.generate import Completion, generate
from t2g_jax.tasks.base import Example, Score


@dataclasses.dataclass(frozen=True)
class Turn:
    """One attempt at an example: what was read, what was said, what it earned."""

    example: Example
    prompt: list[int]
    completion: Completion
    text: str
    score: Score

    def after_feedback(self, context: Context, feedback: str) -> list[int]:
        """The prompt x₁ = x₀, y₀, feedback: the same tokens, never re-encoded."""
        opened = context.tokenizer.next_turn(feedback, ended=self.completion.ended)
        return [*self.prompt, *self.completion.tokens.tolist(), *opened]


def attempt(
    context: Context,
    params: Params,
    examples: Sequence[Example],
    prompts: Sequence[list[int]],
    key: jax.Array,
    *,
    batch_size: int,
) -> list[Turn]:
    """Samples a completion for each prompt and scores it.

    Args:
      examples, prompts: of equal length; the prompt may be longer than the example's own (x₁).
      key: PRNG key.
      batch_size: rows sampled at once.
    """
    completions = generate(
        params,
        prompts,
        key,
        config=context.model,
        sampling=context.sampling,
        mesh=context.mesh,
        batch_size=batch_size,
        context_length=context.config.model.context_length,
    )
    turns = []
    for example, prompt, completion in zip(examples, prompts, completions, strict=True):
        text = context.tokenizer.decode(completion.tokens.tolist())
        score = context.task.score(example, text)
        turns.append(Turn(example, prompt, completion, text, score))
    return turns


def critique(context: Context, turn: Turn) -> Critique | JudgeError:
    """The judge's critique, or why there is none; a failure is never taken for praise."""
    try:
        return context.judge.critique(turn.example, turn.text)
    except JudgeError as error:
        return error
