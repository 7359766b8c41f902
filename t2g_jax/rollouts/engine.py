"""Who completes prompts with a policy, and what attempts at examples need besides."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Sequence
from typing import Protocol

import jax
from jax.sharding import Mesh

from t2g_jax.data.tokenizer import ChatTokenizer
from t2g_jax.models.decoder import DecoderConfig
from t2g_jax.models.heads import Params
from t2g_jax.run.context import Context
from t2g_jax.run.keys import Keys
from t2g_jax.run.panel import JudgePanel
from t2g_jax.run.prompts import Prompts
from t2g_jax.run.scorer import Scorer
from t2g_jax.sampling.distribution import Sampling
from t2g_jax.sampling.generate import Completion, generate
from t2g_jax.training.metrics import Stopwatch


class Engine(Protocol):
    """Completes prompts: this process's devices, or a server that has the policy."""

    def complete(
        self,
        params: Params,
        prompts: Sequence[Sequence[int]],
        key: jax.Array,
        *,
        sampling: Sampling,
        batch_size: int,
    ) -> list[Completion]:
        """A completion for each prompt, with the log-probabilities really sampled from.

        Args:
          params: of the policy; heads that sampling does not read may be there.
          key: PRNG key; the same key and prompts give the same completions.
          batch_size: rows sampled at once.
        """


@dataclasses.dataclass(frozen=True)
class LocalEngine:
    """Samples on the mesh that also trains."""

    model: DecoderConfig
    mesh: Mesh
    context_length: int

    def complete(
        self,
        params: Params,
        prompts: Sequence[Sequence[int]],
        key: jax.Array,
        *,
        sampling: Sampling,
        batch_size: int,
    ) -> list[Completion]:
        # Without the heads that sampling does not read: one program for all phases.
        policy = {name: tree for name, tree in params.items() if name in ("decoder", "lm_head")}
        return generate(
            policy,
            prompts,
            key,
            config=self.model,
            sampling=sampling,
            mesh=self.mesh,
            batch_size=batch_size,
            context_length=self.context_length,
        )


@dataclasses.dataclass(frozen=True)
class Rollouts:
    """What attempts at a run's examples need.

    sampling: how completions are drawn unless a caller says otherwise.
    watch, tally: the stage "sample" is timed, "broken_completions" are counted.
    """

    engine: Engine
    tokenizer: ChatTokenizer
    prompts: Prompts
    keys: Keys
    scorer: Scorer
    judges: JudgePanel
    sampling: Sampling
    watch: Stopwatch = dataclasses.field(default_factory=Stopwatch)
    tally: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)

    @classmethod
    def of(cls, context: Context) -> Rollouts:
        """Those of a run, on its own mesh."""
        length = context.config.model.context_length
        return cls(
            engine=LocalEngine(context.model, context.mesh, length),
            tokenizer=context.tokenizer,
            prompts=context.prompts,
            keys=context.keys,
            scorer=context.scorer,
            judges=context.judges,
            sampling=context.sampling,
            watch=context.watch,
            tally=context.tally,
        )
