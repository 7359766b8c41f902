"""What a training run carries from step to step, and the optimizers that move it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax
from flax import struct

from t2g_jax.config import OptimizerConfig
from t2g_jax.models.heads import Params
from t2g_jax.training.rounding import in_float32


class TrainState(struct.PyTreeNode):
    """Parameters, optimizer state and what a method carries on (e.g. an adaptive KL coefficient).

    `step` counts optimizer updates; `skipped`, those left out in a row since the last one, as loss
    or gradients were not finite. `params` are those that are trained, see `lora.split`.
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


def learning_rate(config: OptimizerConfig, updates: int) -> optax.Schedule:
    """Linear warm-up, then constant, or down to zero linearly or along a cosine.

    Args:
      config: `learning_rate`, `schedule`, `warmup_steps`.
      updates: optimizer updates of the whole run.
    """
    peak, warmup = config.learning_rate, config.warmup_steps
    rest = max(updates - warmup, 1)
    after = {
        "constant": lambda: optax.constant_schedule(peak),
        "linear": lambda: optax.linear_schedule(peak, 0.0, rest),
        "cosine": lambda: optax.cosine_decay_schedule(peak, rest),
    }[config.schedule]()
    if not warmup:
        return after
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), after], [warmup])


def make_optimizer(config: OptimizerConfig, updates: int) -> optax.GradientTransformation:
    """AdamW or Adafactor behind a clip by global norm; norms and biases are not decayed.

    All of it is computed in float32, for bfloat16 parameters see `rounding`.
    """
    schedule = learning_rate(config, updates)

    def decayed(params):
        return jax.tree.map_with_path(
            lambda path, _: getattr(path[-1], "key", None) not in ("scale", "bias"), params
        )

    if config.name == "adamw":
        core = optax.adamw(
            schedule,
            b1=config.b1,
            b2=config.b2,
            eps=config.eps,
            weight_decay=config.weight_decay,
            mask=decayed,
            mu_dtype=jnp.dtype(config.moment_dtype),
        )
    else:
        # With a learning rate of its own it would decay weights by the whole rate at every update.
        core = optax.chain(
            optax.adafactor(
                None,
                multiply_by_parameter_scale=False,
                weight_decay_rate=config.weight_decay or None,
                weight_decay_mask=decayed,
            ),
            optax.scale_by_schedule(schedule),
        )
    clipped = optax.chain(optax.clip_by_global_norm(config.clip_norm), core)
    return in_float32(clipped, config.rounding)
