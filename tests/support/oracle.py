"""The mathematics of the methods, written out in NumPy."""

import numpy as np


def log_softmax(logits):
    logits = logits - logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def divergence(kind, policy, reference, sampled, chosen):
    """KL of each token: policy and reference [n, V] log-probabilities, sampled and chosen [n]."""
    if kind == "full":
        return (np.exp(policy) * (policy - reference)).sum(-1)
    ratio = sampled - reference[np.arange(len(chosen)), chosen]
    return {
        "k1": ratio,
        "abs": np.abs(ratio),
        "k2": 0.5 * ratio**2,
        "k3": np.exp(-ratio) - 1 + ratio,
    }[kind]


def generalized_advantages(rewards, values, *, gamma, gae_lambda):
    advantages = np.zeros(len(rewards))
    following = next_value = 0.0
    for t in reversed(range(len(rewards))):
        delta = rewards[t] + gamma * next_value - values[t]
        following = advantages[t] = delta + gamma * gae_lambda * following
        next_value = values[t]
    return advantages


def compared(values, how):
    """Advantages in a group whose members are all there."""
    values = np.asarray(values, np.float64)
    centered = values - values.mean()
    return {
        "centered": centered,
        "scaled": centered / np.sqrt(values.var(ddof=1) + 1e-8),
        "leave_one_out": [v - np.delete(values, i).mean() for i, v in enumerate(values)],
    }[how]


def surrogate(how, logprobs, sampled, advantages, *, low=0.2, high=0.2):
    """Loss of each token."""
    ratio = np.exp(logprobs - sampled)
    clipped = np.clip(ratio, 1 - low, 1 + high)
    return {
        "none": -advantages * logprobs,
        "importance": -ratio * advantages * logprobs,
        "sequence_importance": -np.prod(ratio) * advantages * logprobs,
        "ppo": np.maximum(-ratio * advantages, -clipped * advantages),
        "cispo": -clipped * advantages * logprobs,
    }[how]
