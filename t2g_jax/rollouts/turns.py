"""Attempts at examples: sampled, scored, and continued after feedback. Tokens in, tokens out."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import jax

from t2g_jax.errors import T2GError
from t2g_jax.models.heads import Params
from t2g_jax.run.context import Context
from t2g_jax.sampling.distribution import Sampling
from t2g_jax.sampling.generate import Completion, generate
from t2g_jax.tasks.base import Example, Score

UNSCORED = Score(correct=False, formatted=False, reward=0.0)


@dataclasses.dataclass(frozen=True)
class Turn:
    """One attempt at an example: what was read, what was said, what it earned.

    A broken completion earned nothing, as nobody asked what it was worth: it is not learned from.
    """

    example: Example
    prompt: list[int]
    completion: Completion
    text: str
    score: Score

    @property
    def tokens(self) -> list[int]:
        """Those of the completion."""
        return self.completion.tokens.tolist()

    def after_feedback(self, context: Context, feedback: str) -> list[int]:
        """The prompt x₁ = x₀, y₀, feedback: the same tokens, never re-encoded."""
        opened = context.tokenizer.next_turn(
            feedback, ended=self.completion.ended, completion=self.tokens
        )
        return [*self.prompt, *self.tokens, *opened]


def attempt(
    context: Context,
    params: Params,
    examples: Sequence[Example],
    prompts: Sequence[Sequence[int]],
    key: jax.Array,
    *,
    batch_size: int,
    sampling: Sampling | None = None,
) -> list[Turn]:
    """Samples a completion for each prompt and scores it; by default as the config says.

    Broken completions (see `Completion`) are counted in `context.tally`, and not scored.

    Args:
      examples, prompts: of equal length; the prompt may be longer than the example's own (x₁).
      key: PRNG key.
      batch_size: rows sampled at once.
    """
    with context.watch.stage("sample"):
        completed = complete(
            context, params, prompts, key, batch_size=batch_size, sampling=sampling
        )
    turns = []
    for example, prompt, completion in zip(examples, prompts, completed, strict=True):
        text = context.tokenizer.decode(completion.tokens.tolist())
        score = UNSCORED if completion.broken else context.task.score(example, text)
        context.tally["broken_completions"] += completion.broken
        turns.append(Turn(example, list(prompt), completion, text, score))
    return turns


def unbroken(turns: Sequence[Turn], group_size: int = 1) -> list[Turn]:
    """The groups of turns, those of a prompt side by side, in which no completion is broken.

    Raises:
      T2GError: none is left.
    """
    groups = [turns[i : i + group_size] for i in range(0, len(turns), group_size)]
    whole = (group for group in groups if not any(turn.completion.broken for turn in group))
    kept = list(itertools.chain.from_iterable(whole))
    if turns and not kept:
        broken = sum(turn.completion.broken for turn in turns)
        raise T2GError(
            f"the policy's logits are NaN or Inf in {broken} of {len(turns)} completions, so none "
            "of them can be used: its parameters hold NaN or Inf, or activations overflow. Try "
            "model.compute_dtype float32, or go back to an earlier checkpoint"
        )
    return kept


def complete(
    context: Context,
    params: Params,
    prompts: Sequence[Sequence[int]],
    key: jax.Array,
    *,
    batch_size: int,
    sampling: Sampling | None = None,
) -> list[Completion]:
    """Samples a completion for each prompt, by default as the config says."""
    # Without the heads that sampling does not read: one program for all phases.
    policy = {name: tree for name, tree in params.items() if name in ("decoder", "lm_head")}
    return generate(
        policy,
        prompts,
        key,
        config=context.model,
        sampling=sampling or context.sampling,
        mesh=context.mesh,
        batch_size=batch_size,
        context_length=context.config.model.context_length,
    )
