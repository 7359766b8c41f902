"""How the reward model reads: with its own model and tokenizer, if it has them.

What the policy sampled is then encoded anew for the reward model, and what is said of the tokens of
one is carried to those of the other through the characters that they share.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from t2g_jax.config import SHAPE, TokenizerConfig
from t2g_jax.errors import T2GError
from t2g_jax.run import pretrained
from t2g_jax.run.context import Context
from t2g_jax.run.prompts import Prompts
from t2g_jax.spans.token_offsets import Offsets

Tokens = Sequence[int] | np.ndarray
Answer = tuple[Tokens, Tokens]
"""The tokens of a prompt and of a completion."""

_PROBE = "Xquestion"


def reward_model_context(context: Context) -> Context:
    """The context of the reward model: the run's, or with `reward_model.pretrained` one whose
    model, tokenizer and warm start are that model's.

    Raises:
      T2GError: the pretrained model or its tokenizer cannot be used.
    """
    settings = context.config.reward_model
    source, options = settings.pretrained, settings.template_options
    if source is None:
        return context
    tokenizer = pretrained.tokenizer(source, options)
    shape: dict[str, Any] = SHAPE
    config = dataclasses.replace(
        context.config,
        model=dataclasses.replace(context.config.model, pretrained=source, **shape),
        tokenizer=TokenizerConfig(template_options=options),
        sft=dataclasses.replace(context.config.sft, steps=0),  # the model as it is
    )
    model = pretrained.decoder_config(config, tokenizer.vocab_size)
    return dataclasses.replace(context, config=config, tokenizer=tokenizer, model=model)


def retokenize(mine: Prompts, theirs: Prompts, answer: Answer) -> tuple[Answer, Offsets]:
    """An answer of the policy in the reward model's tokens; where those of the completion are.

    Args:
      mine, theirs: how prompts are written for the policy and for the reward model.

    Raises:
      T2GError: the prompt is no single question.
    """
    prompt, completion = answer
    text = mine.tokenizer.decode(completion)
    tokens, offsets = theirs.tokenizer.encode_with_offsets(text)
    before = theirs.tokenizer.without_thought(text)
    tokens, offsets = [*before, *tokens], [*[(0, 0)] * len(before), *offsets]
    if len(completion) and int(completion[-1]) in mine.tokenizer.stop_ids:
        tokens, offsets = [*tokens, theirs.tokenizer.end_id], [*offsets, (len(text), len(text))]
    return (theirs.render(_question(mine, prompt)), tokens), offsets


def _question(prompts: Prompts, prompt: Tokens) -> str:
    """What the user asked, from the tokens of `Prompts.render`."""

    def written(tokens: Tokens) -> str:
        return prompts.tokenizer.decode(tokens, skip_special=False)

    before, _, after = written(prompts.render(_PROBE)).partition(_PROBE)
    text = written(prompt)
    question = text[len(before) : len(text) - len(after)]
    if not question or prompts.render(question) != [int(i) for i in prompt]:
        raise T2GError(
            "a reward model with a tokenizer of its own reads answers to one question; got a "
            f"conversation that begins {text[:80]!r}"
        )
    return question
