"""The prompts of a run: examples of the task in tokens, and the room that they leave."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Sized

from t2g_jax.data.tokenizer import ChatTokenizer
from t2g_jax.errors import T2GError
from t2g_jax.run.keys import Keys
from t2g_jax.tasks.base import Example, Prompt, Task, messages_of, name_of_task

_TRIES = 1000
"""Training examples that are looked at for one whose prompt is not too long."""


@dataclasses.dataclass(frozen=True)
class Prompts:
    """Examples of a task whose prompts leave the context room for a completion.

    Args:
      context_length, max_new_tokens: of `model` and `sampling` in the config.
      can_grow: whether the context could be made longer; else a policy was trained with it.
      tally: counts "prompts_too_long".
    """

    task: Task
    tokenizer: ChatTokenizer
    keys: Keys
    context_length: int
    max_new_tokens: int
    can_grow: bool = True
    tally: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)

    def train_examples(
        self,
        purpose: str,
        step: int,
        count: int,
        *,
        among: int | None = None,
        usable: Callable[[Example], bool] | None = None,
    ) -> list[Example]:
        """Batch `step` of an endless shuffled stream of training examples, or the first `among`.

        One whose prompt leaves no room for a completion is replaced by what has its place in a
        later epoch, and counted in `tally`; one that is not `usable` is replaced likewise.

        Raises:
          T2GError: no prompt leaves room for a completion, or next to none is usable.
        """
        import grain  # takes a while, and only training needs it

        source = self.task.split("train")
        size = len(source) if among is None else min(among, len(source))
        order = grain.MapDataset.range(size).shuffle(self.keys.seed(purpose)).repeat()

        def fitting(i: int) -> Example:
            shortest = None
            for epoch in range(_TRIES):
                example = source[order[i + epoch * size]]
                if usable is not None and not usable(example):
                    continue
                prompt = self.render(example.prompt)
                if self.has_room(prompt):
                    return example
                self.tally["prompts_too_long"] += 1
                shortest = min(len(prompt), shortest or len(prompt))
            if shortest is None:
                raise T2GError(
                    f"{purpose}: none of {_TRIES} training examples of the task "
                    f"{name_of_task(self.task)} can be used for it"
                )
            raise self.no_room("even the shortest training prompt", shortest)

        return [fitting(i) for i in range(step * count, (step + 1) * count)]

    def test_examples(self) -> list[Example]:
        """The test examples whose prompts leave room for a completion; `tally` counts the others.

        Raises:
          T2GError: none of them does.
        """
        tests = list(self.task.split("test"))
        prompts = [self.render(example.prompt) for example in tests]
        fitting = [e for e, prompt in zip(tests, prompts, strict=True) if self.has_room(prompt)]
        if not fitting:
            raise self.no_room("even the shortest test prompt", min(map(len, prompts)))
        self.tally["prompts_too_long"] += len(tests) - len(fitting)
        return fitting

    def render(self, prompt: Prompt) -> list[int]:
        """The tokens x₀ of a prompt, ready for the assistant's turn."""
        return self.tokenizer.render(messages_of(prompt, getattr(self.task, "system", "")))

    def has_room(self, prompt: Sized, tokens: int | None = None) -> bool:
        """Whether a prompt leaves the context room for so many tokens, or for a completion."""
        tokens = self.max_new_tokens if tokens is None else tokens
        return len(prompt) + tokens <= self.context_length

    def no_room(self, what: str, tokens: int) -> T2GError:
        """The error about a prompt for which `has_room` is false."""
        whole, new = self.context_length, self.max_new_tokens
        ways = ["shorten it"]
        if tokens < whole:
            ways.append(f"lower sampling.max_new_tokens to {whole - tokens} or less")
        if self.can_grow:
            ways.append("raise model.context_length")
        return T2GError(
            f"{what} has {tokens} tokens, but model.context_length ({whole}) less "
            f"sampling.max_new_tokens ({new}) leaves {whole - new}; {', or '.join(ways)}"
        )
