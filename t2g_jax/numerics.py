"""What every pure function does with its inputs: equal shapes, float32, inert padding.

Masked positions may hold anything, infinities and NaN included. A mask applied after a loss hides
such a value but not its gradient (0 · NaN is NaN), so the losses compute on zeros there and put the
NaN back into the value: it stays visible if it was not masked, and never reaches a parameter.
"""

import enum
import math
from collections.abc import Sequence
from functools import reduce
from numbers import Real
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

Axis = int | tuple[int, ...] | None
"""Axes of an array, as NumPy has them; None: all of them together."""

AxisName = str | tuple[str, ...] | None
"""Axes of a mesh, inside `jax.shard_map`, that a sum runs over beside the array's axes."""


def as_float(x: ArrayLike) -> jax.Array:
    """`x` in float64 if it is float64, in float32 otherwise (bfloat16, integers, booleans).

    >>> from t2g_jax import numerics
    >>> numerics.as_float([1, 2])
    Array([1., 2.], dtype=float32)
    """
    x = jnp.asarray(x)
    return x.astype(jnp.float64 if x.dtype == jnp.float64 else jnp.float32)


def check_same_shape(**arrays: ArrayLike) -> None:
    """Raise a ValueError naming the first argument whose shape differs from that of the first.

    >>> from t2g_jax import numerics
    >>> numerics.check_same_shape(values=[1.0, 2.0], mask=[1, 0])
    """
    (first, reference), *others = arrays.items()
    for name, array in others:
        if np.shape(array) != np.shape(reference):
            raise ValueError(
                f"{first} and {name} must have the same shape, but {first} has shape "
                f"{np.shape(reference)} and {name} has shape {np.shape(array)}"
            )


def same_shape(**arrays: ArrayLike) -> list[jax.Array]:
    """The arguments as floats (see `as_float`), in order; a ValueError if their shapes differ.

    >>> from t2g_jax import numerics
    >>> numerics.same_shape(values=[1.0, 2.0], mask=[True, False])
    [Array([1., 2.], dtype=float32), Array([1., 0.], dtype=float32)]
    """
    check_same_shape(**arrays)
    return [as_float(array) for array in arrays.values()]


def defined(**arrays: ArrayLike) -> list[jax.Array]:
    """As `same_shape`, with zeros wherever any argument is not finite.

    >>> from t2g_jax import numerics
    >>> ok, logprobs = numerics.defined(logprobs=[-1.0, float("nan")])
    >>> ok, logprobs
    (Array([ True, False], dtype=bool), Array([-1.,  0.], dtype=float32))

    Returns:
      a boolean array, True where all arguments are finite, followed by the arguments. The caller
      ends with `settled(result, ok)`.
    """
    floats = same_shape(**arrays)
    ok = reduce(jnp.logical_and, map(jnp.isfinite, floats))
    return [ok, *(jnp.where(ok, x, 0) for x in floats)]


def settled(
    result: jax.Array, ok: jax.Array, where: ArrayLike | None = None, *, like: str = "logprobs"
) -> jax.Array:
    """What a loss returns: NaN where an input was not finite, and 0 where `where` is off.

    Neither has a gradient. A ValueError if `where` has not the shape of the result, which is that
    of the argument called `like`.

    >>> import jax.numpy as jnp
    >>> from t2g_jax import numerics
    >>> numerics.settled(jnp.ones(3), jnp.array([True, False, False]), where=[1, 1, 0])
    Array([ 1., nan,  0.], dtype=float32)
    """
    result = jnp.where(ok, result, jnp.nan)
    if where is None:
        return result
    return jnp.where(by_token(like, result, "where", where) != 0, result, 0)


def by_token(like: str, tokens: ArrayLike, name: str, array: ArrayLike) -> jax.Array:
    """An array of one value for each token, from that or from one for each sequence, [..., 1].

    >>> from t2g_jax import numerics
    >>> numerics.by_token("logprobs", [[-1.0, -2.0]], "advantages", [[0.5]])
    Array([[0.5, 0.5]], dtype=float32)

    Raises:
      ValueError: it has neither shape; the message calls the two arrays `like` and `name`.
    """
    shape = np.shape(tokens)
    if np.shape(array) != shape and shape and np.shape(array) == (*shape[:-1], 1):
        return jnp.broadcast_to(jnp.asarray(array), shape)
    check_same_shape(**{like: tokens, name: array})
    return jnp.asarray(array)


def the_mask(
    values: ArrayLike,
    mask: ArrayLike | None,
    where: ArrayLike | None,
    *,
    like: str = "values",
    name: str = "mask",
) -> ArrayLike:
    """A mask that goes by either of two names, `mask` and `where`; ones if neither is given.

    >>> from t2g_jax import numerics
    >>> numerics.the_mask([1.0, 2.0], None, None)
    Array([ True,  True], dtype=bool)

    Raises:
      ValueError: both are given.
    """
    if mask is not None and where is not None:
        raise ValueError(
            f"{name} and where are the same, so give one of them, but {name} has shape "
            f"{np.shape(mask)} and where has shape {np.shape(where)}"
        )
    given = where if mask is None else mask
    if given is None:
        return jnp.ones(np.shape(values), bool)
    return by_token(like, values, name if where is None else "where", given)


