"""The one training loop: resume, advance, log, checkpoint. Phases say what one step is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh

from t2g_jax.training.checkpoint import Checkpoints
from t2g_jax.training.metrics import MetricsWriter
from t2g_jax.training.sharding import state_shardings
from t2g_jax.training.state import TrainState

Advance = Callable[[TrainState, int], tuple[TrainState, dict[str, float]]]


def train(
    state: TrainState,
    advance: Advance,
    *,
    steps: int,
    mesh: Mesh,
    checkpoints: Checkpoints,
    writer: MetricsWriter,
    every: int,
    meta: dict[str, Any],
    on_step: Callable[[int, dict[str, float]], None] = lambda step, metrics: None,
) -> TrainState:
    """Takes `state` to step `steps`, from the last checkpoint if there is one.

    `advance(state, i)` makes step i (from 0) and must depend on its arguments alone: data and
    random keys are functions of i. So a run that was stopped and started again equals one that was
    not.

    Args:
      state: at step 0.
      advance: one step; it may donate the state.
      steps: total.
      checkpoints, every: where, and after how many steps, the state is saved.
      meta: saved beside the state.
      on_step: called after each step with the number of steps made and the metrics.
    """
    state = jax.device_put(state, state_shardings(state, mesh))
    start = checkpoints.latest_step or 0
    if start:
        state, _ = checkpoints.restore(abstract(state))
    for i in range(start, steps):
        state, metrics = advance(state, i)
        writer.write(i + 1, metrics)
        on_step(i + 1, metrics)
        if (i + 1) % every == 0 or i + 1 == steps:
            checkpoints.save(i + 1, state, meta | {"step": i + 1})
    checkpoints.wait()
    return state


def abstract(tree: Any) -> Any:
    """Shapes, types and shardings of arrays, as `Checkpoints.restore` wants them."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)
