"""What a policy makes of the tokens of rows, before it learns from them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from jax.sharding import Mesh

from t2g_jax.models.decoder import DecoderConfig
from t2g_jax.models.heads import Params
from t2g_jax.run.context import Context
from t2g_jax.run.trainer import map_rows
from t2g_jax.sampling.distribution import Sampling
from t2g_jax.training.forward import CUTOFFS, Need
from t2g_jax.training.metrics import Stopwatch
from t2g_jax.training.sequences import TokenSequence
from t2g_jax.training.step import score

Scores = Sequence[dict[str, np.ndarray]]
"""For each row what was asked for, by name, [n] about its own tokens; 0 for the first."""


@dataclasses.dataclass(frozen=True)
class RowScorer:
    """Scores rows with a policy, at the temperature and with the truncation of `sampling`.

    watch: the stage "score" is timed.
    """

    model: DecoderConfig
    mesh: Mesh
    sampling: Sampling
    watch: Stopwatch

    @classmethod
    def of(cls, context: Context) -> RowScorer:
        """That of a run."""
        return cls(context.model, context.mesh, context.sampling, context.watch)

    def __call__(
        self,
        params: Params,
        rows: Sequence[TokenSequence],
        needs: Need,
        *,
        rows_at_once: int | None = None,
        reference: Params | None = None,
    ) -> Scores:
        """What a policy makes of each token of each row, given those before it; see `step.score`.

        "logprobs" and "entropy" are of the distribution really sampled from, and follow the rows'
        `CUTOFFS` if the sampler truncates; "untruncated" is not, so that divergences stay finite.

        Args:
          rows_at_once: rows that are computed at once; None: all.
          reference: parameters to compare with, for REFERENCE_KL.
        """
        truncated = self.sampling.truncates and bool(needs & (Need.LOGPROBS | Need.ENTROPY))
        with self.watch.stage("score"):
            return map_rows(
                lambda batch: score(
                    params,
                    batch,
                    needs,
                    model=self.model,
                    temperature=self.sampling.temperature,
                    mesh=self.mesh,
                    reference=reference,
                ),
                rows,
                self.mesh,
                rows_at_once=rows_at_once,
                fields=(CUTOFFS,) if truncated else (),
            )
