"""The model that a run begins with: one from Hugging Face, or a small one with random weights.

What comes from outside is checked once, at the door: see `check`.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from t2g_jax.config import Config
from t2g_jax.data import trial
from t2g_jax.data.tokenizer import ChatTokenizer
from t2g_jax.errors import T2GError
from t2g_jax.models import families, heads, huggingface, peft, tensor_files
from t2g_jax.models.decoder import DecoderConfig
from t2g_jax.parallel.sharding import state_shardings
from t2g_jax.run import capacity
from t2g_jax.runtime import durable, files, hosts
from t2g_jax.runtime.files import expanded

REVISIONS = "revisions.json"
"""In a work directory: the commits of the models of the hub that the run there began with."""


def check(config: Config) -> None:
    """Checks, before anything is trained, what a run will hold, and read of models and adapters.

    Configurations, tokenizers, and the names and shapes of all tensors. Adapters are read, and so
    are the weights of a reward model of its own, to see that they are finite, which takes about a
    second a gigabyte; those of the policy are looked at as they are loaded.

    Raises:
      T2GError: something cannot be used; file, key or tensor are named.
    """
    source, reading = config.model.pretrained, config.reward_model.pretrained
    capacity.check(config, described(config))
    if source is not None:
        reads = tokenizer(source, config.tokenizer.template_options)
        check_chat(config, reads)
        model = decoder_config(config, reads.vocab_size)
        _check_tensors(source, model, values=False)
        if config.lora.pretrained is not None:
            folder, base = expanded(config.lora.pretrained), huggingface.fetch(source)
            family, _ = families.describe(base)
            peft.check_adapters(folder, model, family, rank=config.lora.rank)
            peft.check_base(folder, base)
    if reading is not None:
        reads = tokenizer(reading, config.reward_model.template_options)
        check_critiques(config, reads)
        model = _described(config, reading, reads.vocab_size)
        capacity.check_model(config, model, reading)
        _check_tensors(reading, model, values=True)


def check_chat(config: Config, tokenizer: ChatTokenizer) -> None:
    """Checks that a run can say with the tokenizer of its policy what it will have to.

    Raises:
      T2GError: its template has no way to answer a critique, or to write an answer or a critique
        for a model to learn.
    """
    try:
        tokenizer.next_turn("", ended=True)
    except ValueError as error:
        raise T2GError(f"no critique could be answered: {error}") from error
    written = {
        "set sft.steps to 0": config.sft.steps > 0,
        **{f"leave {m} out": config.of_method(m).learns_critiques for m in config.methods},
        "set text2grad.span_source to judge": (
            config.needs_reward_model and config.reward_model.pretrained is None
        ),
    }
    if ways := [way for way, holds in written.items() if holds]:
        _check_answers(tokenizer, "tokenizer", " and ".join(ways))


def check_critiques(config: Config, tokenizer: ChatTokenizer) -> None:
    """Checks that critiques can be written with the tokenizer that a reward model reads with.

    Raises:
      T2GError: its template has no way to write one.
    """
    section = "tokenizer" if config.reward_model.pretrained is None else "reward_model"
    _check_answers(tokenizer, section, "choose another model for it")


def _check_answers(tokenizer: ChatTokenizer, section: str, otherwise: str) -> None:
    """Checks that answers can be written for a model to learn.

    Args:
      section: of the config, which has its template_options.
      otherwise: what to do where these do not help.
    """
    try:
        tokenizer.answer("")
    except ValueError as error:
        raise T2GError(
            f"no answer could be demonstrated: {error}; set {section}.template_options "
            f"(enable_thinking: false, if it has that), or {otherwise}"
        ) from error


@functools.cache
def _check_tensors(source: str, model: DecoderConfig, *, values: bool) -> None:
    huggingface.check(huggingface.fetch(source), model, values=values)


def pin(config: Config, workdir: Path, *, record: bool = False) -> None:
    """Has `huggingface.fetch` give the revisions that the run in a work directory began with.

    Args:
      record: write down those of models that are not there yet.

    Raises:
      T2GError: the record is damaged.
    """
    file = workdir / REVISIONS

    def recorded() -> dict[str, str]:
        mend = "put it back, or delete it to go on with the newest revisions"
        return files.read_json(file, dict[str, str], mend=mend) if file.exists() else {}

    known = hosts.broadcast_from_primary(recorded)
    for source, revision in known.items():
        huggingface.pin(source, revision)
    if not record:
        return
    sections = (config.model, config.reward_model, config.judge)
    given = {section.pretrained for section in sections} - {None}
    found = {source: huggingface.revision(source) for source in sorted(given)}
    new = {source: commit for source, commit in found.items() if commit is not None}
    if new.items() - known.items() and hosts.is_primary():
        durable.write_text(file, json.dumps(known | new, indent=1) + "\n")


def decoder_config(config: Config, vocab_size: int) -> DecoderConfig:
    """The decoder of a run, for a tokenizer of `vocab_size` tokens.

    Raises:
      T2GError: the pretrained model cannot be used, has fewer tokens than its tokenizer, or is not
        made for rows as long as `model.context_length`.
    """
    model = config.model
    if model.pretrained is None:
        shape = DecoderConfig(
            vocab_size=-(-vocab_size // 64) * 64,
            width=model.width,
            layers=model.layers,
            heads=model.heads,
            kv_heads=model.kv_heads,
            head_width=model.head_width or model.width // model.heads,
            mlp_width=model.mlp_width,
            rope_theta=model.rope_theta,
            tie_embeddings=model.tie_embeddings,
        )
        return _as_configured(config, shape)
    return _described(config, model.pretrained, vocab_size)


def described(config: Config) -> DecoderConfig | None:
    """The decoder of the pretrained model that a run begins with, if it does.

    Raises:
      T2GError: it cannot be used.
    """
    source = config.model.pretrained
    return None if source is None else _described(config, source, 0)


def _described(config: Config, source: str, vocab_size: int) -> DecoderConfig:
    """The decoder of a pretrained model."""
    folder = huggingface.fetch(source)
    shape = families.read_config(folder, tokens=vocab_size)
    longest = config.model.context_length
    if shape.positions is not None and longest > shape.positions:
        raise T2GError(
            f"model.context_length is {longest}, but {folder / 'config.json'} describes a model "
            f"for {shape.positions} positions (max_position_embeddings and rope_scaling); set it "
            f"to {shape.positions} or less"
        )
    return _as_configured(config, shape)


def _as_configured(config: Config, shape: DecoderConfig) -> DecoderConfig:
    model = config.model
    return dataclasses.replace(
        shape,
        dtype=jnp.dtype(model.compute_dtype),
        param_dtype=jnp.dtype(model.param_dtype),
        remat=model.remat,
        attention=model.attention,
        lora_alpha=config.lora.alpha,
    )


def tokenizer(source: str, options: Mapping[str, Any] | None = None) -> ChatTokenizer:
    """The tokenizer of a Hugging Face model.

    Args:
      options: of its template, see `ChatTokenizer`.

    Raises:
      T2GError: it has none that can be used.
    """
    return trial.load(huggingface.fetch(source), options)


def check_tokenizer(config: Config, folder: Path) -> None:
    """Checks that the tokenizer of a work folder, if it has one yet, is the pretrained model's.

    Raises:
      T2GError: it is another one, which the rows and policies there were made with.
    """
    source = config.model.pretrained
    if source is None or not folder.exists():
        return
    pin(config, folder.parent)
    if not ChatTokenizer.load(folder).agrees_with(tokenizer(source)):
        raise T2GError(
            f"{folder} is not the tokenizer of model.pretrained: {source}, and what is there was "
            "made with it; take a model with the same tokenizer, or give this run a --workdir of "
            "its own"
        )


def fingerprint(source: str) -> str:
    """What tells a pretrained model, or adapters, from others: of weights, and of what config.json
    says about how they are used.

    Raises:
      T2GError: there is no such model.
    """
    folder = expanded(source)
    folder = folder if folder.is_dir() else huggingface.fetch(source)
    about = folder / "config.json"
    described = files.read_json(about, dict, mend="fetch it again") if about.exists() else {}
    said = {key: value for key, value in described.items() if key not in _SAID_ONLY}
    digest = hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()
    return f"{tensor_files.fingerprint(folder)}-{digest[:8]}"


_SAID_ONLY = {"transformers_version", "_name_or_path", "architectures", "torch_dtype", "dtype"}
"""Keys of config.json that change nothing, and that libraries write anew."""


def params(config: Config, model: DecoderConfig, mesh: Mesh, key: jax.Array) -> heads.Params:
    """The parameters that a run begins with, on the mesh; no more than a tensor is on the host."""
    shapes = jax.eval_shape(lambda: heads.init_params(model, key))
    shardings = state_shardings(shapes, mesh)
    if config.model.pretrained is not None:
        folder: Path = huggingface.fetch(config.model.pretrained)
        return huggingface.load(folder, model, shardings)
    # Each device draws its own part.
    return jax.jit(lambda key: heads.init_params(model, key), out_shardings=shardings)(key)


def adapters(config: Config, model: DecoderConfig, params: heads.Params) -> heads.Params:
    """Parameters with `lora.pretrained` in place of their fresh adapters.

    Raises:
      T2GError: these are not adapters of this model.
    """
    family, _ = families.describe(huggingface.fetch(config.model.pretrained))
    return peft.load_adapters(expanded(config.lora.pretrained), params, model, family)
