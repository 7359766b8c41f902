"""Attempts at examples: sampled, scored, and continued after feedback. Tokens in, tokens out."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import jax

from t2g_jax.data.tokenizer import ChatTokenizer
from t2g_jax.errors import T2GError
from t2g_jax.models.heads import Params
from t2g_jax.rollouts.engine import Rollouts
from t2g_jax.sampling.distribution import Sampling
from t2g_jax.sampling.generate import Completion
from t2g_jax.tasks.base import Example, Score

UNSCORED = Score(0.0)


@dataclasses.dataclass(frozen=True)
class Turn:
    """One attempt at an example: what was read, what was said, what it earned.

    A broken completion earned nothing, as nobody asked what it was worth: it is not learned from.
    Nor is one that is `unjudged`: the judge was to say what it earned, and failed.
    """

    example: Example
    prompt: list[int]
    completion: Completion
    text: str
    score: Score
    unjudged: bool = False

    @property
    def correct(self) -> bool:
        """Whether it is known to be right; never of a task that only grades."""
        return self.score.correct is True

    @property
    def unusable(self) -> bool:
        """Whether it cannot be learned from."""
        return self.completion.broken or self.unjudged

    @property
    def tokens(self) -> list[int]:
        """Those of the completion."""
        return self.completion.tokens.tolist()

    def after_feedback(self, tokenizer: ChatTokenizer, feedback: str) -> list[int]:
        """The prompt x₁ = x₀, y₀, feedback: the same tokens, never re-encoded."""
        opened = tokenizer.next_turn(feedback, ended=self.completion.ended, completion=self.tokens)
        return [*self.prompt, *self.tokens, *opened]


def attempt(
    rollouts: Rollouts,
    params: Params,
    examples: Sequence[Example],
    prompts: Sequence[Sequence[int]],
    key: jax.Array,
    *,
    batch_size: int,
    sampling: Sampling | None = None,
    step: int = 0,
    steps: int = 0,
) -> list[Turn]:
    """Samples a completion for each prompt and scores it; by default as the config says.

    Broken completions (see `Completion`) are counted, and not scored.

    Args:
      examples, prompts: of equal length; the prompt may be longer than the example's own (x₁).
      key: PRNG key.
      batch_size: rows sampled at once.
      step, steps: how far training is, of how many, for rewards that depend on it.
    """
    with rollouts.watch.stage("sample"):
        completed = rollouts.engine.complete(
            params, prompts, key, sampling=sampling or rollouts.sampling, batch_size=batch_size
        )
    texts = [rollouts.tokenizer.decode(completion.tokens.tolist()) for completion in completed]
    whole = [i for i, completion in enumerate(completed) if not completion.broken]
    rollouts.tally["broken_completions"] += len(completed) - len(whole)
    earned = rollouts.scorer.scores(
        [examples[i] for i in whole],
        [texts[i] for i in whole],
        completion_ids=[completed[i].tokens.tolist() for i in whole],
        step=step,
        steps=steps,
    )
    scores = dict(zip(whole, earned, strict=True))
    return [
        Turn(
            examples[i],
            list(prompts[i]),
            completed[i],
            texts[i],
            scores.get(i) or UNSCORED,
            unjudged=i in scores and scores[i] is None,
        )
        for i in range(len(completed))
    ]


def only_grades(turns: Sequence[Turn]) -> bool:
    """Whether no attempt is right or wrong, so that their reward is all there is to say of them."""
    known = [turn.score.correct is not None for turn in turns if not turn.unusable]
    return bool(known) and not any(known)


def unbroken(turns: Sequence[Turn], group_size: int = 1) -> list[Turn]:
    """The groups of turns, those of a prompt side by side, of which all can be learned from.

    Raises:
      T2GError: none is left.
    """
    groups = [turns[i : i + group_size] for i in range(0, len(turns), group_size)]
    whole = (group for group in groups if not any(turn.unusable for turn in group))
    kept = list(itertools.chain.from_iterable(whole))
    if turns and not kept:
        broken = sum(turn.completion.broken for turn in turns)
        if not broken:
            raise T2GError(
                f"the judge, whose critiques are the reward, failed for {len(turns)} completions "
                "or for one of each group: see to the judge, or give the task a score"
            )
        raise T2GError(
            f"the policy's logits are NaN or Inf in {broken} of {len(turns)} completions, so none "
            "of them can be used: its parameters hold NaN or Inf, or activations overflow. Try "
            "model.compute_dtype float32, or go back to an earlier checkpoint"
        )
    return kept
