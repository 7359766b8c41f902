"""The reward model: what it reads, and the span rewards it gives in one forward pass.

A row is x, y, request, critique and, when it is critique-conditioned, a second request and y again.
The span-reward head then labels the second copy, every token of which has seen the critique and the
whole completion.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from t2g_jax.config import RewardModelConfig
from t2g_jax.data.tokenizer import ChatTokenizer
from t2g_jax.feedback.retokenize import Answer, Tokens, retokenize, reward_model_context
from t2g_jax.models.heads import SPAN_CLASSES, Params
from t2g_jax.rollouts.engine import LocalEngine
from t2g_jax.run.context import Context
from t2g_jax.run.prompts import Prompts
from t2g_jax.run.trainer import map_rows
from t2g_jax.run.workspace import REWARD_MODEL
from t2g_jax.sampling.distribution import Sampling
from t2g_jax.spans.token_offsets import Offsets
from t2g_jax.spans.transfer import transfer_values
from t2g_jax.tasks.base import CRITIQUE_REQUEST, MARK_REQUEST
from t2g_jax.training.batch import Batch
from t2g_jax.training.forward import Need
from t2g_jax.training.sequences import TokenSequence
from t2g_jax.training.step import SPAN_PROBABILITIES, score
from t2g_jax.training.terms import NLL_WEIGHT, SPAN_LABELS, SPAN_WEIGHT

NEUTRAL = np.array([0.0, 1.0, 0.0], np.float32)
"""The classes of a token that the reward model has not seen."""


def reward_model_row(
    tokenizer: ChatTokenizer,
    answer: Answer,
    *,
    conditioned: bool,
    critique: Sequence[int] | None = None,
    labels: np.ndarray | float = 0.0,
) -> TokenSequence:
    """A row that teaches or asks the reward model.

    Args:
      answer: x and y as they were sampled.
      conditioned: whether y is read again after the critique, and labeled there.
      critique: its tokens with the end token; None leaves out all that comes after y.
      labels: −1, 0 or +1 for each token of y.
    """
    prompt, completion = answer
    labeled = {SPAN_WEIGHT: 1.0, SPAN_LABELS: labels}
    parts: list[Any] = [(prompt, {}), (completion, {} if conditioned else labeled)]
    if critique is not None:
        parts += [(critique_request(tokenizer, completion), {}), (critique, {NLL_WEIGHT: 1.0})]
        if conditioned:
            parts += [(tokenizer.next_turn(MARK_REQUEST, ended=True), {}), (completion, labeled)]
    return TokenSequence.from_parts(*parts)


@dataclasses.dataclass(frozen=True)
class RewardModel:
    """The trained reward model, ready to label completions.

    One that is critique-conditioned writes its critiques first. A completion after which the
    context has no room for a critique gets none, and no labels: None. If it has a tokenizer of its
    own, answers and rewards are in the policy's tokens nevertheless; critiques are in its own.

    engine: has its model, and writes its critiques.
    settings: with the class weights that it was trained with, which are divided out.
    prompts, policy_prompts: how prompts are written for it and for the policy; the same ones if it
      reads as the policy.
    """

    params: Params
    engine: LocalEngine
    settings: RewardModelConfig
    prompts: Prompts
    policy_prompts: Prompts

    @classmethod
    def load(cls, context: Context) -> RewardModel:
        """Raises T2GError if the reward model has not been trained."""
        rm_context = reward_model_context(context)
        params = rm_context.weights.load(REWARD_MODEL, with_heads=("span_head",))
        settings = dataclasses.replace(
            context.config.reward_model, class_weights=context.weights.class_weights()
        )
        return cls.of(context, rm_context, rm_context.weights.frozen(params), settings)

    @classmethod
    def of(
        cls,
        context: Context,
        rm_context: Context,
        params: Params,
        settings: RewardModelConfig | None = None,
    ) -> RewardModel:
        """That of a run, which has these parameters.

        Args:
          rm_context: see `reward_model_context`.
          settings: those that it was trained with; None: the config's.
        """
        length = context.config.model.context_length
        return cls(
            params=params,
            engine=LocalEngine(rm_context.model, rm_context.mesh, length),
            settings=context.config.reward_model if settings is None else settings,
            prompts=rm_context.prompts,
            policy_prompts=context.prompts,
        )

    @property
    def tokenizer(self) -> ChatTokenizer:
        """Of its critiques."""
        return self.prompts.tokenizer

    def _read(self, answers: Sequence[Answer]) -> list[tuple[Answer, Offsets | None]]:
        """Answers in its own tokens, and where they are; None where they are the policy's."""
        if self.prompts is self.policy_prompts:
            return [(answer, None) for answer in answers]
        return [retokenize(self.policy_prompts, self.prompts, answer) for answer in answers]

    def rewards(
        self, answers: Sequence[Answer], at_once: int | None = None
    ) -> list[np.ndarray | None]:
        """Expected span reward p(good) − p(poor) of each completion token: arrays [n].

        `at_once` answers are read at once; None: all.
        """
        found = self.probabilities(answers, at_once)
        return [None if p is None else p @ SPAN_CLASSES for p in found]

    def hard_rewards(
        self, answers: Sequence[Answer], at_once: int | None = None, *, threshold: float = 0.0
    ) -> list[np.ndarray | None]:
        """The reward of each completion token's likeliest class: arrays [n], see `hard_rewards`."""
        found = self.probabilities(answers, at_once)
        return [None if p is None else hard_rewards(p, threshold=threshold) for p in found]

    def probabilities(
        self, answers: Sequence[Answer], at_once: int | None = None
    ) -> list[np.ndarray | None]:
        """p(poor), p(neutral), p(good) of each completion token: arrays [n, 3].

        Of the data as it is: class weights of the training are divided out.
        """
        read = self._read(answers)
        marked = self._probabilities([answer for answer, _ in read], at_once)
        for i, ((_, theirs), (_, completion)) in enumerate(zip(read, answers, strict=True)):
            if theirs is not None and marked[i] is not None:
                mine = self.policy_prompts.tokenizer.offsets(completion)
                marked[i] = transfer_values(marked[i], theirs, mine, silent=NEUTRAL)
        return marked

    def _probabilities(
        self, answers: Sequence[Answer], at_once: int | None
    ) -> list[np.ndarray | None]:
        conditioned = self.settings.critique_conditioned
        critiques: list[list[int] | None] = [None] * len(answers)
        if conditioned:
            critiques = self._critiques(answers, at_once)
        rows = {
            i: reward_model_row(self.tokenizer, answer, conditioned=conditioned, critique=critique)
            for i, (answer, critique) in enumerate(zip(answers, critiques, strict=True))
            if critique is not None or not conditioned
        }
        model, mesh = self.engine.model, self.engine.mesh

        def compute(batch: Batch) -> dict[str, jax.Array]:
            return score(
                self.params,
                batch,
                Need.SPAN_LOGITS,
                model=model,
                class_weights=self.settings.class_weights,
                mesh=mesh,
            )

        found = map_rows(compute, list(rows.values()), mesh, rows_at_once=at_once)
        marked: list[np.ndarray | None] = [None] * len(answers)
        for (i, row), scores in zip(rows.items(), found, strict=True):
            marked[i] = scores[SPAN_PROBABILITIES][row.values[SPAN_WEIGHT] > 0]
        return marked

    def critiques(
        self, answers: Sequence[Answer], at_once: int | None = None
    ) -> list[list[int] | None]:
        """The likeliest critiques: tokens of its `tokenizer`, with the end token."""
        return self._critiques([answer for answer, _ in self._read(answers)], at_once)

    def _critiques(self, answers: Sequence[Answer], at_once: int | None) -> list[list[int] | None]:
        tokenizer, longest = self.tokenizer, self.settings.max_critique_tokens
        prompts = {i: [*x, *y, *critique_request(tokenizer, y)] for i, (x, y) in enumerate(answers)}
        prompts = {i: p for i, p in prompts.items() if self.prompts.has_room(p, longest)}
        written = self.engine.complete(
            self.params,
            list(prompts.values()),
            jax.random.key(0),  # nothing is drawn at temperature 0
            batch_size=at_once or len(answers),
            sampling=Sampling(longest, tokenizer.stop_ids, temperature=0.0),
        )
        critiques: list[list[int] | None] = [None] * len(answers)
        for i, critique in zip(prompts, written, strict=True):
            end = [] if critique.ended else [tokenizer.end_id]
            critiques[i] = [*critique.tokens.tolist(), *end]
        return critiques


def hard_rewards(probabilities: np.ndarray, *, threshold: float = 0.0) -> np.ndarray:
    """−1 or +1 where poor or good is the likeliest class, and no less likely than the threshold.

    Exactly 0 elsewhere, also where two classes are equally likely.

    Args:
      probabilities: [..., 3] of poor, neutral and good.
      threshold: in [0, 1].

    Returns:
      [...] float32.
    """
    poor, neutral, good = np.moveaxis(probabilities, -1, 0)
    is_poor = (poor > np.maximum(neutral, good)) & (poor >= threshold)
    is_good = (good > np.maximum(neutral, poor)) & (good >= threshold)
    return is_good.astype(np.float32) - is_poor.astype(np.float32)


def critique_request(tokenizer: ChatTokenizer, completion: Tokens) -> list[int]:
    ended = len(completion) > 0 and int(completion[-1]) in tokenizer.stop_ids
    return tokenizer.next_turn(CRITIQUE_REQUEST, ended=ended, completion=completion)
