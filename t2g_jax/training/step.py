"""The jitted steps: update a train state on a batch, and score rows without learning from them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from t2g_jax import logprobs
from t2g_jax.models import heads
from t2g_jax.models.decoder import DecoderConfig
from t2g_jax.training.batch import Batch
from t2g_jax.training.objective import Objective, objective, score_targets, totals
from t2g_jax.training.sharding import batch_sharding, state_shardings
from t2g_jax.training.state import TrainState

Array = jax.Array
Update = Callable[[TrainState, Batch], tuple[TrainState, dict[str, Array]]]


def make_update(
    model: DecoderConfig,
    settings: Objective,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    state: TrainState,
) -> Update:
    """Compiles `update(state, batch) -> (state, metrics)` for one optimizer step.

    Args:
      model, settings: static.
      optimizer: as used to create `state`.
      mesh: where the state and batches live.
      state: the state to come, or its abstract shapes; only its structure is read.

    Returns:
      update: takes a batch with arrays [M, B, T], M micro-batches whose gradients add up; it donates
        the state. Metrics are scalars.
    """
    shardings = state_shardings(state, mesh)

    def update(state: TrainState, batch: Batch):
        denominators = totals(batch)

        def accumulate(carry, micro: Batch):
            grads, metrics = carry
            (_, fresh), micro_grads = jax.value_and_grad(objective, has_aux=True)(
                state.params, micro, denominators, model=model, settings=settings
            )
            return (jax.tree.map(jnp.add, grads, micro_grads), _combine(metrics, fresh)), None

        first, rest = jax.tree.map(lambda x: x[0], batch), jax.tree.map(lambda x: x[1:], batch)
        (_, metrics), grads = jax.value_and_grad(objective, has_aux=True)(
            state.params, first, denominators, model=model, settings=settings
        )
        if batch.tokens.shape[0] > 1:
            (grads, metrics), _ = jax.lax.scan(accumulate, (grads, metrics), rest)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        report = metrics["sum"] | metrics["max"]
        if "negative_ratio_min" in report:
            report["ratio_min"] = -report.pop("negative_ratio_min")
        report["grad_norm"] = optax.global_norm(grads)
        state = state.replace(step=state.step + 1, params=params, opt_state=opt_state)
        return state, report

    replicated = NamedSharding(mesh, P())
    return jax.jit(
        update,
        in_shardings=(shardings, batch_sharding(mesh, micro_batched=True)),
        out_shardings=(shardings, replicated),
        donate_argnums=0,
    )


def _combine(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
    return {
        "sum": jax.tree.map(jnp.add, a["sum"], b["sum"]),
        "max": jax.tree.map(jnp.maximum, a["max"], b["max"]),
    }


@functools.partial(jax.jit, static_argnames=("model", "temperature"))
def score(
    params: heads.Params, batch: Batch, *, model: DecoderConfig, temperature: float = 1.0
) -> dict[str, Array]:
    """Scores rows [B, T] without gradients.

    Returns:
      "logprobs", "entropy" [B, T] of the targets; "values" [B, T] if there is a value head.
    """
    hidden = heads.hidden_states(
        params, model, batch.tokens, batch.positions, batch.segment_ids
    )
    scored = score_targets(params, hidden, batch, temperature=temperature)
    out = {"logprobs": scored.logprobs, "entropy": scored.entropy}
    if "value_head" in params:
        out["values"] = heads.values(params, hidden)
    return out


@functools.partial(jax.jit, static_argnames=("model",))
def span_probabilities(params: heads.Params, batch: Batch, *, model: DecoderConfig) -> Array:
    """p(poor), p(neutral), p(good) [B, T, 3] of each token of rows [B, T], on the token itself."""
    hidden = heads.hidden_states(
        params, model, batch.tokens, batch.positions, batch.segment_ids
    )
    return jax.nn.softmax(heads.span_logits(params, hidden))


@functools.partial(jax.jit, static_argnames=("model", "temperature"))
def full_kl(
    params: heads.Params,
    reference: heads.Params,
    batch: Batch,
    *,
    model: DecoderConfig,
    temperature: float = 1.0,
) -> Array:
    """KL(policy ‖ reference) over the vocabulary for every slot of rows [B, T], both at `temperature`."""

    def hidden_and_kernel(p):
        hidden = heads.hidden_states(p, model, batch.tokens, batch.positions, batch.segment_ids)
        return hidden / temperature, heads.lm_kernel(p).astype(hidden.dtype)

    return logprobs.full_kl_from_hidden(*hidden_and_kernel(params), *hidden_and_kernel(reference))


