"""Adapters in peft's format: what it reads gives our logits, and what it writes is read back."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from hf_models import make, our_logits, their_logits

from t2g_jax.errors import T2GError
from t2g_jax.models import families, huggingface, lora
from t2g_jax.models.peft import CONFIG, load_adapters, save_adapters

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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"r": 8}, r"r is 8; must be 4 \(lora.rank\)"),
        ({"lora_alpha": 1}, r"lora_alpha is 1; must be 12.0 \(lora.alpha\)"),
        ({"use_dora": True}, "use_dora is True"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa'"),
        ({"alora_invocation_tokens": [3]}, "alora_invocation_tokens is"),
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
        file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(T2GError, match=message):
        load_adapters(tmp_path, params, config, family)
