"""Log-probabilities, entropy and full KL over 128,000 tokens, without [B, T, V] in memory."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.measure import Section, in_turns
from t2g_jax import kl, logprobs


def measure(*, small: bool = False) -> Section:
    rows, length, width, vocabulary, turns = (
        (1, 4, 8, 8192 + 8, 1) if small else (8, 128, 256, 128_000, 3)
    )
    rng = np.random.default_rng(0)

    def random(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32)

    inputs = {
        "policy": (random(rows, length, width), 0.05 * random(width, vocabulary)),
        "reference": (random(rows, length, width), 0.05 * random(width, vocabulary)),
        "tokens": rng.integers(0, vocabulary, (rows, length)),
        "weights": random(rows, length),
    }
    inputs = jax.device_put(tuple(inputs.values()))
    table = []
    for name, ours, theirs in (
        ("log-probabilities and entropy", _logprobs, _logprobs_materialized),
        ("full KL", _full_kl, _full_kl_materialized),
    ):
        programs = [_gradient(function).lower(*inputs).compile() for function in (ours, theirs)]
        apart = _apart(*(program(*inputs) for program in programs))
        taken = in_turns(
            *(lambda p=p: jax.block_until_ready(p(*inputs)) for p in programs), turns=turns
        )
        memory = [p.memory_analysis().temp_size_in_bytes / 1e6 for p in programs]
        slower = np.median([a / b for a, b in zip(taken.ours, taken.theirs, strict=True)])
        table.append(
            [
                name,
                *[f"{megabytes:,.1f} MB" for megabytes in memory],
                f"**1/{memory[1] / memory[0]:.1f}** (≤ 1/8)",
                *taken.row("", "")[1:3],
                f"**{slower:.2f} ×** (≤ 1.3 ×)",
                f"{apart:.0e}",
            ]
        )
    text = f"""
Forward and backward pass to hidden states [{rows}, {length}, {width}] and the LM head
[{width}, {vocabulary:,}], float32, by our chunks and by plain `jax.numpy` over [B, T, V]. Memory is
what the compiled program sets aside beyond inputs and results (`memory_analysis`); targets are in
brackets. The last column: how far the two are apart, relative to the largest value.
"""
    header = ["", "memory", "materialized", "share", "time", "materialized", "takes", "apart"]
    return Section("Large vocabularies", text, header, table)


def _gradient(function):
    def loss(policy, reference, tokens, weights):
        return jnp.mean(weights * function(policy, reference, tokens))

    return jax.jit(jax.value_and_grad(loss))


def _apart(ours, theirs) -> float:
    return max(
        float(jnp.max(jnp.abs(a - b)) / jnp.max(jnp.abs(b)))
        for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True)
    )


def _logprobs(policy, reference, tokens):
    scored = logprobs.token_logprobs_from_hidden(*policy, tokens)
    return scored.logprobs + 0.1 * scored.entropy


def _logprobs_materialized(policy, reference, tokens):
    log_probs = jax.nn.log_softmax(policy[0] @ policy[1])
    own = jnp.take_along_axis(log_probs, tokens[..., None], -1)[..., 0]
    return own - 0.1 * jnp.sum(jnp.exp(log_probs) * log_probs, -1)


def _full_kl(policy, reference, tokens):
    return logprobs.full_kl_from_hidden(*policy, *reference)


def _full_kl_materialized(policy, reference, tokens):
    return kl.full(*(jax.nn.log_softmax(hidden @ kernel) for hidden, kernel in (policy, reference)))
