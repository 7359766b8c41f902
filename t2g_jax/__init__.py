"""Reinforcement learning from text feedback in JAX.

Importing this gives the pure functions of arrays, which need no model, config or I/O of ours:
losses, advantages, KL, log-probabilities, reductions and spans. The rest is imported by its own
name, `t2g_jax.models` and so on.
"""

from t2g_jax import advantages, kl, logprobs, losses, reductions, spans
from t2g_jax.advantages import (
    first_turn,
    gae,
    group_centered,
    group_centred,
    leave_one_out,
    turn_returns,
    whiten,
)
from t2g_jax.logprobs import (
    LogProbs,
    distillation_from_hidden,
    full_kl_from_hidden,
    token_logprobs,
)
from t2g_jax.losses import (
    cispo,
    clipped_surrogate,
    clipped_value,
    feedback_nll,
    gspo,
    importance_ratio,
    logit_distillation,
    reinforce,
    self_distillation,
    sequence_ratio,
    span_reward_cross_entropy,
)
from t2g_jax.reductions import Reduction, masked_mean, masked_sum, reduce, sequence_sum
from t2g_jax.spans import Quote, align, span_mask, to_token_spans, token_rewards

__version__ = "0.1.0"

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
    "feedback_nll",
    "first_turn",
    "full_kl_from_hidden",
    "gae",
    "group_centered",
    "group_centred",
    "gspo",
    "importance_ratio",
    "kl",
    "leave_one_out",
    "logit_distillation",
    "logprobs",
    "losses",
    "masked_mean",
    "masked_sum",
    "reduce",
    "reductions",
    "reinforce",
    "self_distillation",
    "sequence_ratio",
    "sequence_sum",
    "span_mask",
    "span_reward_cross_entropy",
    "spans",
    "to_token_spans",
    "token_logprobs",
    "token_rewards",
    "turn_returns",
    "whiten",
]
