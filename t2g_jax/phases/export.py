"""`t2g export`: a trained model as a Hugging Face folder; `t2g import`: a look at a pretrained one.

config.json  generation_config.json  tokenizer…  model*.safetensors    what others read
t2g/heads.safetensors                                                  span-reward, value head
README.md                                                              the model card
"""

from __future__ import annotations

import collections
import json
import os
import secrets
import shutil
import time
from pathlib import Path
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict
from transformers import LlamaConfig

from t2g_jax.config import Config
from t2g_jax.errors import T2GError
from t2g_jax.feedback.retokenize import reward_model_context
from t2g_jax.models import families, huggingface, lora, peft, tensor_files
from t2g_jax.models.families import llama
from t2g_jax.parallel.sharding import make_mesh
from t2g_jax.run import pretrained
from t2g_jax.run.context import READING, Context, say
from t2g_jax.run.workspace import REWARD_MODEL, SFT, Workspace
from t2g_jax.runtime import durable, files, hosts
from t2g_jax.runtime.files import expanded
from t2g_jax.version import __version__

HEADS_FILE = Path("t2g") / "heads.safetensors"
_OF_BOTH = ("bos_token_id", "eos_token_id", "pad_token_id", "torch_dtype", "dtype")
"""Keys that are beside "text_config" or in it."""
_TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json"),
    *("added_tokens.json", "vocab.json", "merges.txt", "chat_template.*"),
    "additional_chat_templates/*.jinja",
)

Type = Literal["float32", "bfloat16", "float16"]


