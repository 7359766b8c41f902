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

from t2g_jax import losses
from t2g_jax.models import heads, lora
from t2g_jax.models.decoder import DecoderConfig
from t2g_jax.numerics import as_float
from t2g_jax.parallel.sharding import batch_sharding, state_shardings, within
from t2g_jax.training.batch import Batch
from t2g_jax.training.forward import Need, forward
from t2g_jax.training.objective import Objective
from t2g_jax.training.state import TrainState

Array = jax.Array
Update = Callable[..., tuple[TrainState, dict[str, Array]]]


def make_update(
    model: DecoderConfig,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    state: TrainState,
    frozen: heads.Params | None = None,
) -> Update:
    """Compiles `update(state, batch) -> (state, metrics)` for one optimizer step.

    With parameters that stay as they are, it is `update(state, batch, frozen)`: they get no
    gradient and are not donated.

    Args:
      model, objective: static.
      optimizer: as used to create `state`.
      mesh: where the state and batches live.
      state: the state to come, or its abstract shapes; only its structure is read.
      frozen: what its parameters lack to be whole, see `lora.split`; likewise.

    Returns:
      update: takes a batch with arrays [M, B, T], M micro-batches whose gradients add up; it
        donates the state. Metrics are scalars. If the loss, a gradient, or what parameters and
        optimizer state would become is not finite, they stay as they are: "skipped_updates" is 1,
        and "skipped_in_row" counts.
    """
    shardings = state_shardings(state, mesh)

    @within(mesh)
    def update(state: TrainState, batch: Batch, frozen: heads.Params | None = None):
        denominators = objective.denominators(batch)

        @functools.partial(jax.value_and_grad, has_aux=True)
        def gradient(trained: heads.Params, micro: Batch):
            params = lora.join(trained, frozen or {})
            return objective(params, micro, denominators, model=model, mesh=mesh)

        def accumulate(carry, micro: Batch):
            grads, metrics = carry
            (_, fresh), micro_grads = gradient(state.params, micro)
            return (jax.tree.map(jnp.add, grads, micro_grads), _combine(metrics, fresh)), None

        first = jax.tree.map(lambda x: x[0], batch)
        if batch.tokens.shape[0] == 1:
            (_, metrics), grads = gradient(state.params, first)
            grads = jax.tree.map(as_float, grads)
        else:
            # From zero, and not from the first micro-batch: so the gradient is compiled once.
            _, shapes = jax.eval_shape(gradient, state.params, first)[0]
            start = jax.lax.with_sharding_constraint(_zeros(state.params), shardings.params)
            (grads, metrics), _ = jax.lax.scan(accumulate, (start, _nothing(shapes)), batch)
        updates, opt_state = optax.with_extra_args_support(optimizer).update(
            grads, state.opt_state, state.params, progress=state.carry.get("progress")
        )
        params = optax.apply_updates(state.params, updates)
        report = metrics["sum"] | metrics["max"] | metrics["min"]
        report["grad_norm"] = optax.tree.norm(grads)
        # Also what would be kept: finite gradients can end in an update that is not.
        finite = _are_finite((report["loss"], report["grad_norm"], params, opt_state))
        moved = state.replace(
            step=state.step + 1,
            params=params,
            opt_state=opt_state,
            skipped=jnp.zeros_like(state.skipped),
        )
        stayed = state.replace(skipped=state.skipped + 1)
        state = jax.tree.map(functools.partial(jnp.where, finite), moved, stayed)
        report |= {"skipped_updates": ~finite, "skipped_in_row": state.skipped}
        return state, report

    frozen_shardings = (state_shardings(frozen, mesh),) if frozen else ()
    return jax.jit(
        update,
        in_shardings=(shardings, batch_sharding(mesh, micro_batched=True), *frozen_shardings),
        out_shardings=(shardings, NamedSharding(mesh, P())),
        donate_argnums=0,
    )


def _zeros(params: heads.Params) -> heads.Params:
    """Gradients to add to, in float32 whatever the parameters are."""
    return jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.promote_types(x.dtype, "float32")), params)


def _are_finite(tree: Any) -> Array:
    """Whether no array holds a NaN or Inf."""
    floats = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)]
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in floats]))


def _nothing(metrics: dict[str, Any]) -> dict[str, Any]:
    """What `_combine` with metrics of these shapes leaves as they are."""
    start = {"sum": 0.0, "max": -jnp.inf, "min": jnp.inf}
    return {
        kind: jax.tree.map(lambda x, kind=kind: jnp.full(x.shape, start[kind], x.dtype), found)
        for kind, found in metrics.items()
    }


def _combine(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
    how = {"sum": jnp.add, "max": jnp.maximum, "min": jnp.minimum}
    return {kind: jax.tree.map(how[kind], a[kind], b[kind]) for kind in how}


_SCORES = {
    Need.LOGPROBS: "logprobs",
    Need.ENTROPY: "entropy",
    Need.UNTRUNCATED: "untruncated",
    Need.VALUES: "values",
    Need.REFERENCE_KL: "reference_kl",
}

SPAN_PROBABILITIES = "span_probabilities"
ABOUT_TOKENS = frozenset({SPAN_PROBABILITIES})
"""Scores that are about a token itself, and not about predicting one."""


@functools.partial(
    jax.jit, static_argnames=("needs", "model", "temperature", "mesh", "class_weights")
)
def score(
    params: heads.Params,
    batch: Batch,
    needs: Need,
    *,
    model: DecoderConfig,
    temperature: float = 1.0,
    mesh: Mesh | None = None,
    reference: heads.Params | None = None,
    class_weights: tuple[float, float, float] | None = None,
) -> dict[str, Array]:
    """Scores rows [B, T] without gradients: what is asked for, in one forward pass.

    Args:
      needs: of `forward`; all but TEACHER.
      temperature: of all log-probabilities. They follow the `CUTOFFS` of a batch that has them.
      mesh: the one that the rows are sharded over.
      reference: parameters that REFERENCE_KL compares with.
      class_weights: those that the span-reward head was trained with, which are divided out.

    Returns:
      "logprobs", "entropy", "untruncated", "values", "reference_kl" [B, T] in the slots that
      predict a token; for SPAN_LOGITS "span_probabilities" [B, T, 3], p(poor), p(neutral) and
      p(good), on the token itself.
    """
    found = forward(
        params,
        batch,
        needs,
        model=model,
        temperature=temperature,
        mesh=mesh,
        reference=reference,
    )
    scores = {name: getattr(found, name) for need, name in _SCORES.items() if need in needs}
    if Need.SPAN_LOGITS in needs:
        scores[SPAN_PROBABILITIES] = losses.span_probabilities(
            found.span_logits, class_weights=class_weights
        )
    return scores
