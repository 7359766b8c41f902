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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"r": 8}, r"r is 8; must be 4 \(lora.rank\)"),
        ({"lora_alpha": 1}, r"lora_alpha is 1; must be 12.0 \(lora.alpha\)"),
        ({"use_dora": True}, "use_dora is True"),
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
