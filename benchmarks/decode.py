"""Sampling: tokens a second against `generate` of `transformers`."""

from __future__ import annotations

import jax
import numpy as np
import torch

from benchmarks.measure import Section, compared, in_turns
from benchmarks.twins import generate, shape, twins
from t2g_jax.sampling.distribution import Sampling
from t2g_jax.sampling.sampler import sample


def measure(*, small: bool = False) -> Section:
    rows, prompt, new, turns = (2, 4, 4, 1) if small else (32, 64, 64, 9)
    config = shape(small=small)
    params, model = twins(config)
    tokens = np.random.default_rng(0).integers(1, config.vocab_size, (rows, prompt))
    tokens, lengths = tokens.astype(np.int32), np.full(rows, prompt, np.int32)
    keys = jax.random.split(jax.random.key(0), rows)
    theirs = torch.tensor(tokens, dtype=torch.long)

    def ours(temperature=1.0):
        sampling = Sampling(new, stop_ids=(), temperature=temperature)
        return jax.device_get(
            sample(params, tokens, lengths, keys, config=config, sampling=sampling)
        )

    taken = in_turns(ours, lambda: generate(model, theirs, new), turns=turns)
    greedy = generate(model, theirs, new, greedy=True)[:, prompt:].numpy()
    same = np.mean(ours(temperature=0.0).tokens == greedy)
    text = f"""
{rows} prompts of {prompt} tokens, {new} new ones each, temperature 1, float32, {config.layers}
layers × {config.width}, vocabulary {config.vocab_size:,}, the same weights. `transformers` samples
only; t2g_jax returns the log-probability of every token too. Greedily, {100 * same:.1f} % of the
tokens are equal.
"""
    row = taken.row("sampling", "≥ 3 ×", work=rows * new, unit="tokens/s")
    return compared("Decoding", text, row, theirs="transformers `generate`")
