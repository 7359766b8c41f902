"""The one training loop: resume, advance, log, checkpoint. Phases say what one step is."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from t2g_jax.errors import T2GError
from t2g_jax.parallel.sharding import state_shardings
from t2g_jax.runtime import hosts, preemption, watchdog
from t2g_jax.training.checkpoint import Checkpoints
from t2g_jax.training.metrics import MetricsWriter
from t2g_jax.training.state import TrainState

Advance = Callable[[TrainState, int], tuple[TrainState, dict[str, float]]]
Measure = Callable[[TrainState, int], dict[str, float]]


def train(
    state: TrainState,
    advance: Advance,
    *,
    steps: int,
    mesh: Mesh,
    checkpoints: Checkpoints,
    writer: MetricsWriter,
    every: int,
    meta: Mapping[str, Any],
    token_budget: int | None = None,
    max_skipped_updates: int | None = None,
    measure: Measure = lambda state, step: {},
    before_save: Callable[[], None] = lambda: None,
    on_step: Callable[[int, dict[str, float]], None] = lambda step, metrics: None,
) -> TrainState:
    """Takes `state` to step `steps`, from the last checkpoint if there is one.

    `advance(state, i)` makes step i (from 0) and must depend on its arguments alone: data and
    random keys are functions of i. With a budget, "progress" in `state.carry` is the share of it
    that is spent. So a run that was stopped and started again equals one that was not. After
    SIGTERM the step under way is the last one, and is saved; before a T2GError of `advance` leaves
    here, the step before is.

    A state whose last update was skipped (see `make_update`) is not saved before the end: the last
    checkpoint is a good one, and those before it are not pushed out. Where more updates were
    skipped than made, the end is not saved either: what was learned is not what was asked for.

    Args:
      state: at step 0.
      advance: one step; it may donate the state.
      steps: total, unless there is a budget.
      checkpoints, every: where, and after how many steps, the state is saved.
      meta: saved beside the state, with the data cursor "step" and, if there are any, the
        "tokens_generated" and "skipped_updates" so far.
      token_budget: ends after the first step at which the sum of the metric "tokens_generated"
        reaches it, whatever `steps`; the log has the sum as "tokens_generated_total".
      max_skipped_updates: so many updates skipped in a row end the run, and so many altogether if
        they are more than those made.
      measure: metrics of a state that is about to be saved, with those of its step what the best
        checkpoint is chosen by.
      before_save: may raise, so that nothing is written.
      on_step: called after each step with the number of steps made and the metrics.

    Raises:
      T2GError: too many updates were skipped in a row, or at the end more than were made; the last
        checkpoint is of another phase; there is a budget, and a step generated nothing.
      Preempted: SIGTERM came.
    """
    state = hosts.place(state, state_shardings(state, mesh))
    replicated = NamedSharding(mesh, PartitionSpec())
    step, generated, lost = checkpoints.latest_step or 0, 0, 0
    if step:
        state, saved = checkpoints.restore(abstract(state))
        _require_ours(saved, meta, checkpoints)
        generated, lost = saved.get("tokens_generated", 0), saved.get("skipped_updates", 0)

    most = math.inf if max_skipped_updates is None else max_skipped_updates

    def unfinished() -> bool:
        return step < steps if token_budget is None else generated < token_budget

    def save(compared: Mapping[str, float] | None) -> None:
        before_save()
        writer.sync()
        counts = {"tokens_generated": generated, "skipped_updates": lost}
        about = {"step": step} | {name: count for name, count in counts.items() if count}
        checkpoints.save(step, state, {**meta, **about}, metrics=compared)

    with preemption.finishing():
        while unfinished():
            if token_budget is not None:
                spent = hosts.place(np.float32(generated / token_budget), replicated)
                state = state.replace(carry=state.carry | {"progress": spent})
            try:
                state, metrics = advance(state, step)
            except T2GError:  # as when the judge is down: the steps before it are not lost
                if step > (checkpoints.latest_step or 0) and _is_good(state):
                    save(None)
                    checkpoints.wait()
                raise
            watchdog.beat()
            step += 1
            if "tokens_generated" in metrics:
                generated += int(metrics["tokens_generated"])
                metrics = metrics | {"tokens_generated_total": generated}
            if token_budget is not None and not metrics.get("tokens_generated"):
                raise T2GError(
                    f"step {step} generated no tokens: a token_budget ({token_budget}) would never "
                    "be reached; leave it out, to end by steps"
                )
            writer.write(step, metrics)
            on_step(step, metrics)
            lost += int(metrics.get("skipped_updates", 0))
            in_row = int(metrics.get("skipped_in_row", 0))
            if in_row >= most:
                skipped = f"{in_row} updates in a row, the last at step {step}"
            elif lost and (lost >= most or not unfinished()) and lost > (made := int(state.step)):
                skipped = f"{lost} of {lost + made} updates until step {step}, more than half"
            else:
                skipped = ""
            if skipped:
                checkpoints.wait()
                raise T2GError(_diverged(skipped, checkpoints))
            stop = preemption.asked()
            due = step % every == 0 or not unfinished()
            if (due or stop) and not (unfinished() and int(state.skipped)):
                # A step that nobody would have saved otherwise is not compared with the best.
                save(metrics | measure(state, step) if due else None)
            if stop:
                break
        checkpoints.wait()
    return state


def abstract(tree: Any) -> Any:
    """Shapes, types and shardings of arrays, as `Checkpoints.restore` wants them."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


def _is_good(state: TrainState) -> bool:
    """Whether an update has neither taken the state with it nor been skipped."""
    return not any(leaf.is_deleted() for leaf in jax.tree.leaves(state)) and not int(state.skipped)


def _require_ours(
    saved: Mapping[str, Any], meta: Mapping[str, Any], checkpoints: Checkpoints
) -> None:
    found, expected = saved.get("phase"), meta.get("phase")
    if found != expected:
        raise T2GError(
            f"{checkpoints.directory} holds checkpoints of the phase {found!r}, not of "
            f"{expected!r}; delete it, or put back what belongs there"
        )


def _diverged(skipped: str, checkpoints: Checkpoints) -> str:
    good = checkpoints.latest_step
    place = (
        f"The last good checkpoint is {checkpoints.directory / str(good)}, of step {good}; the "
        "same command goes on from it"
        if good
        else f"No checkpoint was made before; delete {checkpoints.directory} to begin anew"
    )
    return (
        f"loss, gradients or new parameters were not finite (NaN or Inf) in {skipped}; they were "
        f"skipped. {place}. Try a lower optimizer.learning_rate of this phase, more warmup_steps, "
        "a lower clip_norm, or model.compute_dtype float32, with --accept-changes; if it was bad "
        "already, delete that checkpoint to go back further"
    )
