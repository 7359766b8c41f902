"""What all training phases share: rows become packed minibatches, minibatches become updates."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from t2g_jax.config import OptimizerConfig, config_hash
from t2g_jax.models.heads import Params
from t2g_jax.phases.context import Context
from t2g_jax.report.contents import Sample
from t2g_jax.report.terminal import PhaseProgress
from t2g_jax.training.batch import Batch, Row, micro_batches, pack, pad, round_up
from t2g_jax.training.checkpoint import Checkpoints
from t2g_jax.training.loop import train
from t2g_jax.training.metrics import MetricsWriter, read_metrics
from t2g_jax.training.objective import Objective
from t2g_jax.training.sharding import batch_sharding
from t2g_jax.training.state import TrainState, make_optimizer
from t2g_jax.training.step import make_update

SHOWN = ("loss", "reward", "accuracy", "span_accuracy", "test_accuracy")
"""Metrics beside the progress bar."""

LENGTH_BUCKET = 16
"""Rows are packed to a multiple of this and then as `round_up` does, so that few shapes are
compiled."""


@dataclasses.dataclass(frozen=True)
class Learning:
    """How a phase learns from the rows that it collects at each step.

    steps: how often rows are collected. epochs, minibatches: passes over the rows of a step, and
    optimizer updates of a pass. micro_batches: parts of a minibatch, to save memory.
    fields: of `Batch`, that the rows fill. carry: see `TrainState`.
    """

    optimizer: OptimizerConfig
    objective: Objective
    fields: tuple[str, ...]
    steps: int
    epochs: int = 1
    minibatches: int = 1
    micro_batches: int = 1
    carry: dict[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class Collected:
    """What a step starts from.

    rows: to learn from. metrics: of how they came about, "tokens_generated" among them if tokens
    were. carry: the new one; None: as it was. samples: completions for the report.
    """

    rows: Sequence[Row]
    metrics: dict[str, float] = dataclasses.field(default_factory=dict)
    carry: dict[str, float] | None = None
    samples: Sequence[Sample] = ()


Collect = Callable[[TrainState, int], Collected]


def run_training(
    context: Context, phase: str, params: Params, collect: Collect, learning: Learning
) -> tuple[Params, dict[str, Any]]:
    """Trains a phase to its end, from its last checkpoint if it was stopped.

    Args:
      phase: its name; the folder of checkpoints, metrics and parameters.
      params: where it starts.
      collect: the rows of a step; a function of the state and the step alone.

    Returns:
      The parameters, and a summary: seconds, tokens, and the last metrics.
    """
    config, workspace = context.config, context.workspace
    updates = learning.steps * learning.epochs * learning.minibatches
    optimizer = make_optimizer(learning.optimizer, updates)
    replicated = NamedSharding(context.mesh, PartitionSpec())

    def carried(values: dict[str, float]) -> dict[str, jax.Array]:
        # Placed as the update leaves it, or the update would be compiled for either place.
        return jax.device_put({k: np.float32(v) for k, v in values.items()}, replicated)

    # A copy: the first update donates its state, and the caller may keep `params` as a reference.
    params = jax.tree.map(jax.numpy.copy, params)
    state = TrainState.create(params, optimizer, carried(learning.carry))
    update = make_update(context.model, learning.objective, optimizer, context.mesh, state)
    sharding = batch_sharding(context.mesh, micro_batched=True)
    first = jax.process_index() == 0

    def advance(state: TrainState, step: int):
        collected = collect(state, step)
        if collected.carry is not None:
            state = state.replace(carry=carried(collected.carry))
        reports = []
        with context.watch.stage("update"):
            for batch in minibatches(context, phase, learning, collected.rows, step):
                state, report = update(state, jax.device_put(batch, sharding))
                reports.append(report)
            reports = jax.device_get(reports)
        metrics = summarise(reports) | collected.metrics
        metrics["tokens_trained"] = learning.epochs * sum(map(weighed, collected.rows))
        read = sum(len(row) for row in collected.rows)
        generated = int(collected.metrics.get("tokens_generated", 0))
        return state, metrics | speed(
            context.watch.lap(),
            {
                "sample": generated,
                "judge": generated,
                "score": read,
                "update": learning.epochs * read,
            },
        )

    with (
        Checkpoints(
            workspace.checkpoints(phase), keep_last=config.checkpoint.keep_last
        ) as checkpoints,
        MetricsWriter(
            workspace.phase(phase), phase=phase, resumed_step=checkpoints.latest_step, enabled=first
        ) as writer,
        PhaseProgress(
            phase, learning.steps, start=checkpoints.latest_step or 0, enabled=first
        ) as progress,
    ):
        state = train(
            state,
            advance,
            steps=learning.steps,
            mesh=context.mesh,
            checkpoints=checkpoints,
            writer=writer,
            every=config.checkpoint.every_steps,
            meta={"phase": phase, "config": config_hash(config)},
            on_step=lambda step, metrics: progress.update(
                step, **{name: metrics[name] for name in SHOWN if name in metrics}
            ),
        )
    lines = read_metrics(workspace.phase(phase))
    return state.params, {
        "seconds": lines[-1]["seconds"],
        "tokens_trained": int(sum(line["tokens_trained"] for line in lines)),
        "tokens_generated": int(sum(line.get("tokens_generated", 0) for line in lines)),
        "last": {k: v for k, v in lines[-1].items() if isinstance(v, int | float)},
    }


def minibatches(
    context: Context, phase: str, learning: Learning, rows: Sequence[Row], step: int
) -> Iterator[Batch]:
    """The batches [M, B, T] of a step: a new random order of the rows for each epoch."""
    length = bucket(rows)
    multiple = shards(context) * learning.micro_batches
    for epoch in range(learning.epochs):
        rng = np.random.default_rng(context.seed(f"{phase}/{step}/{epoch}"))
        order = rng.permutation(len(rows))
        for chosen in np.array_split(order, learning.minibatches):
            batch = pack(
                [rows[i] for i in chosen], length=length, fields=learning.fields, multiple=multiple
            )
            yield micro_batches(batch, learning.micro_batches)


def padded(context: Context, rows: Sequence[Row], fields: Sequence[str] = ()) -> Batch:
    """Rows for scoring, one to a batch row, on the mesh."""
    batch = pad(rows, length=bucket(rows), fields=fields, multiple=shards(context))
    return jax.device_put(batch, batch_sharding(context.mesh))


def bucket(rows: Sequence[Row]) -> int:
    """The length of the longest row, rounded up."""
    return round_up(max(len(row) for row in rows), LENGTH_BUCKET)


def shards(context: Context) -> int:
    """Parts that the rows of a batch are split into."""
    return context.mesh.shape["data"] * context.mesh.shape["fsdp"]


def weighed(row: Row) -> int:
    """Tokens of a row that count in any term of the loss."""
    weights = [values != 0 for name, values in row.fields.items() if name.endswith("_weight")]
    return int(np.any(weights, axis=0).sum())


def speed(seconds: dict[str, float], tokens: dict[str, int]) -> dict[str, float]:
    """The log's columns about time: seconds of each stage, and the tokens it got through in one."""
    columns = {f"seconds_{stage}": spent for stage, spent in seconds.items()}
    return columns | {
        f"tokens_per_second_{stage}": tokens[stage] / max(spent, 1e-9)
        for stage, spent in seconds.items()
        if tokens.get(stage)
    }


def summarise(reports: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Metrics of a step from those of its updates.

    Means; extremes of extremes; and how far sampler and trainer are apart before the first update,
    as later the policy has moved.
    """
    chosen: dict[str, Callable] = {
        "ratio_max": np.max,
        "ratio_min": np.min,
        "kl_sampler_trainer": lambda values: values[0],
    }
    return {
        name: float(chosen.get(name, np.mean)([report[name] for report in reports]))
        for name in reports[0]
    }