def run(
    config: Config,
    workdir: str | os.PathLike[str],
    phase: str,
    folder: str | os.PathLike[str],
    *,
    dtype: Type | None = None,
    adapters: bool = False,
) -> None:
    """Writes what a phase trained; a new folder appears whole or not at all.

    One that is there already, and empty, stays the folder that it is (a link, a mount point, the
    one that a shell is in): what makes it a model, its config, comes last.

    Args:
      phase: "sft", "reward_model" or a method.
      dtype: of the tensors. None: that of the pretrained model, or float32.
      adapters: write the adapters alone, in peft's format; otherwise they are merged.

    Raises:
      T2GError: the phase is not complete, the folder is not empty, or there are no adapters.
    """
    folder = expanded(folder)
    there = os.path.lexists(folder)
    if there and not (folder.is_dir() and not any(folder.iterdir())):
        raise T2GError(f"{folder} is there already and no empty folder; name a new one")
    if adapters and (config.lora.rank == 0 or phase == SFT):
        raise T2GError(
            "--adapters, but nothing has adapters: lora.rank is 0, or the phase is sft; leave it "
            "out to write the whole model"
        )
    Workspace(workdir, config, free=READING).summary(phase)
    context = Context.open(config, workdir, read_only=True)
    if phase == REWARD_MODEL:
        context = reward_model_context(context)
        config = context.config
    with_heads = heads_of(config, phase)
    params = context.weights.load(
        phase, with_heads=with_heads, step=context.weights.best_step(phase)
    )
    source = None if config.model.pretrained is None else huggingface.fetch(config.model.pretrained)
    family = llama.FAMILY if source is None else families.describe(source)[0]
    described = _described(context, source)
    dtype = dtype or _dtype(described)
    first = hosts.is_primary()
    suffix = f"{secrets.token_hex(4)}.partial"
    partial = folder / f".{suffix}" if there else folder.with_name(f"{folder.name}.{suffix}")
    if first:
        partial.mkdir(parents=True)
    try:
        if adapters:
            base = config.model.pretrained or ""
            prefix = "model.language_model." if _sees(source) else "model."
            trained_on = None if source is None else tensor_files.fingerprint(source)
            peft.save_adapters(
                partial,
                params,
                context.model,
                family,
                base=base,
                prefix=prefix,
                fingerprint=trained_on,
            )
        else:
            merged = lora.merge_adapters(params, context.model) if lora.rank(params) else params
            huggingface.save_weights(partial, merged, context.model, family, dtype=jnp.dtype(dtype))
            if first:
                _write_configs(partial, context, described, source, dtype)
        heads = {name: params[name] for name in with_heads}
        if "span_head" in heads:
            heads["span_head"] = unweighted(heads["span_head"], context.weights.class_weights())
        _write_heads(partial, heads)
        if first:
            _write_tokenizer(partial, context)
            card = model_card(config, phase, dtype, with_heads, adapters=adapters)
            (partial / "README.md").write_text(card, "utf-8")
            if there:
                _move_up(partial)
            else:
                durable.appear(partial, folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    what = "adapters, float32" if adapters else dtype
    say(f"{phase}: written to {folder} ({what})")


def heads_of(config: Config, phase: str) -> tuple[str, ...]:
    """The heads that a phase trains."""
    if phase == REWARD_MODEL:
        return ("span_head",)
    return config.of_method(phase).heads if phase in config.known_methods else ()


def inspect_pretrained(config: Config) -> dict[str, Any]:
    """Fetches the pretrained model, reads it onto the mesh as a run would, and says what it is.

    What else the config names is checked too: adapters, and a reward model of its own.

    Raises:
      T2GError: the config names none, or it cannot be used.
    """
    if config.model.pretrained is None:
        raise T2GError("t2g import needs model.pretrained: a Hugging Face folder or hub id")
    folder = huggingface.fetch(config.model.pretrained)
    family, _ = families.describe(folder)
    pretrained.check(config)
    tokenizer = pretrained.tokenizer(config.model.pretrained, config.tokenizer.template_options)
    model = pretrained.decoder_config(config, tokenizer.vocab_size)
    began = time.monotonic()
    params = pretrained.params(config, model, make_mesh(config.mesh), jax.random.key(0))
    jax.block_until_ready(params)
    leaves = jax.tree.leaves(params)
    found = {
        "folder": str(folder),
        "family": family.model_types[0],
        "parameters": sum(leaf.size for leaf in leaves),
        "bytes": sum(leaf.nbytes for leaf in leaves),
        "stored": _stored(folder),
        "seconds": time.monotonic() - began,
        "tokens": tokenizer.vocab_size,
        "stop": [tokenizer.decode([i], skip_special=False) for i in tokenizer.stop_ids],
    }
    say(
        f"{folder}: {found['family']}, {found['parameters']:,} parameters, "
        f"stored as {found['stored']}, {size(found['bytes'])} as {config.model.param_dtype}, read "
        f"in {found['seconds']:.1f} s; {found['tokens']:,} tokens, turns end with "
        f"{' or '.join(found['stop'])}"
    )
    if not tokenizer.takes_system:
        say(
            "its chat template has no place for a system prompt that stays there: one stands at "
            "the start of the user's first turn"
        )
    return found


def size(count: int) -> str:
    """Bytes in the largest unit that they are one of."""
    for unit, of in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= of:
            return f"{count / of:.2f} {unit}"
    return f"{count} bytes"


def _stored(folder: Path) -> str:
    """The types of the tensors in a folder and what they take."""
    taken: collections.Counter[str] = collections.Counter()
    for tensor in tensor_files.tensors(folder).values():
        taken[tensor.dtype.name] += tensor.bytes
    return " and ".join(f"{dtype} ({size(count)})" for dtype, count in taken.most_common())


def model_card(
    config: Config, phase: str, dtype: str, with_heads: tuple[str, ...], *, adapters: bool
) -> str:
    """README.md of an exported folder."""
    base = config.model.pretrained
    front = ["---", "library_name: " + ("peft" if adapters else "transformers")]
    local = base is not None and Path(base).exists()  # a path is nobody's business
    if base is not None and not local:
        front.append(f"base_model: {base}")
    front += ["tags: [t2g_jax, text-feedback]", "---"]
    lines = [
        *front,
        f"# {config.name}: {phase}",
        "",
        f"Trained with t2g_jax {__version__} on the task {config.task.name}, seed "
        f"{config.seed}; tensors are {dtype}. "
        + (
            "It began with random weights."
            if base is None
            else f"It began with {Path(base).name if local else base}."
        ),
        "",
    ]
    if adapters:
        lines += [
            "These are low-rank adapters: `PeftModel.from_pretrained(base, folder)` of peft.",
            "",
        ]
    if "span_head" in with_heads:
        lines += [_SPAN_HEAD, ""]
    if "value_head" in with_heads:
        lines += [_VALUE_HEAD, ""]
    return "\n".join(lines)


_SPAN_HEAD = """\
## Span-reward head

`t2g/heads.safetensors` has a classifier of tokens: poor, neutral or good. It reads the hidden state
after the final norm, on the token itself. Class weights of the training, if there were any, are
divided out of its bias: the probabilities are those of the annotations as they were.

```python
from safetensors.torch import load_file

head = load_file("t2g/heads.safetensors")
hidden = model.model(input_ids).last_hidden_state.float()
logits = hidden @ head["span_head.out.kernel"] + head["span_head.out.bias"]
poor, neutral, good = logits.softmax(-1).unbind(-1)
span_reward = good - poor  # of each token, in [-1, 1]
```"""
_VALUE_HEAD = """\
## Value head

`t2g/heads.safetensors` has the value function of the training run: the expected return before the
next token, from the hidden state h after the final norm:
`h @ head["value_head.out.kernel"] + head["value_head.out.bias"]`."""


def unweighted(
    span_head: dict[str, Any], class_weights: tuple[float, float, float]
) -> dict[str, Any]:
    """The span-reward head with the class weights of its training divided out.

    With its bias less log w, the softmax of its logits is what `losses.span_probabilities` was.
    """
    out = span_head["out"]
    return {"out": out | {"bias": out["bias"] - jnp.log(jnp.asarray(class_weights))}}


def _move_up(partial: Path) -> None:
    """Moves what is in a folder to the one it is in; configs, without which it is none, last."""
    names = sorted(os.listdir(partial), key=lambda name: name.endswith("config.json"))
    for name in names:
        durable.appear(partial / name, partial.parent / name)
    partial.rmdir()


def _write_heads(folder: Path, heads: dict[str, Any]) -> None:
    flat = flatten_dict(heads, sep=".")
    if not flat:
        return
    first = hosts.is_primary()
    if first:
        (folder / HEADS_FILE).parent.mkdir(exist_ok=True)
    tensor_files.write(
        folder / HEADS_FILE.parent,
        [(name, leaf.shape) for name, leaf in flat.items()],
        (hosts.fetch(leaf) for leaf in flat.values()),
        np.dtype(np.float32),
        file_bytes=2**62,
        name=HEADS_FILE.name,
        first=first,
    )


def _sees(source: Path | None) -> bool:
    """Whether the decoder is the language model of a larger one."""
    return source is not None and "text_config" in _config_of(source)


def _config_of(source: Path) -> dict[str, Any]:
    """config.json of a pretrained model."""
    return files.read_json(source / "config.json", dict, mend="fetch the model again")


def _described(context: Context, source: Path | None) -> dict[str, Any]:
    """config.json of the model as it is exported."""
    if source is not None:
        described = _config_of(source)
        if _sees(source):
            whole, described = described, described["text_config"]
            described |= {key: whole[key] for key in _OF_BOTH if key in whole}
            described |= {"architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text"}
            described["tie_word_embeddings"] = context.model.tie_embeddings  # said of the whole
        return described
    model, tokenizer = context.model, context.tokenizer
    made = LlamaConfig(
        vocab_size=model.vocab_size,
        hidden_size=model.width,
        num_hidden_layers=model.layers,
        num_attention_heads=model.heads,
        num_key_value_heads=model.kv_heads,
        head_dim=model.head_width,
        intermediate_size=model.mlp_width,
        rms_norm_eps=model.norm_epsilon,
        tie_word_embeddings=model.tie_embeddings,
        max_position_embeddings=context.config.model.context_length,
        bos_token_id=None,
        eos_token_id=tokenizer.end_id,
        pad_token_id=tokenizer.pad_id,
    ).to_dict()
    # As older readers know it; new ones understand both.
    for new in ("rope_parameters", "dtype"):
        made.pop(new, None)
    plain = {"rope_theta": model.rope_theta, "architectures": ["LlamaForCausalLM"]}
    return made | plain | {"torch_dtype": "float32"}


def _dtype(described: dict[str, Any]) -> Type:
    """The type of the tensors that a config.json names.

    Raises:
      T2GError: it is none that weights are written in.
    """
    named: Any = described.get("dtype") or described.get("torch_dtype") or "float32"
    if named not in get_args(Type):
        raise T2GError(
            f"the config.json of model.pretrained names {named!r} as the type of its tensors; "
            f"choose one with --dtype: {', '.join(get_args(Type))}"
        )
    return named


def _write_tokenizer(folder: Path, context: Context) -> None:
    """The pretrained model's own files, as other versions of `transformers` know them, too."""
    pretrained_from = context.config.model.pretrained
    if pretrained_from is None or not context.tokenizer.agrees_with(
        pretrained.tokenizer(pretrained_from)
    ):
        context.tokenizer.save(folder)
        return
    source = huggingface.fetch(pretrained_from)
    for pattern in _TOKENIZER_FILES:
        for file in source.glob(pattern):
            to = folder / file.relative_to(source)
            to.parent.mkdir(exist_ok=True)
            shutil.copyfile(file, to)
    about, jinja = folder / "tokenizer_config.json", folder / "chat_template.jinja"
    named = about.exists() and files.read_json(about, dict).get("chat_template")
    if (folder / "chat_template.json").exists() and not named and not jinja.exists():
        # Others read a template that is there only with the processor, which stays behind.
        jinja.write_text(context.tokenizer.hugging_face.chat_template, "utf-8")


def _write_configs(
    folder: Path, context: Context, described: dict[str, Any], source: Path | None, dtype: str
) -> None:
    keys = [key for key in ("torch_dtype", "dtype") if key in described] or ["torch_dtype"]
    text = json.dumps(described | dict.fromkeys(keys, dtype), indent=2) + "\n"
    (folder / "config.json").write_text(text, "utf-8")
    tokenizer = context.tokenizer
    generation: dict[str, Any] = {
        "do_sample": True,
        "temperature": context.config.sampling.temperature,
        "pad_token_id": tokenizer.pad_id,
    }
    kept = None if source is None else source / "generation_config.json"
    if kept is not None and kept.is_file():
        generation = files.read_json(kept, dict, mend="fetch it again")
    # A base model's says that its texts end, not that turns do.
    generation["eos_token_id"] = list(tokenizer.stop_ids)
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n", "utf-8")
