"""Optimizers of bfloat16 parameters: updates are computed in float32, then rounded.

A step of training is often smaller than the distance between two bfloat16 numbers (1/256 of their
size); rounded to the nearest, it is lost. Two remedies: a float32 copy of the parameters that
collects such steps, or rounding up or down at random, which gets them right on average.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from t2g_jax.models.heads import Params

Array = jax.Array
Rounding = Literal["float32_copy", "stochastic"]


class CopyState(NamedTuple):
    """The optimizer's state, and float32 copies of the bfloat16 parameters (None for others)."""

    inner: optax.OptState
    copy: Params


class StochasticState(NamedTuple):
    """The optimizer's state, and the number of updates: what the random bits depend on."""

    inner: optax.OptState
    updates: Array


def in_float32(
    inner: optax.GradientTransformation, rounding: Rounding
) -> optax.GradientTransformationExtraArgs:
    """The optimizer with float32 gradients, moments and updates, whatever the parameters are.

    Where no parameter is bfloat16 it is the optimizer itself. Otherwise `optax.apply_updates` of
    what it returns leaves the parameters at

      float32_copy: the float32 copy, which moves as float32 parameters would, rounded to nearest.
      stochastic: parameter plus update, rounded as `stochastic_round` does.

    Args:
      inner: the optimizer.
      rounding: what becomes of the bits that bfloat16 does not hold.
    """

    inner = optax.with_extra_args_support(inner)

    def init(params: Params):
        state = inner.init(_float32(params))
        if not _any_bfloat16(params):
            return state
        if rounding == "stochastic":
            return StochasticState(state, jnp.zeros((), jnp.int32))
        copy = jax.tree.map(lambda x: x.astype(jnp.float32) if _is_bfloat16(x) else None, params)
        return CopyState(state, copy)

    def update(gradients: Params, state, params: Params, **extra: Any):
        gradients = _float32(gradients)
        if not _any_bfloat16(params):
            return inner.update(gradients, state, params, **extra)
        exact = _float32(params)
        if isinstance(state, CopyState):
            exact = jax.tree.map(lambda x, copy: x if copy is None else copy, exact, state.copy)
        updates, inner_state = inner.update(gradients, state.inner, exact, **extra)
        moved = optax.apply_updates(exact, updates)
        if isinstance(state, CopyState):
            copy = jax.tree.map(lambda x, p: x if _is_bfloat16(p) else None, moved, params)
            return _changes(moved, updates, params), CopyState(inner_state, copy)
        key = jax.random.fold_in(jax.random.key(0), state.updates)
        leaves, structure = jax.tree.flatten(moved)
        rounded = [
            stochastic_round(x, jax.random.fold_in(key, i)) if _is_bfloat16(p) else x
            for i, (x, p) in enumerate(zip(leaves, jax.tree.leaves(params), strict=True))
        ]
        moved = jax.tree.unflatten(structure, rounded)
        return _changes(moved, updates, params), StochasticState(inner_state, state.updates + 1)

    return optax.GradientTransformationExtraArgs(init, update)


def stochastic_round(x: Array, key: Array) -> Array:
    """Rounds float32 to one of the two nearest bfloat16 numbers; the expectation is x.

    Up with probability (x − below) / (above − below): 16 random bits are added to the 16 that
    bfloat16 does not have, and what they carry stays. Gupta et al., arXiv 1502.02551, Eq. 1.

    Args:
      x: [...] float32.
      key: PRNG key.

    Returns:
      [...] bfloat16.
    """
    noise = jax.random.bits(key, x.shape, jnp.uint16).astype(jnp.uint32)
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    kept = (bits + noise) & jnp.uint32(0xFFFF0000)
    rounded = jax.lax.bitcast_convert_type(kept, jnp.float32).astype(jnp.bfloat16)
    return jnp.where(jnp.isfinite(x), rounded, x.astype(jnp.bfloat16))


def _changes(moved: Params, updates: Params, params: Params) -> Params:
    """Updates in float32 after which bfloat16 parameters are `moved`, rounded to nearest."""

    def change(x: Array, u: Array, p: Array) -> Array:
        if not _is_bfloat16(p):
            return u
        return x.astype(jnp.bfloat16).astype(jnp.float32) - p.astype(jnp.float32)

    return jax.tree.map(change, moved, updates, params)


def _is_bfloat16(x: Array) -> bool:
    return x.dtype == jnp.bfloat16


def _any_bfloat16(tree: Params) -> bool:
    return any(map(_is_bfloat16, jax.tree.leaves(tree)))


def _float32(tree: Params) -> Params:
    return jax.tree.map(lambda x: x.astype(jnp.float32) if _is_bfloat16(x) else x, tree)
