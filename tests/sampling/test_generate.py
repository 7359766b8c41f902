"""Sampling for lists of prompts: any number, any mesh, the same completions."""

import dataclasses

import jax
import numpy as np
import pytest

from t2g_jax.config import MeshConfig
from t2g_jax.errors import T2GError
from t2g_jax.models import heads, lora
from t2g_jax.parallel.shapes import bucket
from t2g_jax.parallel.sharding import make_mesh, state_shardings
from t2g_jax.sampling import generate as module
from t2g_jax.sampling.distribution import Sampling
from t2g_jax.sampling.generate import generate
from t2g_jax.sampling.sampler import pad_prompts, sample

SAMPLING = Sampling(max_new_tokens=5, stop_ids=(1, 4), top_k=8)
KEY = jax.random.key(7)


@pytest.fixture(scope="module")
def draw(model, params):
    """draw(prompts, batch_size=…, mesh=(data, fsdp, context, tensor), context_length=…)"""

    def draw(prompts, *, batch_size, mesh=(1, 1, 1, 1), context_length=99):
        mesh = make_mesh(MeshConfig(*mesh), jax.devices()[: np.prod(mesh)])
        return generate(
            jax.device_put(params, state_shardings(params, mesh)),
            prompts,
            KEY,
            config=model,
            sampling=SAMPLING,
            mesh=mesh,
            batch_size=batch_size,
            context_length=context_length,
        )

    return draw


@pytest.fixture(scope="module")
def completions(draw, prompts):
    return draw(prompts, batch_size=8)


def assert_same(actual, expected):
    assert len(actual) == len(expected)
    for a, b in zip(actual, expected, strict=True):
        np.testing.assert_array_equal(a.tokens, b.tokens)
        np.testing.assert_allclose(a.logprobs, b.logprobs, atol=1e-5)
        np.testing.assert_allclose(a.cutoffs, b.cutoffs, atol=1e-5)
        assert a.ended == b.ended


def test_completions_are_cut_to_their_length(completions, model, params, prompts):
    tokens, lengths = pad_prompts(prompts)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(KEY, np.arange(8))
    out = jax.device_get(sample(params, tokens, lengths, keys, config=model, sampling=SAMPLING))
    assert len({len(completion.tokens) for completion in completions}) > 1
    for i, completion in enumerate(completions):
        n = out.lengths[i]
        np.testing.assert_array_equal(completion.tokens, out.tokens[i, :n])
        np.testing.assert_array_equal(completion.logprobs, out.logprobs[i, :n])
        np.testing.assert_array_equal(completion.cutoffs, out.cutoffs[i, :n])
        assert completion.ended == (completion.tokens[-1] in SAMPLING.stop_ids)
        assert completion.ended or len(completion.tokens) == 5


@pytest.mark.parametrize("batch_size", [3, 100])
def test_the_batch_size_does_not_matter(draw, prompts, completions, batch_size):
    assert_same(draw(prompts, batch_size=batch_size), completions)


@pytest.mark.parametrize("mesh", [(8, 1, 1, 1), (2, 2, 1, 2), (1, 2, 4, 1)])
def test_the_mesh_does_not_matter(draw, prompts, completions, mesh):
    assert_same(draw(prompts, batch_size=100, mesh=mesh), completions)


@pytest.mark.parametrize(
    "changes",
    [
        {"heads": 8, "kv_heads": 8, "tie_embeddings": True, "final_softcap": 5.0},
        {"heads": 3, "kv_heads": 3, "head_width": 6, "mlp_width": 21, "vocab_size": 13},
        {"experts": 4, "experts_per_token": 2, "attention_softcap": 2.0},
        {"experts": 4, "experts_per_token": 2, "mlp_width": 21},
        {"qkv_bias": True, "out_bias": True, "mlp_bias": True, "window": 3},
        {"query_key_norm": "head", "post_norm": True, "kv_heads": 2},
        {"query_key_norm": "all", "pre_norm": False, "post_norm": True},
        {"lora_alpha": 9.0},
    ],
    ids=lambda changes: " ".join(changes),
)
@pytest.mark.parametrize("mesh", [(1, 2, 2, 2), (2, 4, 1, 1)])
def test_what_is_decoded_over_a_mesh_is_what_one_device_decodes(model, prompts, changes, mesh):
    model = dataclasses.replace(model, **changes)
    params = heads.init_params(model, jax.random.key(0))
    if "lora_alpha" in changes:
        params = lora.add_adapters(params, jax.random.key(1), rank=2)
    leaves, structure = jax.tree.flatten(params)
    rng = np.random.default_rng(0)  # far from uniform, and with biases and adapters that matter
    params = structure.unflatten([x + np.float32(rng.normal(0, 0.3, x.shape)) for x in leaves])

    def drawn(shape):
        mesh = make_mesh(MeshConfig(*shape), jax.devices()[: np.prod(shape)])
        placed = jax.device_put(params, state_shardings(params, mesh))
        settings = {"batch_size": 8, "context_length": 99}
        return generate(
            placed, prompts, KEY, config=model, sampling=SAMPLING, mesh=mesh, **settings
        )

    assert_same(drawn(mesh), drawn((1, 1, 1, 1)))


def test_the_ith_completion_depends_on_the_ith_prompt(draw, prompts, completions):
    changed = [[9, 9], *prompts[1:4], *[[2, 2, 2]] * 4]
    assert_same(draw(changed, batch_size=8)[1:4], completions[1:4])


def test_no_prompts(draw):
    assert draw([], batch_size=4) == []


def test_a_prompt_must_leave_room(draw, prompts):
    with pytest.raises(T2GError, match=r"14 tokens and 5 new ones exceed model.context_length=18"):
        draw(prompts, batch_size=8, context_length=18)
    assert len(draw(prompts, batch_size=8, context_length=19)) == 8


def test_the_prompts_of_a_call_have_one_width(draw, completions, prompts):
    """However long those of a batch are: else each length would compile a program."""
    before = sample._cache_size()
    longer = [*prompts, [5] * 33, [6] * 40]
    drawn = draw(longer, batch_size=2)
    assert sample._cache_size() == before + 1
    assert_same(drawn[:8], completions)


def test_prompts_of_all_lengths_have_few_widths():
    """As rows in training: two widths for each doubling, and what is the most a prompt may have."""
    most = 8192 - 1000
    widths = [bucket([range(length)], most=most) for length in range(1, most + 1)]
    assert len(set(widths)) == 18
    assert widths == sorted(widths)
    assert all(length <= width <= 7200 for length, width in enumerate(widths, 1))
    assert set(widths[:5000]) == {bucket([range(length)]) for length in range(1, 5001)}


def test_any_number_of_prompts_makes_three_shapes(monkeypatch, draw):
    """As many retries as there were wrong attempts: each number would compile a program."""
    shapes = set()

    def note(params, prompts, keys, *, width, **kwargs):
        shapes.add((len(keys), width))
        return [None] * len(prompts)

    monkeypatch.setattr(module, "generate_rows", note)
    for count in range(1, 65):
        assert len(draw([[3, 4]] * count, batch_size=64)) == count
    assert shapes == {(rows, 16) for rows in (32, 48, 64)}
