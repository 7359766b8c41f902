"""A mixture of experts: each token goes through the few MLPs that its router prefers.

"Outrageously Large Neural Networks", Shazeer et al., arXiv 1701.06538. No token is dropped: tokens
are sorted by expert, and one ragged matrix product serves all experts, whatever each got.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

Array = jax.Array


def mixture(
    x: Array,
    router: Array,
    gate: Array,
    up: Array,
    down: Array,
    *,
    chosen: int,
    normalize: bool,
    activation: Callable[[Array], Array],
) -> Array:
    """Σₑ pₑ downₑ(act(gateₑ x) · upₑ x) over the `chosen` experts e of each token.

    Args:
      x: [n, D].
      router: [D, E]; p = softmax(x router), in float32.
      gate, up: [E, D, F]. down: [E, F, D].
      chosen: experts of a token, the most likely ones.
      normalize: make their p sum to 1.

    Returns:
      [n, D] in the type of x.
    """
    probs = jax.nn.softmax((x @ router).astype(jnp.float32))
    weights, experts = jax.lax.top_k(probs, chosen)
    if normalize:
        weights /= jnp.sum(weights, -1, keepdims=True)
    order = jnp.argsort(experts.reshape(-1))
    sizes = jnp.bincount(experts.reshape(-1), length=router.shape[1]).astype(jnp.int32)
    sorted_x = x[order // chosen]
    hidden = activation(jax.lax.ragged_dot(sorted_x, gate, sizes))
    hidden *= jax.lax.ragged_dot(sorted_x, up, sizes)
    out = jax.lax.ragged_dot(hidden, down, sizes)
    by_token = out[jnp.argsort(order)].reshape(*experts.shape, -1)
    return jnp.einsum("nkd,nk->nd", by_token, weights.astype(x.dtype))
