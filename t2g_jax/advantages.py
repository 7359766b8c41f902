"""Advantages and returns: what the losses weigh log-probabilities with.

All of them are targets: no gradient flows through any result of this module. Masks are boolean or
float (non-zero is on), `where=` is the mask by the name that it has in jax.numpy and optax, and
without either everything counts. Whatever sits outside the mask, NaN included, has no effect, and
results are zero there.

How they hang together: with γ = λ = 1 and no values, `gae` is `turn_returns` of the tokens, the
rewards still to come. `leave_one_out` is n/(n−1) times `group_centered`, and `first_turn` is
`group_centered` with the mean of other rewards as its baseline.

Inside `jax.shard_map` each device sees what it holds. Give `axis_name` where a batch (`whiten`) or
a group is split over the devices of an axis of the mesh: the means are then those of the whole.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from t2g_jax.deprecation import keep_old_names
from t2g_jax.numerics import (
    Axis,
    AxisName,
    check_axis,
    check_number,
    maximum,
    same_shape,
    the_mask,
    total,
)

# Under the square root when dividing by a standard deviation, as the Text2Grad authors have it.
VARIANCE_EPSILON = 1e-8

# Values that are further apart by no more than so many units of their own rounding count as equal.
ROUNDING = 8

keep_old_names(__name__, {"group_centred": "group_centered"})


def gae(
    token_rewards: ArrayLike,
    values: ArrayLike,
    mask: ArrayLike | None = None,
    *,
    gamma: float = 1.0,
    gae_lambda: float = 0.95,
    where: ArrayLike | None = None,
    axis: int = -1,
) -> tuple[jax.Array, jax.Array]:
    """Generalized advantage estimation along the masked tokens of each row.

    δₜ = rₜ + γ V₍ₜ₊₁₎ − Vₜ,   Aₜ = Σₗ (γλ)ˡ δ₍ₜ₊ₗ₎,   returns = A + V,   t counting only tokens
    with mask 1; V after the last of them is 0. With λ = 1 the returns are the discounted rewards
    still to come, whatever the values; with λ = 0 they are rₜ + γ V₍ₜ₊₁₎.

    "High-Dimensional Continuous Control Using Generalized Advantage Estimation", Schulman et al.,
    arXiv 1506.02438, Eq. 16. Unlike the Text2Grad authors' code, credit crosses masked tokens.

    >>> from t2g_jax import advantages
    >>> rewards, values, mask = [[0.0, 9.0, 1.0]], [[0.5, 9.0, 0.5]], [[1, 0, 1]]
    >>> advantages.gae(rewards, values, mask, gae_lambda=1.0)
    (Array([[0.5, 0. , 0.5]], dtype=float32), Array([[1., 0., 1.]], dtype=float32))

    Args:
      token_rewards: [..., T] float, span rewards minus the KL penalty.
      values: [..., T] float, V of the state before each token.
      mask: [..., T] bool or float, 1 on completion tokens; or [..., 1].
      gamma, gae_lambda: discount and trace decay, in [0, 1]. Traced, they are not checked.
      where: the mask by another name.
      axis: the tokens'.

    Returns:
      advantages, returns: [..., T] float32 (float64 from float64), zero where mask is 0; no
      gradient flows through them.

    Raises:
      ValueError: shapes differ, mask and where are both given, there is no such axis, or gamma or
        gae_lambda is not in [0, 1].
    """
    check_number("gamma", gamma, 0, 1)
    check_number("gae_lambda", gae_lambda, 0, 1)
    mask = the_mask(token_rewards, mask, where, like="token_rewards")
    rewards, values, mask = same_shape(token_rewards=token_rewards, values=values, mask=mask)
    check_axis("token_rewards", rewards, axis)
    keep = mask != 0
    rewards = lax.stop_gradient(jnp.where(keep, rewards, 0))
    values = lax.stop_gradient(jnp.where(keep, values, 0))
    last = (jnp.moveaxis(x, axis, -1) for x in (rewards, values, keep))
    advantages = jnp.moveaxis(_from_the_end(*last, gamma, gae_lambda), -1, axis)
    return advantages, advantages + values


@jax.jit  # a scan outside of jit is compiled at every call, and each program is kept
def _from_the_end(
    rewards: jax.Array, values: jax.Array, keep: jax.Array, gamma: float, gae_lambda: float
) -> jax.Array:
    """The sums of `gae`, from the last token to the first."""
    Carry = tuple[jax.Array, jax.Array]

    def step(
        carry: Carry, token: tuple[jax.Array, jax.Array, jax.Array]
    ) -> tuple[Carry, jax.Array]:
        next_advantage, next_value = carry
        reward, value, keep = token
        delta = reward + gamma * next_value - value
        advantage = delta + gamma * gae_lambda * next_advantage
        # A masked token hands the state of the token after it to the token before it.
        carry = jnp.where(keep, advantage, next_advantage), jnp.where(keep, value, next_value)
        return carry, carry[0]

    tokens = jax.tree.map(lambda x: jnp.moveaxis(x, -1, 0), (rewards, values, keep))
    after_the_last = jnp.zeros_like((rewards + values)[..., 0])
    _, advantages = lax.scan(step, (after_the_last, after_the_last), tokens, reverse=True, unroll=8)
    return jnp.where(keep, jnp.moveaxis(advantages, 0, -1), 0)


def whiten(
    x: ArrayLike,
    mask: ArrayLike | None = None,
    *,
    shift_mean: bool = True,
    where: ArrayLike | None = None,
    axis: Axis = None,
    axis_name: AxisName = None,
) -> jax.Array:
    """(x − mean) / √(var + 1e-8) over the masked entries, plus the mean unless `shift_mean`.

    The variance is the unbiased one. Where fewer than two entries are on, it counts as 0. Entries
    that are equal, or differ by rounding only (see `ROUNDING`), deviate by 0 and not by 0 / 1e-4.
    Over axis 1 it is `group_centered` with `scale_by_std`.

    >>> from t2g_jax import advantages
    >>> advantages.whiten([1.0, 2.0, 3.0, 99.0], [1, 1, 1, 0])
    Array([-1.,  0.,  1.,  0.], dtype=float32)

    Args:
      x: any shape, float.
      mask: like x, bool or float; or [..., 1].
      shift_mean: False keeps the mean and only rescales the deviations from it.
      where: the mask by another name.
      axis: over which axes mean and variance are taken; None: over all.
      axis_name: axis of the mesh, inside `jax.shard_map`, over which they are taken as well.
        Without it each device whitens what it holds by itself.

    Returns:
      like x, zero where mask is 0.

    Raises:
      ValueError: shapes differ, or mask and where are both given.
    """
    x, mask = same_shape(x=x, mask=the_mask(x, mask, where, like="x"))
    keep, over = mask != 0, _Over(axis, axis_name)
    x, exponent = _in_units(x, keep, over)
    deviations, mean = _deviations(x, keep, over)
    whitened = _scaled(deviations, x, keep, exponent, over)
    if not shift_mean:
        whitened = whitened + jnp.ldexp(mean, exponent)
    return lax.stop_gradient(jnp.where(keep, whitened, 0))


def turn_returns(
    rewards: ArrayLike,
    turn_mask: ArrayLike | None = None,
    *,
    gamma: float,
    where: ArrayLike | None = None,
    axis: int = -1,
) -> jax.Array:
    """Discounted return of every turn: R_h = Σ_{k ≥ h} γ^(k−h) r_k over the turns that took place.

    The returns of `gae` with λ = 1, a turn in the place of a token; but turns keep their distance
    where one between them is masked.

    "Expanding the Capabilities of Reinforcement Learning via Text Feedback" (RLTF),
    arXiv 2602.02482; the authors use γ = 0.1.

    >>> from t2g_jax import advantages
    >>> rewards, took_place = [[0.0, 0.0, 1.0], [1.0, 9.0, 9.0]], [[1, 1, 1], [1, 0, 0]]
    >>> advantages.turn_returns(rewards, took_place, gamma=0.5)
    Array([[0.25, 0.5 , 1.  ],
           [1.  , 0.  , 0.  ]], dtype=float32)

    Args:
      rewards: [..., H] float.
      turn_mask: [..., H] bool or float, 1 on turns that took place. A correct turn ends the
        episode, so the turns after it are 0.
      gamma: discount per turn, in [0, 1]. Traced, it is not checked.
      where: the mask by another name.
      axis: the turns'.

    Returns:
      [..., H], zero where turn_mask is 0.

    Raises:
      ValueError: shapes differ, turn_mask and where are both given, there is no such axis, or gamma
        is not in [0, 1].
    """
    check_number("gamma", gamma, 0, 1)
    turn_mask = the_mask(rewards, turn_mask, where, like="rewards", name="turn_mask")
    rewards, turn_mask = same_shape(rewards=rewards, turn_mask=turn_mask)
    check_axis("rewards", rewards, axis)
    keep = turn_mask != 0
    rewards = jnp.moveaxis(jnp.where(keep, rewards, 0), axis, -1)
    turns = jnp.arange(rewards.shape[-1])
    ahead = turns[None, :] - turns[:, None]
    discount = jnp.where(ahead >= 0, jnp.asarray(gamma, rewards.dtype) ** jnp.abs(ahead), 0)
    returns = jnp.moveaxis(jnp.sum(discount * rewards[..., None, :], axis=-1), -1, axis)
    return lax.stop_gradient(jnp.where(keep, returns, 0))


def group_centered(
    returns: ArrayLike,
    mask: ArrayLike | None = None,
    *,
    scale_by_std: bool = False,
    where: ArrayLike | None = None,
    axis: int = 1,
    axis_name: AxisName = None,
) -> jax.Array:
    """Returns minus their mean over the group's trajectories that have them.

    A = R − mean_G R, divided by √(var_G + 1e-8) (unbiased) if `scale_by_std`. A group whose returns
    are equal gets 0, also if they differ by rounding and are to be scaled (see `ROUNDING`).

    GRPO, arXiv 2402.03300; without the division by the standard deviation as in Dr. GRPO,
    arXiv 2503.20783, and RLTF, arXiv 2602.02482.

    >>> from t2g_jax import advantages
    >>> advantages.group_centered([[0.0, 1.0, 2.0], [1.0, 1.0, 1.0]])  # 2 prompts, 3 completions
    Array([[-1.,  0.,  1.],
           [ 0.,  0.,  0.]], dtype=float32)

    One advantage for each completion, [P, G], is one for all its tokens: `.reshape(-1, 1)` makes it
    what the losses take beside [B, T] log-probabilities.

    Args:
      returns: [P, G, ...] float: prompts, completions of each, and for instance turns.
      mask: like returns, bool or float, 1 where that trajectory has that turn.
      scale_by_std: divide by the standard deviation over the group.
      where: the mask by another name.
      axis: the group's.
      axis_name: axis of the mesh, inside `jax.shard_map`, if groups are split over it. Without it
        every group must be whole on one device.

    Returns:
      like returns, zero where mask is 0.

    Raises:
      ValueError: shapes differ, there is no such axis, or mask and where are both given.
    """
    mask = the_mask(returns, mask, where, like="returns")
    returns, mask = same_shape(returns=returns, mask=mask)
    _require_group_axis("returns", returns, axis)
    keep, over = mask != 0, _Over(axis, axis_name)
    returns, exponent = _in_units(returns, keep, over)
    centered, _ = _deviations(returns, keep, over)
    if scale_by_std:
        return lax.stop_gradient(_scaled(centered, returns, keep, exponent, over))
    return lax.stop_gradient(jnp.ldexp(centered, exponent))


def leave_one_out(
    returns: ArrayLike,
    mask: ArrayLike | None = None,
    *,
    where: ArrayLike | None = None,
    axis: int = 1,
    axis_name: AxisName = None,
) -> jax.Array:
    """Returns minus the mean of the group's *other* trajectories.

    Aᵢ = Rᵢ − 1/(n−1) Σ_{j≠i} Rⱼ = n/(n−1) (Rᵢ − mean_G R), n trajectories; 0 where there is one.

    RLOO, "Back to Basics", Ahmadian et al., arXiv 2402.14740, Eq. 7: a baseline that does not
    depend on the sample that it is taken from, so that the policy gradient stays unbiased.

    >>> from t2g_jax import advantages
    >>> advantages.leave_one_out([[0.0, 1.0, 2.0]])
    Array([[-1.5,  0. ,  1.5]], dtype=float32)

    Args, returns, raises: see `group_centered`.
    """
    mask = the_mask(returns, mask, where, like="returns")
    returns, mask = same_shape(returns=returns, mask=mask)
    centered = group_centered(returns, mask, axis=axis, axis_name=axis_name)
    size = total(mask != 0, axis, axis_name, keepdims=True)
    return centered * (size / jnp.maximum(size - 1, 1))


def first_turn(
    final_rewards: ArrayLike,
    first_rewards: ArrayLike,
    mask: ArrayLike | None = None,
    *,
    where: ArrayLike | None = None,
    axis: int = 1,
    axis_name: AxisName = None,
) -> jax.Array:
    """Final rewards minus the group's mean first-turn reward, the baseline of RLTF-SD.

    A = r₁ − mean_G r₀, the mean over all the group's first turns. The mean of r₁ itself, as
    `group_centered` takes it, would make the signal vanish once the second turn always succeeds.
    arXiv 2602.02482. `t2g_jax.first_turn_advantages` is this function.

    >>> from t2g_jax import advantages
    >>> advantages.first_turn([[1.0, 1.0]], [[0.0, 1.0]], [[1, 0]])  # only the first was retried
    Array([[0.5, 0. ]], dtype=float32)

    Args:
      final_rewards: [P, G] float, reward of the turn to distill.
      first_rewards: [P, G] float, reward of every first turn.
      mask: [P, G] bool or float, 1 where there is a later turn to distill. It does not restrict the
        baseline.
      where: the mask by another name.
      axis, axis_name: see `group_centered`.

    Returns:
      [P, G], zero where mask is 0.

    Raises:
      ValueError: shapes differ, there is no such axis, or mask and where are both given.
    """
    mask = the_mask(final_rewards, mask, where, like="final_rewards")
    final_rewards, first_rewards, mask = same_shape(
        final_rewards=final_rewards, first_rewards=first_rewards, mask=mask
    )
    _require_group_axis("final_rewards", final_rewards, axis)
    first_rewards = lax.stop_gradient(first_rewards)
    # Less one of them, so that what is equal leaves exactly 0.
    some = maximum(first_rewards, axis, axis_name, keepdims=True)
    below = total(first_rewards - some, axis, axis_name, keepdims=True)
    size = total(jnp.ones_like(first_rewards), axis, axis_name, keepdims=True)
    return lax.stop_gradient(jnp.where(mask != 0, final_rewards - some - below / size, 0))


class _Over(NamedTuple):
    """What means are taken over: axes of the array, and of the mesh."""

    axis: Axis
    axis_name: AxisName

    def total(self, x: jax.Array) -> jax.Array:
        return total(x, self.axis, self.axis_name, keepdims=True)

    def maximum(self, x: jax.Array, keep: jax.Array, initial: float) -> jax.Array:
        return maximum(x, self.axis, self.axis_name, keepdims=True, where=keep, initial=initial)


def _in_units(x: jax.Array, keep: jax.Array, over: _Over) -> tuple[jax.Array, jax.Array]:
    """x in units of 2ⁿ, n ≥ 0, of which no kept entry has more than one; and n, with x's axes.

    Exact, so that it changes nothing, but sums and squares of large entries cannot overflow.
    """
    x = lax.stop_gradient(x)
    exponent = jnp.maximum(jnp.frexp(over.maximum(jnp.abs(x), keep, 0))[1], 0)
    return jnp.ldexp(x, -exponent), exponent


def _deviations(x: jax.Array, keep: jax.Array, over: _Over) -> tuple[jax.Array, jax.Array]:
    """Deviations of the kept entries from their mean, 0 elsewhere; and the mean, with its axes.

    Taken from the largest entry first: the mean of equal numbers is rounded, their distance is not.
    """
    size = over.total(keep)
    largest = jnp.where(size > 0, over.maximum(x, keep, -jnp.inf), 0)
    below = jnp.where(keep, x - largest, 0)
    mean = over.total(below) / jnp.maximum(size, 1)
    return jnp.where(keep, below - mean, 0), largest + mean


def _scaled(
    deviations: jax.Array, x: jax.Array, keep: jax.Array, exponent: jax.Array, over: _Over
) -> jax.Array:
    """Deviations of x divided by √(unbiased variance + 1e-8); 0 if they are rounding alone.

    Deviations and x are in units of 2^exponent, see `_in_units`; their quotient has none.
    """
    size = over.total(keep)
    variance = over.total(deviations**2) / jnp.maximum(size - 1, 1)
    magnitude, widest = (over.maximum(jnp.abs(v), keep, 0) for v in (x, deviations))
    equal = widest <= ROUNDING * jnp.finfo(x.dtype).eps * magnitude
    epsilon = jnp.ldexp(jnp.asarray(VARIANCE_EPSILON, x.dtype), -2 * exponent)
    return jnp.where(equal, 0, deviations / jnp.sqrt(jnp.where(equal, 1, variance + epsilon)))


def _require_group_axis(name: str, x: jax.Array, axis: int) -> None:
    if x.ndim < 2:
        raise ValueError(f"{name} must be [P, G, ...] with the group on axis {axis}, got {x.shape}")
    check_axis(name, x, axis)
