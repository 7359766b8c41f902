"""python benchmarks/random_checkpoint.py FOLDER [--family qwen3] [--size tiny]

Makes a Hugging Face folder with random weights: config.json, sharded safetensors in bfloat16, and a
tokenizer with a chat template, trained on the puzzles' texts. To try what takes a pretrained model,
without fetching one; it answers nonsense.
"""

from __future__ import annotations

import argparse
import itertools
import os
import pathlib
from collections.abc import Iterator
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # only shapes are computed

import jax
import jax.numpy as jnp
import numpy as np
import transformers

from t2g_jax.data.tokenizer import ChatTokenizer, train_tokenizer
from t2g_jax.models import families, heads, huggingface, tensor_files
from t2g_jax.tasks import make_task

CLASSES = {
    "llama": "LlamaConfig",
    "mistral": "MistralConfig",
    "qwen2": "Qwen2Config",
    "qwen3": "Qwen3Config",
    "qwen3_moe": "Qwen3MoeConfig",
    "gemma2": "Gemma2Config",
    "gemma3": "Gemma3TextConfig",
    "olmo2": "Olmo2Config",
    "olmo3": "Olmo3Config",
}
SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4},
    "1b": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16},
    "2b": {"hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 20},
    "8b": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32},
}


def make(folder: pathlib.Path, *, family: str = "llama", size: str = "tiny", seed: int = 0) -> None:
    """Writes the folder."""
    folder.mkdir(parents=True)
    _tokenizer(folder)
    tokenizer = ChatTokenizer.load(folder)
    head_dim = 16 if size == "tiny" else 128
    shape = SIZES[size]
    query_heads = max(shape["hidden_size"] // head_dim, 4)
    config = getattr(transformers, CLASSES[family])(
        **shape,
        vocab_size=-(-tokenizer.vocab_size // 64) * 64 if size == "tiny" else 128_256,
        num_attention_heads=query_heads,
        num_key_value_heads=query_heads // 4,
        head_dim=head_dim,
        max_position_embeddings=4096,
        pad_token_id=tokenizer.pad_id,
        eos_token_id=list(tokenizer.stop_ids),
        bos_token_id=None,
        **_experts(family, size),
    )
    config.dtype = "bfloat16"
    names = {"gemma3": "Gemma3ForCausalLM"}
    config.architectures = [names.get(family, CLASSES[family].replace("Config", "ForCausalLM"))]
    config.save_pretrained(folder)
    _weights(folder, seed)


def _experts(family: str, size: str) -> dict[str, Any]:
    if family != "qwen3_moe":
        return {}
    wide = SIZES[size]["intermediate_size"] // 4
    return {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": wide}


def _tokenizer(folder: pathlib.Path) -> None:
    train = make_task("binary_matrix", preset="tiny", prompt_style="short").split("train")
    texts = (text for e in itertools.islice(train, 200) for text in (e.prompt, e.answer))
    train_tokenizer(texts, 512, folder)


def _weights(folder: pathlib.Path, seed: int) -> None:
    family, config = families.describe(folder)
    shapes = jax.eval_shape(lambda: heads.init_params(config, jax.random.key(0)))
    plan = [
        (path, name, huggingface.their_shape(path, leaf.shape[len(index) :]))
        for path, leaf in huggingface.flat(shapes).items()
        for index, name in huggingface.sources(family, config, path)
    ]
    rng = np.random.default_rng(seed)

    def values() -> Iterator[np.ndarray]:
        for path, _, shape in plan:
            if path.endswith("/scale"):
                yield np.full(shape, 1 - config.norm_offset, np.float32)
            else:
                yield 0.02 * rng.standard_normal(shape, np.float32)

    contents = [(name, shape) for _, name, shape in plan]
    dtype = np.dtype(jnp.bfloat16)
    tensor_files.write(folder, contents, values(), dtype, file_bytes=2 * 2**30)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=pathlib.Path, metavar="FOLDER", help="a new folder")
    parser.add_argument("--family", choices=CLASSES, default="llama")
    parser.add_argument("--size", choices=SIZES, default="tiny")
    parser.add_argument("--seed", type=int, default=0)
    known = parser.parse_args()
    if known.folder.exists():
        parser.error(f"{known.folder} is there already; name a new folder")
    make(known.folder, family=known.family, size=known.size, seed=known.seed)
    total = sum(file.stat().st_size for file in known.folder.glob("*.safetensors"))
    print(f"{known.folder}: {known.family}, {total / 2**30:.2f} GiB of random weights")


if __name__ == "__main__":
    main()
