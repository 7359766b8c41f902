"""Losses to minimize: unreduced [B, T] values; `t2g_jax.reductions` divides."""

from t2g_jax.deprecation import keep_old_names
from t2g_jax.losses.distillation import (
    Correction,
    logit_distillation,
    sampled_reverse_kl,
    self_distillation,
    top_k_distillation,
)
from t2g_jax.losses.importance import (
    importance_ratio,
    masked_importance,
    sequence_ratio,
    truncated_importance,
)
from t2g_jax.losses.likelihood import nll, role_weights
from t2g_jax.losses.policy_gradient import cispo, clip_acts, clipped_surrogate, gspo, reinforce
from t2g_jax.losses.span_reward import (
    span_probabilities,
    span_reward_cross_entropy,
    span_targets,
)
from t2g_jax.losses.value import clipped_value, value_clip_acts

__all__ = [
    "Correction",
    "cispo",
    "clip_acts",
    "clipped_surrogate",
    "clipped_value",
    "gspo",
    "importance_ratio",
    "logit_distillation",
    "masked_importance",
    "nll",
    "reinforce",
    "role_weights",
    "sampled_reverse_kl",
    "self_distillation",
    "sequence_ratio",
    "span_probabilities",
    "span_reward_cross_entropy",
    "span_targets",
    "top_k_distillation",
    "truncated_importance",
    "value_clip_acts",
]

keep_old_names(__name__, {"feedback_nll": "nll"})
