"""What a training run carries from step to step, and the optimizers that move it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.typing import ArrayLike

from t2g_jax.config import OptimizerConfig
from t2g_jax.models.heads import Params
from t2g_jax.training.rounding import in_float32


class TrainState(struct.PyTreeNode):
    """Parameters, optimizer state and what a method carries on (e.g. an adaptive KL coefficient).

    `step` counts optimizer updates; `skipped`, those left out in a row since the last one, as loss
    or gradients were not finite. `params` are those that are trained, see `lora.split`. In a run
    with a token budget `carry` has the "progress", the share of it that is spent.
    """

    step: jax.Array
    params: Params
    opt_state: optax.OptState
    carry: dict[str, jax.Array] = struct.field(default_factory=dict)
    skipped: jax.Array = struct.field(default_factory=lambda: jnp.zeros((), jnp.int32))

    @classmethod
    def create(
        cls,
        params: Params,
        optimizer: optax.GradientTransformation,
        carry: dict[str, jax.Array] | None = None,
    ) -> TrainState:
        return cls(jnp.zeros((), jnp.int32), params, optimizer.init(params), carry or {})


Rate = Callable[..., ArrayLike]
"""The learning rate from the number of updates made and, without `updates`, the progress."""


def learning_rate(config: OptimizerConfig, updates: int | None) -> Rate:
    """Linear warm-up, then constant, or down to zero linearly or along a cosine.

    Args:
      config: `learning_rate`, `schedule`, `warmup_steps`.
      updates: optimizer updates of the whole run. None: nobody knows, and the rate falls with the
        progress p of the run, which it is also given: peak · min(update / warmup, 1) · (1 − p), or
        ½ (1 + cos πp) in place of 1 − p.
    """
    peak, warmup = config.learning_rate, config.warmup_steps
    rest = 1 if updates is None else max(updates - warmup, 1)
    after = {
        "constant": lambda: optax.constant_schedule(peak),
        "linear": lambda: optax.linear_schedule(peak, 0.0, rest),
        "cosine": lambda: optax.cosine_decay_schedule(peak, rest),
    }[config.schedule]()
    if updates is None:
        warm = optax.linear_schedule(0.0, 1.0, warmup) if warmup else optax.constant_schedule(1.0)
        return lambda update, progress: warm(update) * after(progress)
    if not warmup:
        return after
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), after], [warmup])


def scale_by_rate(rate: Rate) -> optax.GradientTransformationExtraArgs:
    """As `optax.scale_by_schedule`, for a rate that depends on `progress` too."""

    def init(params: Params) -> optax.ScaleByScheduleState:
        del params
        return optax.ScaleByScheduleState(jnp.zeros((), jnp.int32))

    def update(
        updates: Params,
        state: optax.ScaleByScheduleState,
        params: Params | None = None,
        *,
        progress: ArrayLike,
        **extra: Any,
    ) -> tuple[Params, optax.ScaleByScheduleState]:
        del params, extra
        scaled = optax.tree.scale(rate(state.count, progress), updates)
        return scaled, optax.ScaleByScheduleState(optax.safe_increment(state.count))

    return optax.GradientTransformationExtraArgs(init, update)


def make_optimizer(
    config: OptimizerConfig, updates: int | None
) -> optax.GradientTransformationExtraArgs:
    """AdamW or Adafactor behind a clip by global norm; norms and biases are not decayed.

    All of it is computed in float32, for bfloat16 parameters see `rounding`.

    Args:
      updates: of the whole run. None: the learning rate follows the progress of the run, which
        `update` is then to be told, as `progress`.
    """
    rate = learning_rate(config, updates)
    schedule = optax.scale_by_schedule(rate) if updates is not None else scale_by_rate(rate)

    def decayed(params):
        return jax.tree.map_with_path(
            lambda path, _: getattr(path[-1], "key", None) not in ("scale", "bias"), params
        )

    if config.name == "adamw":
        direction = optax.adamw(
            1.0,
            b1=config.b1,
            b2=config.b2,
            eps=config.eps,
            weight_decay=config.weight_decay,
            mask=decayed,
            mu_dtype=jnp.dtype(config.moment_dtype),
        )
    else:
        # With a learning rate of its own it would decay weights by the whole rate at every update.
        direction = optax.adafactor(
            None,
            multiply_by_parameter_scale=False,
            weight_decay_rate=config.weight_decay or None,
            weight_decay_mask=decayed,
        )
    clip = optax.clip_by_global_norm(config.clip_norm)
    return in_float32(optax.chain(clip, direction, schedule), config.rounding)
