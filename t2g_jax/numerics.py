"""What every pure function does with its inputs: equal shapes, float32, inert padding.

Masked positions may hold anything, infinities and NaN included. A mask applied after a loss hides
such a value but not its gradient (0 · NaN is NaN), so the losses compute on zeros there and put the
NaN back into the value: it stays visible if it was not masked, and never reaches a parameter.
"""

import math
from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike


def as_float(x: ArrayLike) -> jax.Array:
    """`x` in float64 if it is float64, in float32 otherwise (bfloat16, integers, booleans)."""
    x = jnp.asarray(x)
    return x.astype(jnp.float64 if x.dtype == jnp.float64 else jnp.float32)


def check_same_shape(**arrays: ArrayLike) -> None:
    """Raise a ValueError naming the first argument whose shape differs from that of the first."""
    (first, reference), *others = arrays.items()
    for name, array in others:
        if np.shape(array) != np.shape(reference):
            raise ValueError(
                f"{first} and {name} must have the same shape, but {first} has shape "
                f"{np.shape(reference)} and {name} has shape {np.shape(array)}"
            )


def same_shape(**arrays: ArrayLike) -> list[jax.Array]:
    """The arguments as floats (see `as_float`), in order; a ValueError if their shapes differ."""
    check_same_shape(**arrays)
    return [as_float(array) for array in arrays.values()]


def defined(**arrays: ArrayLike) -> list[jax.Array]:
    """As `same_shape`, with zeros wherever any argument is not finite.

    Returns:
      a boolean array, True where all arguments are finite, followed by the arguments. The caller
      ends with `jnp.where(ok, result, jnp.nan)`.
    """
    floats = same_shape(**arrays)
    ok = reduce(jnp.logical_and, map(jnp.isfinite, floats))
    return [ok, *(jnp.where(ok, x, 0) for x in floats)]


def matrix_product(x: jax.Array, kernel: jax.Array, *, axes: int = 1, **options: Any) -> jax.Array:
    """Σ over the last `axes` of x and as many first ones of the kernel; [..., D] · [D, V].

    As a product of two matrices, its gradients too. Products that sum over several axes, as the
    kernel's gradient does over [B, T], make XLA transpose one side, which takes longer than they.
    Not so on a mesh of several devices (see `parallel.sharding.within`): axes that are sharded
    cannot become one axis without being gathered.
    """
    if jax.sharding.get_abstract_mesh().size > 1:
        return jnp.tensordot(x, kernel, axes=axes, **options)
    shape = (*x.shape[: x.ndim - axes], *kernel.shape[axes:])
    inner = math.prod(kernel.shape[:axes])
    product = jnp.matmul(x.reshape(-1, inner), kernel.reshape(inner, -1), **options)
    return product.reshape(shape)


def soft_capped(x: jax.Array, cap: float) -> jax.Array:
    """cap · tanh(x / cap), Gemma 2, arXiv 2408.00118; x as it is if cap is 0."""
    return cap * jnp.tanh(x / cap) if cap else x
