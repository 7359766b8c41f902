"""What all training phases share: rows become packed minibatches, minibatches become updates."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from t2g_jax.config import OptimizerConfig
from t2g_jax.errors import T2GError
from t2g_jax.judges.counts import failures_in_words, judge_columns
from t2g_jax.models import lora
from t2g_jax.models.heads import Params
from t2g_jax.parallel.shapes import bucket
from t2g_jax.parallel.sharding import ROWS, batch_sharding, parts
from t2g_jax.report import collapse
from t2g_jax.report.terminal import PhaseProgress
from t2g_jax.run import provenance
from t2g_jax.run.claim import require_claims
from t2g_jax.run.context import Context, say
from t2g_jax.run.keys import Keys
from t2g_jax.run.samples import drop_samples
from t2g_jax.run.workspace import Workspace, best_by
from t2g_jax.runtime import hosts
from t2g_jax.tasks.base import Floor
from t2g_jax.training import trackers
from t2g_jax.training.batch import Batch, micro_batches, pack, places, unpack
from t2g_jax.training.checkpoint import Checkpoints
from t2g_jax.training.forward import Need
from t2g_jax.training.loop import train
from t2g_jax.training.metrics import MetricsWriter, read_metrics
from t2g_jax.training.objective import Objective
from t2g_jax.training.sequences import Field, TokenSequence
from t2g_jax.training.state import TrainState, learning_rate, make_optimizer
from t2g_jax.training.step import ABOUT_TOKENS, make_update

SHOWN = ("loss", "reward", "accuracy", "span_accuracy", "test_accuracy", "test_reward")
"""Metrics beside the progress bar."""


@dataclasses.dataclass(frozen=True)
class UpdatePlan:
    """How a phase learns from the rows that it collects at each step.

    steps: how often rows are collected; with a token_budget, until so many tokens were generated.
    epochs, minibatches: passes over the rows of a step, and optimizer updates of a pass.
    micro_batches: parts of a minibatch, to save memory. carry: see `TrainState`.
    """

    optimizer: OptimizerConfig
    objective: Objective
    steps: int
    token_budget: int | None = None
    epochs: int = 1
    minibatches: int = 1
    micro_batches: int = 1
    carry: dict[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Experience:
    """What a step starts from.

    rows: to learn from. metrics: of how they came about, "tokens_generated" among them if tokens
    were. carry: the new one; None: as it was.
    """

    rows: Sequence[TokenSequence]
    metrics: Mapping[str, float] = dataclasses.field(default_factory=dict)
    carry: dict[str, float] | None = None


Collect = Callable[[TrainState, int], Experience]
Measure = Callable[[Params, int], dict[str, float]]


def run_training(
    context: Context,
    phase: str,
    params: Params,
    collect: Collect,
    plan: UpdatePlan,
    *,
    measure: Measure | None = None,
    floor: Floor | None = None,
) -> tuple[Params, dict[str, Any]]:
    """Trains a phase to its end, from its last checkpoint if it was stopped.

    Args:
      phase: its name; the folder of checkpoints, metrics and parameters.
      params: where it starts; if they have adapters, only these and the heads are trained.
      collect: the rows of a step; a function of the state, whose parameters are whole, and the
        step alone.
      measure: metrics of parameters and their step, for `checkpoint.keep_best`; None: the phase
        keeps its last checkpoints only.
      floor: of the task's accuracy; a policy that ends up there is pointed out.

    Returns:
      The parameters, and a summary: the rank of the adapters (0: none), seconds, tokens, the last
      metrics and step, the fingerprint of the parameters, and what they were made from.
    """
    config, workspace = context.config, context.workspace
    updates = None
    if plan.token_budget is None:
        updates = plan.steps * plan.epochs * plan.minibatches
    optimizer = make_optimizer(plan.optimizer, updates)
    replicated = NamedSharding(context.mesh, PartitionSpec())

    def scalar(value: float) -> jax.Array:
        # Placed as the update leaves it, or the update would be compiled for either place.
        return hosts.place(np.float32(value), replicated)

    def carried(values: dict[str, float]) -> dict[str, jax.Array]:
        return {name: scalar(value) for name, value in values.items()}

    rank = lora.rank(params)
    trained, frozen = lora.split(params)
    # A copy: the first update donates its state, and the caller may keep `params` as a reference.
    trained = jax.tree.map(jax.numpy.copy, trained)
    del params  # if the caller does not, they need not take memory
    carry = plan.carry if updates is not None else plan.carry | {"progress": 0.0}
    state = TrainState.create(trained, optimizer, carried(carry))
    update = make_update(context.model, plan.objective, optimizer, context.mesh, state, frozen)
    sharding = batch_sharding(context.mesh, micro_batched=True)
    first = hosts.is_primary()

    rate = learning_rate(plan.optimizer, updates)

    def advance(state: TrainState, step: int):
        context.tally.clear()  # of what was counted before: a resumed run has another before
        spent = [] if plan.token_budget is None else [float(state.carry["progress"])]
        began_with = {"learning_rate": np.asarray(rate(int(state.step), *spent)).item()}
        experience = collect(state.replace(params=lora.join(state.params, frozen)), step)
        if experience.carry is not None:
            state = state.replace(carry=state.carry | carried(experience.carry))
        fitting = [
            row
            for row in experience.rows
            if all(context.prompts.has_room(read, 0) for read in (row, row.teacher or row))
        ]
        context.tally["rows_too_long"] += len(experience.rows) - len(fitting)
        count = plan.objective.loss_token_count
        rows = [row for row in fitting if count(row)]
        if not rows:  # then everything stays as it is
            say(f"{phase}: step {step + 1} has nothing to learn from")
        reports = []
        generated = int(experience.metrics.get("tokens_generated", 0))
        passes = plan.epochs * min(plan.minibatches, len(rows))
        batches = minibatches(plan, rows, context.mesh, context.keys, f"{phase}/{step}")
        with context.watch.stage("update"):
            for i, batch in enumerate(batches):
                if plan.token_budget is not None:
                    # From update to update, as with steps: each is an equal part of the round.
                    now = spent[0] + i / passes * generated / plan.token_budget
                    carry = state.carry | {"progress": scalar(min(now, 1.0))}
                    state = state.replace(carry=carry)
                placed = hosts.place(batch, sharding)
                state, report = update(state, placed, frozen) if frozen else update(state, placed)
                reports.append(report)
            reports = jax.device_get(reports)
        metrics = summarize(reports) | began_with | {"rows": len(rows)} | context.tally
        metrics |= dict(experience.metrics) | device_memory()
        metrics["tokens_trained"] = plan.epochs * sum(map(count, rows))
        read = sum(len(row) for row in rows)
        return state, metrics | compute_speed(
            context.watch.lap(),
            {
                "sample": generated,
                "judge": generated,
                "score": read,
                "update": plan.epochs * read,
            },
        )

    with (
        Checkpoints(
            workspace.checkpoints(phase),
            keep_last=config.checkpoint.keep_last,
            keep_best=best_by(config) if measure else None,
        ) as checkpoints,
        contextlib.nullcontext(made_from(workspace, phase, checkpoints)) as made,
        trackers.opened(
            config,
            workspace.root,
            workspace.phase(phase),
            phase,
            resumed_step=checkpoints.latest_step,
            enabled=first,
        ) as tracked,
        MetricsWriter(
            workspace.phase(phase), phase=phase, resumed_step=checkpoints.latest_step, enabled=first
        ) as writer,
        progress_of(phase, plan, workspace, checkpoints.latest_step or 0, first) as progress,
    ):
        watch = collapse.Watch(
            floor=floor.accuracy if floor else np.nan, floor_policy=floor.policy if floor else ""
        )
        for line in read_metrics(workspace.phase(phase)) if first else ():
            watch.look(line)

        def tell(step: int, metrics: dict[str, float]) -> None:
            tracked.write(step, metrics)
            done = int(metrics["tokens_generated_total"]) if plan.token_budget else step
            progress.update(done, **shown(metrics))
            for sign in watch.look({"step": step} | metrics):
                progress.note(f"step {step}: {sign.text}")

        state = train(
            state,
            advance,
            steps=plan.steps,
            mesh=context.mesh,
            checkpoints=checkpoints,
            writer=writer,
            every=config.checkpoint.every_steps,
            meta={
                "phase": phase,
                "seed": config.seed,  # with phase and step it gives all random keys and the data
                "made": made,
            },
            before_save=lambda: hosts.broadcast_from_primary(require_claims),
            token_budget=plan.token_budget,
            max_skipped_updates=config.training.max_skipped_updates,
            measure=lambda state, step: (
                measure(lora.join(state.params, frozen), step) if measure else {}
            ),
            on_step=tell,
        )
        left = {"step": checkpoints.latest_step, "fingerprint": checkpoints.fingerprint()}
    return lora.join(state.params, frozen), {
        **hosts.broadcast_from_primary(lambda: summary(workspace, phase)),
        "lora_rank": rank,
        **left,
        "made": made,
    }


def shown(metrics: Mapping[str, float]) -> dict[str, float]:
    """What a line of progress says; rewards of test prompts where there is no accuracy of them."""
    names = [name for name in SHOWN if name in metrics]
    if "test_accuracy" in names:
        names = [name for name in names if name != "test_reward"]
    return {name: metrics[name] for name in names}


def made_from(workspace: Workspace, phase: str, checkpoints: Checkpoints) -> provenance.Made:
    """What a phase is made from, if it may go on where it was; see `provenance.gone_on`."""
    made = hosts.broadcast_from_primary(lambda: provenance.made(workspace, phase))
    step, folder = checkpoints.latest_step or 0, workspace.phase(phase)
    if step:
        made = provenance.gone_on(made, checkpoints.meta().get("made"), step, folder)
    if hosts.is_primary():
        drop_samples(folder, step)
    return made


def summary(workspace: Workspace, phase: str) -> dict[str, Any]:
    """A phase, summed up from its log: seconds, tokens, and the last metrics.

    Raises:
      T2GError: no row was short enough to be learned from.
    """
    folder = workspace.phase(phase)
    counts = ("rows_too_long", "tokens_generated", "judge_")
    lines = read_metrics(folder, numbers=counts, needed=("tokens_trained",))
    judge: collections.Counter[str] = collections.Counter()
    for line in lines:
        judge.update(judge_columns(line))
    if failures := failures_in_words(judge):
        say(f"{phase}: {failures}")
    too_long = sum(line.get("rows_too_long", 0) for line in lines)
    if too_long and not any(line["tokens_trained"] for line in lines):
        raise T2GError(
            f"{phase}: all {too_long} rows are longer than model.context_length "
            f"({workspace.config.model.context_length}), so nothing was learned; raise it, then "
            f"delete {workspace.root} or use another --workdir"
        )
    return {
        "seconds": lines[-1]["seconds"],
        "tokens_trained": int(sum(line["tokens_trained"] for line in lines)),
        "tokens_generated": int(sum(line.get("tokens_generated", 0) for line in lines)),
        "judge": dict(judge),
        "last": {
            k: v for k, v in lines[-1].items() if isinstance(v, int | float) and np.isfinite(v)
        },
    }


def minibatches(
    plan: UpdatePlan, rows: Sequence[TokenSequence], mesh: Mesh, keys: Keys, purpose: str
) -> Iterator[Batch]:
    """The batches [M, B, T] of a step: a new random order of the rows for each epoch.

    `purpose` is that of the random orders: "PHASE/STEP".

    None without rows, and none that is empty: it would teach nothing, but Adam's momentum would
    still move the parameters.
    """
    if not rows:
        return
    stretches = parts(mesh, "context")
    shape: dict[str, Any] = {"length": bucket(rows, stretches), "fields": plan.objective.fields}
    shape["multiple"] = parts(mesh, *ROWS) * plan.micro_batches
    if Need.TEACHER in plan.objective.needs:
        teachers = [row.teacher for row in rows if row.teacher is not None]
        shape["teacher_length"] = bucket([*teachers, [0]], stretches)
    for epoch in range(plan.epochs):
        rng = np.random.default_rng(keys.seed(f"{purpose}/{epoch}"))
        order = rng.permutation(len(rows))
        for chosen in np.array_split(order, min(plan.minibatches, len(rows))):
            yield micro_batches(pack([rows[i] for i in chosen], **shape), plan.micro_batches)


def map_rows(
    compute: Callable[[Batch], Mapping[str, jax.Array]],
    rows: Sequence[TokenSequence],
    mesh: Mesh,
    *,
    rows_at_once: int | None = None,
    fields: Sequence[Field] = (),
) -> list[dict[str, np.ndarray]]:
    """What a function of packed rows says about the tokens of each.

    Args:
      compute: from tokens on the mesh to arrays [B, T, ...] by name, see `step.score`.
      rows_at_once: rows that are packed and computed at once; None: all.
      fields: of the rows, which the function reads too.

    Returns:
      For each row arrays [n, ...] by name, about its own tokens.
    """
    found: list[dict[str, np.ndarray]] = []
    rows = [row.only(fields) for row in rows]
    size = rows_at_once or max(len(rows), 1)
    for some in (rows[start : start + size] for start in range(0, len(rows), size)):
        length = bucket(some, parts(mesh, "context"))
        batch = pack(some, length=length, fields=fields, multiple=parts(mesh, *ROWS))
        computed = hosts.fetch(compute(hosts.place(batch, batch_sharding(mesh))))
        found += [unpack(computed, place, ABOUT_TOKENS) for place in places(some, length)]
    return found


def compute_speed(seconds: dict[str, float], tokens: dict[str, int]) -> dict[str, float]:
    """The log's columns about time: seconds of each stage, and the tokens it got through in one."""
    columns = {f"seconds_{stage}": spent for stage, spent in seconds.items()}
    return columns | {
        f"tokens_per_second_{stage}": tokens[stage] / max(spent, 1e-9)
        for stage, spent in seconds.items()
        if tokens.get(stage)
    }


