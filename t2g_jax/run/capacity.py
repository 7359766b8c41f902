"""Whether what a configuration asks for can be held at all, before any of it is made.

What is counted here is less than a run takes: parameters and their gradients, the keys and values
of completions, and a few hundred bytes for a row on the host. So what is refused could not have
run; `t2g plan` says whether the rest will.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp

from t2g_jax.config import Config, section_of
from t2g_jax.errors import T2GError
from t2g_jax.models.decoder import DecoderConfig

ROW_BYTES = 500
"""Bytes, at the least, of a prompt, its tokens, a completion and its score, as Python objects."""
TOKEN_BYTES = 50
"""Bytes of an entry of a vocabulary while it is learned."""


def check(config: Config, model: DecoderConfig | None = None, *, learns: bool = True) -> None:
    """Checks that each part of a run can be held in all the memory there is.

    Args:
      model: of a pretrained model; None: it is as the config says.
      learns: whether anything is trained. Else parameters are read, and answers to tests sampled.

    Raises:
      T2GError: one cannot; the keys that ask for it are named.
    """
    for where, there, parts in (
        ("this machine has", host_bytes(), _on_host(config, learns)),
        ("the devices have", device_bytes(), _on_devices(config, model, learns)),
    ):
        for what, needed in parts:
            if needed > there:
                raise T2GError(
                    f"{what} would need at least {needed / 2**30:,.0f} GiB, but {where} "
                    f"{there / 2**30:,.0f} GiB; choose smaller ones, or more machines"
                )


def host_bytes() -> int:
    """Memory of this machine, or what its container may take of it."""
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.is_file() and (text := limit.read_text("ascii").strip()).isdigit():
        there = min(there, int(text))
    return there


def device_bytes() -> int:
    """Memory of all devices of the run; those without their own use that of their machine."""
    limits = [(device.memory_stats() or {}).get("bytes_limit") for device in jax.local_devices()]
    if all(limits):
        return jax.process_count() * sum(limits)
    return jax.process_count() * host_bytes()


def check_model(config: Config, model: DecoderConfig, source: str) -> None:
    """Checks that the parameters of a pretrained model can be held. Raises as `check`."""
    needed, there = _weights(config, model), device_bytes()
    if needed > there:
        raise T2GError(
            f"{source} would need at least {needed / 2**30:,.0f} GiB as {config.model.param_dtype}"
            f", but the devices have {there / 2**30:,.0f} GiB; choose a smaller model, more "
            "machines, or model.param_dtype: bfloat16"
        )


def _weights(config: Config, model: DecoderConfig | None) -> int:
    """Bytes of the parameters, heads aside."""
    shape = config.model if model is None else model
    head = shape.head_width or shape.width // shape.heads
    attention = 2 * shape.width * head * (shape.heads + shape.kv_heads)
    mlp = 3 * shape.width * shape.mlp_width
    experts, vocabulary = (1, 0) if model is None else (model.experts or 1, model.vocab_size)
    count = shape.layers * (attention + experts * mlp) + vocabulary * shape.width
    return count * jnp.dtype(config.model.param_dtype).itemsize


def _on_devices(
    config: Config, model: DecoderConfig | None, learns: bool
) -> Iterator[tuple[str, int]]:
    shape = config.model if model is None else model
    head = shape.head_width or shape.width // shape.heads
    copies = 2 if learns and config.sft.steps else 1  # gradients
    yield (
        config.model.pretrained or "model.layers, width, heads and mlp_width",
        copies * _weights(config, model),
    )
    yield (
        "lora.rank and model.layers, width",
        2 * 4 * config.lora.rank * shape.layers * shape.width,
    )
    of_a_token = 2 * shape.layers * shape.kv_heads * head
    of_a_token *= jnp.dtype(config.model.compute_dtype).itemsize
    for name, rows in _rounds(config, learns):
        yield (
            f"{name}, sampling.max_new_tokens and model.layers, kv_heads",
            rows * config.sampling.max_new_tokens * of_a_token,
        )


def _rounds(config: Config, learns: bool) -> Iterator[tuple[str, int]]:
    """Completions that are sampled at once, with the keys that say how many."""
    for method in config.methods if learns else ():
        section = section_of(method)
        settings = config.of_method(method)
        rows = settings.prompts_per_step * settings.group_size
        yield (
            f"{section}.prompts_per_step, group_size (or rows_at_once)",
            min(settings.rows_at_once or rows, rows),
        )
    tests = min(config.evaluate.batch_size, config.task.test_size)
    yield (
        "evaluate.batch_size and samples_per_prompt",
        tests * config.evaluate.samples_per_prompt,
    )
    if learns:
        yield (
            "annotate.batch_size and samples_per_prompt",
            min(config.annotate.batch_size, config.annotate.prompts)
            * config.annotate.samples_per_prompt,
        )


def _on_host(config: Config, learns: bool) -> Iterator[tuple[str, int]]:
    yield (
        "task.test_size and evaluate.samples_per_prompt",
        ROW_BYTES * config.task.test_size * config.evaluate.samples_per_prompt,
    )
    if not learns:
        return
    if config.model.pretrained is None:
        yield (
            "tokenizer.vocabulary_size",
            TOKEN_BYTES * config.tokenizer.vocabulary_size,
        )
        yield (
            "tokenizer.texts and task.train_size",
            ROW_BYTES * min(config.tokenizer.texts, config.task.train_size),
        )
    for method in config.methods:
        section = section_of(method)
        settings = config.of_method(method)
        yield (
            f"{section}.prompts_per_step and group_size",
            ROW_BYTES * settings.prompts_per_step * settings.group_size,
        )
    yield (
        "annotate.prompts and samples_per_prompt",
        ROW_BYTES * config.annotate.prompts * config.annotate.samples_per_prompt,
    )
    yield "sft.batch_size", ROW_BYTES * config.sft.batch_size * (config.sft.steps > 0)
    yield "reward_model.batch_size", ROW_BYTES * config.reward_model.batch_size
