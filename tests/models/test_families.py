"""Every family against `transformers`: logits, padding, packing, decoding, and the way back."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hf_models import VARIANTS, make, our_logits, their_logits

from t2g_jax.models import families, huggingface
from t2g_jax.sampling.distribution import Sampling
from t2g_jax.sampling.sampler import sample

torch = pytest.importorskip("torch", reason="pip install torch, to compare with `transformers`")
transformers = pytest.importorskip("transformers")

LENGTHS = (1, 5, 13, 40)


@pytest.fixture(scope="module", params=VARIANTS)
def pair(request, tmp_path_factory):
    """A folder, the model of `transformers` in it, our config and parameters."""
    folder = tmp_path_factory.mktemp(request.param)
    theirs = make(request.param, folder)
    _, config = families.describe(folder)
    return folder, theirs, config, huggingface.load(folder, config)


@pytest.fixture(scope="module")
def texts():
    rng = np.random.default_rng(0)
    return [rng.integers(3, 96, n) for n in LENGTHS]


def test_logits_at_several_lengths_with_padding_and_packing(pair, texts):
    _, theirs, config, params = pair
    width = sum(LENGTHS) + 5
    tokens = np.full((len(texts) + 1, width), 7)  # padding is not what pad_token_id says
    positions, segments = np.zeros_like(tokens), np.zeros_like(tokens)
    at = 0
    for i, text in enumerate(texts):
        n = len(text)
        for row, start, segment in ((i, 0, 1), (len(texts), at, i + 1)):
            tokens[row, start : start + n] = text
            positions[row, start : start + n] = range(n)
            segments[row, start : start + n] = segment
        at += n
    ours = np.asarray(our_logits(params, tokens, positions, segments, config=config))
    at = 0
    for i, text in enumerate(texts):
        n, expected = len(text), their_logits(theirs, text)
        assert expected.std() > 0.1  # something to compare
        np.testing.assert_allclose(ours[i, :n], expected, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(ours[-1, at : at + n], expected, rtol=1e-4, atol=1e-4)
        at += n


def test_greedy_decoding_equals_generate(pair, texts):
    _, theirs, config, params = pair
    new, prompts = 12, [texts[1], texts[2]]
    tokens = np.zeros((2, 16), np.int32)
    for i, prompt in enumerate(prompts):
        tokens[i, : len(prompt)] = prompt
    lengths = np.array([len(prompt) for prompt in prompts], np.int32)
    keys = jax.random.split(jax.random.key(0), 2)
    ours = sample(
        params, tokens, lengths, keys, config=config, sampling=Sampling(new, (), temperature=0.0)
    )
    for i, prompt in enumerate(prompts):
        with torch.no_grad():
            expected = theirs.generate(
                torch.tensor(prompt[None]), do_sample=False, min_new_tokens=new, max_new_tokens=new
            )
        # `min_new_tokens` forbids the end, which ours may say: compare up to there.
        expected, found = expected[0, len(prompt) :].numpy(), np.asarray(ours.tokens[i])
        ended = np.flatnonzero(found == 2)
        n = ended[0] if len(ended) else new
        assert n > 2
        np.testing.assert_array_equal(found[:n], expected[:n])


def test_the_way_back(pair, texts, tmp_path):
    folder, theirs, config, params = pair
    family, _ = families.describe(folder)
    huggingface.save_weights(tmp_path, params, config, family, dtype=jnp.float32, file_bytes=20_000)
    for name in ("config.json", "generation_config.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    again = huggingface.load(tmp_path, config)
    for ours, reloaded in zip(jax.tree.leaves(params), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(ours, reloaded)
    loaded, report = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, output_loading_info=True, attn_implementation="eager"
    )
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    before = theirs.state_dict()
    for name, tensor in loaded.state_dict().items():
        np.testing.assert_array_equal(tensor.numpy(), before[name].numpy(), err_msg=name)
    text = texts[-1]
    np.testing.assert_array_equal(their_logits(loaded.eval(), text), their_logits(theirs, text))


def test_each_family_is_a_file_of_its_own():
    """What `docs/adding_a_model.md` promises."""
    folder = pathlib.Path(families.__file__).parent
    files = {file.stem for file in folder.glob("*.py")} - {"__init__", "base"}
    modules = {name: vars(families)[name].FAMILY for name in files}
    assert sorted(map(id, modules.values())) == sorted(map(id, families.FAMILIES))
    kinds = [kind for family in families.FAMILIES for kind in family.model_types]
    assert len(kinds) == len(set(kinds))
