"""Sampling for lists of prompts of any length and number, in batches of one compiled shape."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from t2g_jax.errors import T2GError
from t2g_jax.models.decoder import DecoderConfig
from t2g_jax.models.heads import Params
from t2g_jax.parallel.shapes import bucket, round_up
from t2g_jax.parallel.sharding import ROWS, parts, rows_sharding
from t2g_jax.runtime import hosts, preemption
from t2g_jax.runtime.watchdog import beat
from t2g_jax.sampling.distribution import Sampling
from t2g_jax.sampling.sampler import pad_prompts, sample


@dataclasses.dataclass(frozen=True)
class Completion:
    """One sampled completion; the stop token, if it was sampled, is the last token.

    tokens: [n] int32. logprobs, cutoffs: [n] float32, see `sampler.Completions`.
    ended: whether a stop token was sampled; otherwise the length limit cut the completion off.
    broken: whether it stops where a logit was NaN or Inf; it is then no sample of the policy.
    """

    tokens: np.ndarray
    logprobs: np.ndarray
    cutoffs: np.ndarray
    ended: bool
    broken: bool = False


def generate(
    params: Params,
    prompts: Sequence[Sequence[int]],
    key: jax.Array,
    *,
    config: DecoderConfig,
    sampling: Sampling,
    mesh: Mesh,
    batch_size: int,
    context_length: int,
) -> list[Completion]:
    """Samples one completion for each prompt; the i-th depends on the prompt, the key and i only.

    Args:
      params: the policy.
      prompts: token lists.
      key: PRNG key.
      batch_size: most rows sampled at once; rounded up, see `round_up`. Fewer prompts are padded to
        half of it, so that numbers that vary from step to step compile three programs at most.
      context_length: most tokens a row may have.

    Raises:
      T2GError: a prompt leaves no room for a completion.
    """
    if not prompts:
        return []
    longest = max(map(len, prompts))
    if longest + sampling.max_new_tokens > context_length:
        raise T2GError(
            f"a prompt of {longest} tokens and {sampling.max_new_tokens} new ones exceed "
            f"model.context_length={context_length}: raise it, or lower sampling.max_new_tokens"
        )
    shards = parts(mesh, *ROWS, "context")
    rows = round_up(min(batch_size, max(len(prompts), batch_size // 2)), shards)
    width = bucket(prompts, most=context_length - sampling.max_new_tokens)
    completions: list[Completion] = []
    for start in range(0, len(prompts), rows):
        chunk = prompts[start : start + rows]
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, np.arange(start, start + rows))
        completions += generate_rows(
            params, chunk, keys, width=width, config=config, sampling=sampling, mesh=mesh
        )
        beat()
        preemption.stop_if_asked()
    return completions


def generate_rows(
    params: Params,
    prompts: Sequence[Sequence[int]],
    keys: jax.Array,
    *,
    width: int,
    config: DecoderConfig,
    sampling: Sampling,
    mesh: Mesh,
) -> list[Completion]:
    """Samples one completion for each prompt at once, each with a key of its own.

    Args:
      keys: [rows], a multiple of the devices that rows are spread over; more than there are prompts
        if their number is none. A completion depends on its own prompt and key alone.
      width: what prompts are padded to.
    """
    tokens, lengths = pad_prompts(prompts, width=width, rows=len(keys))
    inputs = hosts.place((tokens, lengths, keys), rows_sharding(mesh))
    out = hosts.fetch(sample(params, *inputs, config=config, sampling=sampling, mesh=mesh))
    completions = []
    for i in range(len(prompts)):
        n = int(out.lengths[i])
        completions.append(
            Completion(
                out.tokens[i, :n],
                out.logprobs[i, :n],
                out.cutoffs[i, :n],
                ended=bool(out.ended[i]),
                broken=bool(out.broken[i]),
            )
        )
    return completions