def chosen(name: str, value: Any, options: Sequence[str]) -> Any:
    """Which of some strings is meant: by itself, or by a member of an enum that has its value.

    >>> from t2g_jax import numerics
    >>> numerics.chosen("how", "sum", ("sum", "mean"))
    'sum'
    """
    meant = value.value if isinstance(value, enum.Enum) else value
    if meant not in options:
        *others, last = map(repr, options)
        raise ValueError(f"{name} must be {', '.join(others)} or {last}, not {value!r}")
    return meant


def check_number(
    name: str,
    value: Any,
    low: float = 0,
    high: float = math.inf,
    *,
    positive: bool = False,
    static: bool = False,
) -> None:
    """An error that names the setting unless it is a number from low to high, or a positive one.

    A traced value is let through: its program alone knows it. A static setting decides which
    program that is, and so has to be a Python number.

    >>> from t2g_jax.numerics import check_number
    >>> check_number("gamma", 0.9, 0, 1)
    >>> check_number("cap", float("inf"), positive=True)

    Raises:
      TypeError: it is no number, or a static one no Python number.
      ValueError: it is out of range, or NaN.
    """
    if static and not isinstance(value, Real):
        raise TypeError(
            f"{name} must be a Python number, got {value!r}; under jax.jit close over it, or name "
            "it in static_argnames"
        )
    if isinstance(value, jax.core.Tracer):
        return
    found = np.asarray(value)
    if not (jnp.issubdtype(found.dtype, jnp.number) or found.dtype == bool):
        raise TypeError(f"{name} must be a number, got {value!r}")
    if not np.all((found > 0) if positive else (low <= found) & (found <= high)):
        allowed = f"in [{low}, {high}]" if high < math.inf else f"at least {low}"
        raise ValueError(f"{name} must be {'positive' if positive else allowed}, got {value}")


def check_count(name: str, value: Any, least: int) -> None:
    """An error that names the argument unless it is a whole number from `least` on.

    >>> from t2g_jax.numerics import check_count
    >>> check_count("top_k", 5, least=1)

    Raises:
      TypeError: it is no integer; 2.0 is none either.
      ValueError: it is less.
    """
    if not hasattr(value, "__index__"):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    if isinstance(value, int | np.integer) and value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")


def check_axis(name: str, array: ArrayLike, axis: Any) -> None:
    """ValueError unless an array, called `name`, has this axis; several at once are none.

    >>> import jax.numpy as jnp
    >>> from t2g_jax.numerics import check_axis
    >>> check_axis("values", jnp.zeros((2, 3)), -1)
    """
    count = np.ndim(array)
    if not isinstance(axis, int | np.integer) or not -count <= axis < count:
        raise ValueError(
            f"axis must be one axis of {name}, an int in [{-count}, {count}), got {axis!r}: {name} "
            f"has shape {np.shape(array)}"
        )


def total(x: jax.Array, axis: Axis = None, axis_name: AxisName = None, **options: Any) -> jax.Array:
    """Σ x over axes of the array, and over those of the mesh.

    >>> import jax.numpy as jnp
    >>> from t2g_jax import numerics
    >>> numerics.total(jnp.ones((2, 3)), axis=-1)
    Array([3., 3.], dtype=float32)
    """
    x = jnp.sum(x, axis=axis, **options)
    return x if axis_name is None else lax.psum(x, axis_name)


def maximum(
    x: jax.Array, axis: Axis = None, axis_name: AxisName = None, **options: Any
) -> jax.Array:
    """max x over axes of the array, and over those of the mesh.

    >>> import jax.numpy as jnp
    >>> from t2g_jax import numerics
    >>> numerics.maximum(jnp.arange(6.0).reshape(2, 3), axis=-1)
    Array([2., 5.], dtype=float32)
    """
    x = jnp.max(x, axis=axis, **options)
    return x if axis_name is None else lax.pmax(x, axis_name)


def matrix_product(x: jax.Array, kernel: jax.Array, *, axes: int = 1, **options: Any) -> jax.Array:
    """Σ over the last `axes` of x and as many first ones of the kernel; [..., D] · [D, V].

    As a product of two matrices, its gradients too. Products that sum over several axes, as the
    kernel's gradient does over [B, T], make XLA transpose one side, which takes longer than they.
    Not so on a mesh of several devices (see `parallel.sharding.within`): axes that are sharded
    cannot become one axis without being gathered.

    >>> import jax.numpy as jnp
    >>> from t2g_jax import numerics
    >>> numerics.matrix_product(jnp.ones((2, 3, 4)), jnp.ones((4, 5))).shape
    (2, 3, 5)
    """
    if jax.sharding.get_abstract_mesh().size > 1:
        return jnp.tensordot(x, kernel, axes=axes, **options)
    shape = (*x.shape[: x.ndim - axes], *kernel.shape[axes:])
    inner = math.prod(kernel.shape[:axes])
    product = jnp.matmul(x.reshape(-1, inner), kernel.reshape(inner, -1), **options)
    return product.reshape(shape)


def soft_capped(x: jax.Array, cap: float) -> jax.Array:
    """cap · tanh(x / cap), Gemma 2, arXiv 2408.00118; x as it is if cap is 0.

    >>> import jax.numpy as jnp
    >>> from t2g_jax import numerics
    >>> numerics.soft_capped(jnp.array([0.0, 1e9]), cap=30.0)
    Array([ 0., 30.], dtype=float32)
    """
    return cap * jnp.tanh(x / cap) if cap else x
