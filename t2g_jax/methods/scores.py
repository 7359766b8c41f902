"""What a policy makes of the tokens of rows, before it learns from them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from t2g_jax.models.heads import Params
from t2g_jax.run.context import Context
from t2g_jax.run.trainer import map_rows
from t2g_jax.training.forward import CUTOFFS, Need
from t2g_jax.training.sequences import TokenSequence
from t2g_jax.training.step import score

Scores = Sequence[dict[str, np.ndarray]]
"""For each row what was asked for, by name, [n] about its own tokens; 0 for the first."""


def score_rows(
    context: Context,
    params: Params,
    rows: Sequence[TokenSequence],
    needs: Need,
    *,
    rows_at_once: int | None = None,
    reference: Params | None = None,
) -> Scores:
    """What a policy makes of each token of each row, given those before it; see `step.score`.

    At the sampler's temperature. "logprobs" and "entropy" are of the distribution really sampled
    from, and follow the rows' `CUTOFFS` if the sampler truncates; "untruncated" is not, so that
    divergences stay finite.

    Args:
      rows_at_once: rows that are computed at once; None: all.
      reference: parameters to compare with, for REFERENCE_KL.
    """
    truncated = context.sampling.truncates and bool(needs & (Need.LOGPROBS | Need.ENTROPY))
    with context.watch.stage("score"):
        return map_rows(
            lambda batch: score(
                params,
                batch,
                needs,
                model=context.model,
                temperature=context.config.sampling.temperature,
                mesh=context.mesh,
                reference=reference,
            ),
            rows,
            context.mesh,
            rows_at_once=rows_at_once,
            fields=(CUTOFFS,) if truncated else (),
        )
