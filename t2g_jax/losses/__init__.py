"""Losses to minimise: unreduced [B, T] values; `t2g_jax.reductions` divides."""

from t2g_jax.losses.distillation import logit_distillation, self_distillation
from t2g_jax.losses.feedback import feedback_nll
from t2g_jax.losses.policy_gradient import (
    cispo,
    clipped_surrogate,
    gspo,
    importance_ratio,
    reinforce,
    sequence_ratio,
)
from t2g_jax.losses.span_reward import span_reward_cross_entropy
from t2g_jax.losses.value import clipped_value

__all__ = [
    "cispo",
    "clipped_surrogate",
    "clipped_value",
    "feedback_nll",
    "gspo",
    "importance_ratio",
    "logit_distillation",
    "reinforce",
    "self_distillation",
    "sequence_ratio",
    "span_reward_cross_entropy",
]