def device_memory() -> dict[str, int]:
    """The log's column about memory: the most that a device here has used, where it can tell."""
    told = [device.memory_stats() or {} for device in jax.local_devices()]
    peaks = [stats["peak_bytes_in_use"] for stats in told if "peak_bytes_in_use" in stats]
    return {"device_memory_bytes": max(peaks)} if peaks else {}


def summarize(reports: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Metrics of a step from those of its updates.

    Means; the number of updates skipped; extremes of extremes; and how far sampler and trainer are
    apart before the first update, as later the policy has moved.
    """
    extremes: dict[str, Callable] = {"_max": np.max, "_min": np.min}
    chosen: dict[str, Callable] = {
        "kl_sampler_trainer": lambda values: values[0],
        "skipped_updates": np.sum,
        "skipped_in_row": np.max,
    }
    return {
        name: float(
            chosen.get(name, extremes.get(name[-4:], np.mean))([report[name] for report in reports])
        )
        for name in (reports[0] if reports else {})
    }


def progress_of(
    phase: str, plan: UpdatePlan, workspace: Workspace, start: int, enabled: bool
) -> PhaseProgress:
    """In steps or, with a token budget, in tokens: how many steps that is, nobody knows."""
    if plan.token_budget is None:
        return PhaseProgress(phase, plan.steps, start=start, enabled=enabled)
    total = "tokens_generated_total"
    logged = read_metrics(workspace.phase(phase), needed={total}) if start and enabled else []
    tokens = int(logged[-1][total]) if logged else 0
    return PhaseProgress(phase, plan.token_budget, start=tokens, unit="tokens", enabled=enabled)
