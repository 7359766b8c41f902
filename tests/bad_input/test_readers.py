"""Files of others, and notes of ours: whatever they hold, one line says which file and what."""

import json
import shutil
import sys

import jax.numpy as jnp
import pytest
import tiny

from t2g_jax.config import load_config
from t2g_jax.data.journal import Journal
from t2g_jax.data.tokenizer import ChatTokenizer, train_tokenizer
from t2g_jax.errors import T2GError
from t2g_jax.judges.cache import CritiqueCache
from t2g_jax.models import families, peft
from t2g_jax.models.families import llama
from t2g_jax.plan import command
from t2g_jax.plan.topologies import topology
from t2g_jax.run import pretrained
from t2g_jax.tasks.base import Critique, Example
from t2g_jax.training.trackers import WeightsAndBiases

MODEL = {
    "model_type": "llama",
    "vocab_size": 64,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 64,
}
ADAPTERS = {"peft_type": "LORA", "r": 2, "lora_alpha": 16, "target_modules": ["q_proj"]}
EXAMPLE = Example("0", "What is 1 + 1?", "2", {})


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("readers") / "tokenizer"
    train_tokenizer(["a b c"], 300, folder)
    return folder


def adapters(folder):
    return peft.check_adapters(folder, decoder(), llama.FAMILY, rank=2)


def decoder():
    from t2g_jax.models.decoder import DecoderConfig

    return DecoderConfig(
        vocab_size=64, width=16, layers=1, heads=2, kv_heads=2, head_width=8, mlp_width=32,
        dtype=jnp.float32, lora_alpha=16,
    )  # fmt: skip


def tracked(folder):
    pytest.importorskip("wandb")
    WeightsAndBiases(folder, mode="offline", project="p", run="r", phase="sft", config={})


def cached(folder):
    cache = CritiqueCache(folder / "critiques.jsonl", "me")
    assert cache.get(EXAMPLE, "c") is None


TEXT = ("folder", "not UTF-8")
JSON = (*TEXT, "not JSON", "a list", "deep", "NaN", "half")
READERS = {
    "adapter_config.json": (
        adapters,
        ADAPTERS,
        ("missing", "below a file", *JSON, "r", "peft_type"),
    ),
    "t2g/base.json": (
        lambda f: peft.check_base(f, f),
        {"fingerprint": "0"},
        (*JSON, "fingerprint"),
    ),
    "config.json": (families.describe, MODEL, (*JSON, "vocab_size", "model_type", "hidden_size")),
    "revisions.json": (
        lambda folder: pretrained.pin(load_config(tiny.CONFIG), folder),
        {"a/b": "0123"},
        (*JSON, "a/b"),
    ),
    "tokenizer_config.json": (ChatTokenizer.load, {"eos_token": "<|end|>"}, (*JSON, "eos_token")),
    "special_tokens_map.json": (ChatTokenizer.load, {"eos_token": "<|end|>"}, (*JSON, "eos_token")),
    "generation_config.json": (ChatTokenizer.load, {"eos_token_id": 4}, (*JSON, "eos_token_id")),
    "tokenizer.json": (ChatTokenizer.load, {"version": "1.0"}, (*JSON, "version")),
    "chat_template.json": (
        ChatTokenizer.load,
        {"chat_template": "{{ messages }}"},
        (*JSON, "chat_template"),
    ),
    "wandb_run.txt": (tracked, None, (*TEXT, "empty", "words")),
    "journal.jsonl": (lambda f: Journal(f / "journal.jsonl"), {"id": "0"}, (*JSON[:-1], "id")),
    "critiques.jsonl": (cached, {}, ("folder",)),
}


@pytest.mark.parametrize(
    ("name", "wrong"), [(name, wrong) for name, row in READERS.items() for wrong in row[2]]
)
def test_it_says_so_in_a_line(tokenizer, tmp_path, name, wrong):
    read, right, _ = READERS[name]
    folder = tmp_path / "it"
    shutil.copytree(tokenizer, folder)
    if name == "chat_template.json":
        (folder / "chat_template.jinja").unlink()
    path = folder / name
    damage(path, right, wrong)
    if wrong == "below a file":
        folder = path.parent
    with pytest.raises(T2GError) as caught:
        read(folder)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    assert message.startswith((str(path), str(folder)))


def damage(path, right, wrong):
    if wrong == "below a file":
        shutil.rmtree(path.parent)
        path.parent.write_text("a file")
        return
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    line = b"\n" * (path.suffix == ".jsonl")
    match wrong:
        case "missing":
            pass
        case "folder":
            path.mkdir()
            (path / "inside").touch()
        case "not UTF-8":
            path.write_bytes(b'{"\xff": 1}' + line)
        case "not JSON":
            path.write_bytes(b"{1}" + line)
        case "a list":
            path.write_bytes(b"[]" + line)
        case "deep":
            path.write_bytes(b"[" * 100_000 + line)
        case "NaN":
            path.write_bytes(b'{"a": NaN}' + line)
        case "half":
            path.write_text(json.dumps(right)[:-2])
        case "empty":
            path.touch()
        case "words":
            path.write_text("my run of today\n")
        case key:
            path.write_bytes(json.dumps(right | {key: [[1.5]]}).encode() + line)


def test_a_compiler_that_does_not_start(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    with pytest.raises(T2GError, match="the compiler for h100-8 ended before it began"):
        command.measure_programs(load_config(tiny.CONFIG), topology("h100-8"))


@pytest.mark.parametrize("answer", ["Hello, I am a library", "[1]", '{"need": 3}', '{"mesh": []}'])
def test_the_answer_of_a_compiler(tmp_path, monkeypatch, answer):
    script = tmp_path / "python"
    script.write_text(f"#!/bin/sh\necho '{answer}'\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    with pytest.raises(T2GError, match="the answer of the compiler for h100-8 is damaged"):
        command.measure_programs(load_config(tiny.CONFIG), topology("h100-8"))


def test_a_critique_on_disk_is_found_again(tmp_path):
    critique = Critique("good", ())
    CritiqueCache(tmp_path / "critiques.jsonl", "me").put(EXAMPLE, "c", critique)
    assert CritiqueCache(tmp_path / "critiques.jsonl", "me").get(EXAMPLE, "c") == critique
