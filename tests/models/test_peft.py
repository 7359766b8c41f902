"""Adapters in peft's format: what it reads gives our logits, and what it writes is read back."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from hf_models import make, our_logits, their_logits
from safetensors.numpy import load_file, save_file

from t2g_jax.errors import T2GError
from t2g_jax.models import families, huggingface, lora, tensor_files
from t2g_jax.models.peft import (
    BASE,
    CONFIG,
    WEIGHTS,
    check_adapters,
    check_base,
    load_adapters,
    save_adapters,
)

pytest.importorskip("torch", reason="pip install torch, to compare with peft")
peft = pytest.importorskip("peft", reason="pip install peft, to compare with")
transformers = pytest.importorskip("transformers")

RANK, ALPHA = 4, 12.0
TEXT = np.random.default_rng(0).integers(3, 96, 20)


@pytest.fixture(scope="module", params=["llama3", "qwen3-moe"])
def trained(request, tmp_path_factory):
    """Base folder, family, config, and parameters with adapters that do something."""
    folder = tmp_path_factory.mktemp(request.param)
    make(request.param, folder)
    family, config = families.describe(folder)
    config = dataclasses.replace(config, lora_alpha=ALPHA)
    params = lora.add_adapters(huggingface.load(folder, config), jax.random.key(1), rank=RANK)
    adapters, rest = lora.split(params)
    keys = iter(jax.random.split(jax.random.key(2), 99))
    adapters = jax.tree.map(lambda x: 0.3 * jax.random.normal(next(keys), x.shape), adapters)
    return folder, family, config, lora.join(adapters, rest)


def logits(params, config):
    rows = TEXT[None], np.arange(20)[None], np.ones((1, 20), int)
    return np.asarray(our_logits(params, *rows, config=config))[0]


def test_peft_gives_our_logits(trained, tmp_path):
    folder, family, config, params = trained
    save_adapters(tmp_path, params, config, family, base=str(folder))
    base = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    theirs = peft.PeftModel.from_pretrained(base, tmp_path).eval()
    np.testing.assert_allclose(
        logits(params, config), their_logits(theirs, TEXT), rtol=1e-4, atol=1e-4
    )
    without = logits(lora.without_adapters(params), config)
    assert np.abs(logits(params, config) - without).max() > 0.1


def test_what_peft_writes_is_read(trained, tmp_path):
    folder, family, config, params = trained
    (tmp_path / "a").mkdir()
    save_adapters(tmp_path / "a", params, config, family, base=str(folder))
    base = transformers.AutoModelForCausalLM.from_pretrained(folder)
    peft.PeftModel.from_pretrained(base, tmp_path / "a").save_pretrained(tmp_path / "b")
    fresh = lora.add_adapters(lora.without_adapters(params), jax.random.key(5), rank=RANK)
    again = load_adapters(tmp_path / "b", fresh, config, family)
    for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(a, b)


def test_adapters_of_the_language_model_of_one_that_sees(tmp_path):
    """Its layers have another name there; adapters of what sees change no text."""
    make("gemma3", tmp_path / "text")
    text = json.loads((tmp_path / "text/config.json").read_text())
    eye = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
    eye |= {"num_hidden_layers": 1, "image_size": 28, "patch_size": 14}
    whole = transformers.Gemma3Config(text_config=text, vision_config=eye, mm_tokens_per_image=4)
    folder = tmp_path / "whole"
    transformers.Gemma3ForConditionalGeneration(whole).save_pretrained(folder)
    family, config = families.describe(folder)
    config = dataclasses.replace(config, lora_alpha=ALPHA)
    params = lora.add_adapters(huggingface.load(folder, config), jax.random.key(1), rank=RANK)
    adapters, rest = lora.split(params)
    params = lora.join(jax.tree.map(lambda x: x + 0.1, adapters), rest)
    prefix = "model.language_model."
    (tmp_path / "a").mkdir()
    save_adapters(tmp_path / "a", params, config, family, base=str(folder), prefix=prefix)
    base = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    theirs = peft.PeftModel.from_pretrained(base, tmp_path / "a").eval()
    assert not any("vision" in name and "lora" in name for name, _ in theirs.named_parameters())
    expected = their_logits(theirs, TEXT)
    np.testing.assert_allclose(logits(params, config), expected, rtol=1e-4, atol=1e-4)
    assert np.abs(logits(lora.without_adapters(params), config) - expected).max() > 0.1

    base = transformers.AutoModelForCausalLM.from_pretrained(folder)
    chosen = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=["q_proj", "v_proj"])
    there = peft.get_peft_model(base, chosen)
    assert any("vision_tower" in name and "lora" in name for name, _ in there.named_parameters())
    there.save_pretrained(tmp_path / "b")
    read = load_adapters(tmp_path / "b", params, config, family)
    a = read["decoder"]["layers"]["attention"]["query"]["lora_a"]
    layer = base.model.language_model.layers[1].self_attn.q_proj
    np.testing.assert_array_equal(a[1], layer.lora_A["default"].weight.detach().numpy().T)


def test_rank_stabilized_adapters(trained, tmp_path):
    """They count α / √r; what is written is plain LoRA of the same function."""
    folder, family, config, params = trained
    (tmp_path / "a").mkdir()
    save_adapters(tmp_path / "a", params, config, family, base=str(folder))
    file = tmp_path / "a" / CONFIG
    file.write_text(json.dumps(json.loads(file.read_text()) | {"use_rslora": True}))
    base = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    theirs = peft.PeftModel.from_pretrained(base, tmp_path / "a").eval()
    fresh = lora.add_adapters(lora.without_adapters(params), jax.random.key(5), rank=RANK)
    read = load_adapters(tmp_path / "a", fresh, config, family)
    expected = their_logits(theirs, TEXT)
    np.testing.assert_allclose(logits(read, config), expected, rtol=1e-4, atol=1e-4)
    assert np.abs(logits(params, config) - expected).max() > 0.01
    (tmp_path / "b").mkdir()
    save_adapters(tmp_path / "b", read, config, family, base=str(folder))
    base = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    again = peft.PeftModel.from_pretrained(base, tmp_path / "b").eval()
    np.testing.assert_allclose(their_logits(again, TEXT), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"r": 8}, r"r is 8; must be 4 \(lora.rank\)"),
        ({"r": None}, r"r is 8; must be 4 \(lora.rank\)"),  # left out: peft's default
        ({"lora_alpha": 1}, r"lora_alpha is 1; must be 12.0 \(lora.alpha\)"),
        ({"lora_alpha": None}, r"lora_alpha is 8; must be 12.0 \(lora.alpha\)"),
        ({"use_dora": True}, "use_dora is True"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa'"),
        ({"alora_invocation_tokens": [3]}, "alora_invocation_tokens is"),
        ({"rank_pattern": {"q_proj": 2}}, "rank_pattern is"),
        ({"alpha_pattern": {"q_proj": 2}}, "alpha_pattern is"),
        ({"lora_bias": True}, "lora_bias is True, which is not known here"),
        ({"layer_replication": [[0, 2], [1, 3]]}, "layer_replication is"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices is"),
        ({"target_parameters": ["mlp.experts.gate_up_proj"]}, "target_parameters is"),
        ({"an_option_of_tomorrow": 2.0}, "an_option_of_tomorrow is 2.0"),
        ({"arrow_config": {"top_k": 2}}, "arrow_config is {'top_k': 2}"),  # chooses by token
        ({"target_modules": ["q_proj", "v_proj"], "use_qalora": True}, "use_qalora is True"),
        (None, "cannot be read"),
    ],
)
def test_other_adapters_are_refused(trained, tmp_path, change, message):
    folder, family, config, params = trained
    save_adapters(tmp_path, params, config, family, base=str(folder))
    file = tmp_path / CONFIG
    if change is None:
        file.unlink()
    else:
        described = json.loads(file.read_text()) | change
        kept = {key: value for key, value in described.items() if value is not None}
        file.write_text(json.dumps(kept))
    with pytest.raises(T2GError, match=message):
        load_adapters(tmp_path, params, config, family)
    with pytest.raises(T2GError, match=message):
        check_adapters(tmp_path, config, family, rank=RANK)


Q = "base_model.model.model.layers.{}.self_attn.q_proj.lora_{}.weight"


def spoilt(weights, name, value):
    weights[name].reshape(-1)[0] = value
    return weights


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: {}, "has no tensors"),
        (
            lambda w: w | {"other.lora_A.weight": w[Q.format(0, "A")]},
            "no layer here .* other.lora_A",
        ),
        (lambda w: w | {Q.format(9, "A"): w[Q.format(0, "A")]}, r"no layer here .*layers\.9\."),
        (lambda w: w | {Q.format(0, "magnitude_vector"): w[Q.format(0, "A")]}, "no layer here"),
        (lambda w: drop(w, Q.format(1, "B")), r"layers\.1\..*lora_B.weight: .*found nothing"),
        (lambda w: drop(w, Q.format(1, "A")), r"layers\.1\..*lora_A.weight: .*found nothing"),
        (
            lambda w: drop(w, Q.format(1, "A"), Q.format(1, "B")),
            r"lacks the adapter of model\.layers\.1\.self_attn\.q_proj .*target_modules",
        ),
        (lambda w: w | {Q.format(0, "A"): w[Q.format(0, "A")][:2]}, r"expected \[4, 32\], found"),
        (lambda w: spoilt(w, Q.format(2, "B"), np.nan), r"layers\.2\..*lora_B.*NaN or infinity"),
        (lambda w: spoilt(w, Q.format(2, "A"), np.inf), r"layers\.2\..*lora_A.*NaN or infinity"),
    ],
    ids=[*("none", "module", "layer", "dora", "B", "A", "both", "rank", "nan", "infinity")],
)
def test_adapters_that_would_not_be_applied_are_refused(trained, tmp_path, change, message):
    folder, family, config, params = trained
    save_adapters(tmp_path, params, config, family, base=str(folder))
    weights = change(load_file(tmp_path / WEIGHTS))
    save_file({k: np.ascontiguousarray(v) for k, v in weights.items()}, tmp_path / WEIGHTS)
    with pytest.raises(T2GError, match=message):
        load_adapters(tmp_path, params, config, family)


def drop(weights, *names):
    return {name: value for name, value in weights.items() if name not in names}


def test_a_pattern_of_modules_may_choose_some_layers(trained, tmp_path):
    folder, family, config, params = trained
    save_adapters(tmp_path, params, config, family, base=str(folder))
    file = tmp_path / CONFIG
    chosen = {"target_modules": r".*layers\.[02]\..*"}
    file.write_text(json.dumps(json.loads(file.read_text()) | chosen))
    weights = load_file(tmp_path / WEIGHTS)
    save_file({n: v for n, v in weights.items() if ".layers.1." not in n}, tmp_path / WEIGHTS)
    check_adapters(tmp_path, config, family, rank=RANK)


def test_pickled_adapters_are_never_read(trained, tmp_path):
    folder, family, config, params = trained
    save_adapters(tmp_path, params, config, family, base=str(folder))
    (tmp_path / WEIGHTS).rename(tmp_path / "adapter_model.bin")
    with pytest.raises(T2GError, match=r"adapter_model\.bin may run any code"):
        load_adapters(tmp_path, params, config, family)


def test_adapters_know_the_weights_that_they_were_trained_on(trained, tmp_path):
    folder, family, config, params = trained
    known = tensor_files.fingerprint(folder)
    save_adapters(tmp_path, params, config, family, base="", fingerprint=known)
    check_base(tmp_path, folder)
    (tmp_path / BASE).write_text(json.dumps({"fingerprint": "0" * 16}))
    with pytest.raises(T2GError, match=f"trained on other weights .fingerprint 0.*{known}"):
        check_base(tmp_path, folder)
    (tmp_path / BASE).write_text("[")
    with pytest.raises(T2GError, match=r"base\.json is damaged"):
        check_base(tmp_path, folder)
    (tmp_path / BASE).unlink()
    check_base(tmp_path, folder)
