"""Reinforcement learning from text feedback in JAX.

Importing this gives the pure functions of arrays, which need no model, config or I/O of ours:
losses, advantages, KL, log-probabilities, reductions and spans. The rest is imported by its own
name, `t2g_jax.models` and so on.
"""

from t2g_jax import advantages, kl, logprobs, losses, reductions, spans
from t2g_jax.advantages import first_turn as first_turn_advantages
from t2g_jax.advantages import (
    gae,
    group_centered,
    leave_one_out,
    turn_returns,
    whiten,
)
from t2g_jax.deprecation import keep_old_names
from t2g_jax.logprobs import (
    LogProbs,
    distillation_from_hidden,
    full_kl_from_hidden,
    token_logprobs,
    token_logprobs_from_hidden,
    token_logprobs_from_logits,
    top_k_distillation_from_hidden,
)
from t2g_jax.losses import (
    cispo,
    clipped_surrogate,
    clipped_value,
    gspo,
    importance_ratio,
    logit_distillation,
    masked_importance,
    nll,
    reinforce,
    role_weights,
    sampled_reverse_kl,
    self_distillation,
    sequence_ratio,
    span_reward_cross_entropy,
    top_k_distillation,
    truncated_importance,
)
from t2g_jax.reductions import Reduction, masked_mean, masked_sum, sequence_sum
from t2g_jax.reductions import reduce as reduce_loss
from t2g_jax.spans import Quote, align, span_mask, to_token_spans, token_rewards
from t2g_jax.version import __version__

__all__ = [
    "LogProbs",
    "Quote",
    "Reduction",
    "__version__",
    "advantages",
    "align",
    "cispo",
    "clipped_surrogate",
    "clipped_value",
    "distillation_from_hidden",
    "first_turn_advantages",
    "full_kl_from_hidden",
    "gae",
    "group_centered",
    "gspo",
    "importance_ratio",
    "kl",
    "leave_one_out",
    "logit_distillation",
    "logprobs",
    "losses",
    "masked_importance",
    "masked_mean",
    "masked_sum",
    "nll",
    "reduce_loss",
    "reductions",
    "reinforce",
    "role_weights",
    "sampled_reverse_kl",
    "self_distillation",
    "sequence_ratio",
    "sequence_sum",
    "span_mask",
    "span_reward_cross_entropy",
    "spans",
    "to_token_spans",
    "token_logprobs",
    "token_logprobs_from_hidden",
    "token_logprobs_from_logits",
    "token_rewards",
    "top_k_distillation",
    "top_k_distillation_from_hidden",
    "truncated_importance",
    "turn_returns",
    "whiten",
]

keep_old_names(
    __name__,
    {
        "feedback_nll": "nll",
        "first_turn": "first_turn_advantages",
        "group_centred": "group_centered",
        "reduce": "reduce_loss",
    },
)
