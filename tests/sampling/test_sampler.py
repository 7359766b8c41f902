"""What is sampled, and that the trainer agrees on how likely it was."""

import collections
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from t2g_jax.models import heads
from t2g_jax.models.decoder import Decoder
from t2g_jax.sampling import distribution, sampler
from t2g_jax.sampling.distribution import Sampling, log_distribution
from t2g_jax.sampling.sampler import pad_prompts, sample
from t2g_jax.training.batch import pack
from t2g_jax.training.forward import CUTOFFS, Need
from t2g_jax.training.sequences import TokenSequence
from t2g_jax.training.step import score
from t2g_jax.training.terms import POLICY_WEIGHT, SAMPLER_LOGPROBS

NEW = 6
FREE = Sampling(max_new_tokens=NEW, stop_ids=())
STOPPING = dataclasses.replace(FREE, stop_ids=(1, 4, 7))


def keys_of(count, seed=0):
    return jax.random.split(jax.random.key(seed), count)


@pytest.fixture(scope="module")
def draw(model, params, prompts):
    """draw(sampling, prompts=…, keys=…, width=…, rows=…) → Completions as NumPy arrays."""

    def draw(sampling, prompts=prompts, keys=None, **padding):
        tokens, lengths = pad_prompts(prompts, **padding)
        keys = keys_of(len(tokens)) if keys is None else keys
        out = sample(params, tokens, lengths, keys, config=model, sampling=sampling)
        return jax.device_get(out)

    return draw


@pytest.fixture(scope="module")
def next_logits(model, params):
    """next_logits(rows) → [B, V]: of the token after each row, by the whole forward pass."""

    @jax.jit
    def forward(tokens, positions, segment_ids):
        hidden = heads.hidden_states(params, model, tokens, positions, segment_ids)
        return hidden @ heads.lm_kernel(params)

    def next_logits(rows):
        tokens, lengths = pad_prompts(rows, width=24, rows=16)
        positions = np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape)
        logits = forward(tokens, positions, np.int32(positions < lengths[:, None]))
        return np.asarray(logits)[np.arange(len(rows)), lengths[: len(rows)] - 1]

    return next_logits


# ------------------------------------------------------------------ sampler = trainer


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.3])
@pytest.mark.parametrize(("top_k", "top_p"), [(0, 1.0), (4, 1.0), (0, 0.7), (6, 0.8)])
def test_logprobs_are_those_the_trainer_computes(
    draw, model, params, prompts, temperature, top_k, top_p
):
    """The ratio is 1 before the first update, whatever the sampler's settings."""
    sampling = dataclasses.replace(STOPPING, temperature=temperature, top_k=top_k, top_p=top_p)
    out = draw(sampling)
    rows = []
    for i, prompt in enumerate(prompts):
        n = out.lengths[i]
        about = {POLICY_WEIGHT: 1.0, SAMPLER_LOGPROBS: out.logprobs[i, :n]}
        about[CUTOFFS] = out.cutoffs[i, :n]
        rows.append(TokenSequence.from_parts((prompt, {}), (out.tokens[i, :n], about)))
    batch = pack(rows, length=64, fields=(POLICY_WEIGHT, SAMPLER_LOGPROBS, CUTOFFS))
    scored = score(params, batch, Need.LOGPROBS, model=model, temperature=temperature)
    sampled = batch[POLICY_WEIGHT] > 0
    assert sampled.sum() == out.lengths.sum()
    assert np.isneginf(batch[CUTOFFS][sampled]).all() == (not sampling.truncates)
    trained, old = scored["logprobs"][sampled], batch[SAMPLER_LOGPROBS][sampled]
    np.testing.assert_allclose(trained, old, rtol=0, atol=1e-5)
    np.testing.assert_allclose(np.exp(trained - old), 1, rtol=1e-5)


def truncated(logits, sampling):
    """The sampled distribution by its definition, in float64."""
    probs = np.exp(np.float64(logits) / sampling.temperature)
    probs[np.argsort(-probs)[sampling.top_k or len(probs) :]] = 0
    probs /= probs.sum()
    order = np.argsort(-probs)
    before = np.cumsum(probs[order]) - probs[order]
    probs[order[before >= sampling.top_p]] = 0
    return probs / probs.sum()


@pytest.mark.parametrize(
    "how", [{}, {"temperature": 1.3, "top_k": 6, "top_p": 0.9}], ids=["plain", "truncated"]
)
def test_the_distribution_really_sampled(draw, next_logits, model, how):
    """χ² of pairs of tokens: the second is drawn from the cache."""
    sampling, count = Sampling(max_new_tokens=2, stop_ids=(), **how), 4096
    prompt = [5, 0, 3]
    out = draw(sampling, [prompt] * count, keys_of(count, seed=3))
    observed = collections.Counter(map(tuple, out.tokens.tolist()))

    first = truncated(next_logits([prompt])[0], sampling)
    afterwards = next_logits([[*prompt, token] for token in range(model.vocab_size)])
    expected = {
        (a, b): count * first[a] * p
        for a, logits in enumerate(afterwards)
        for b, p in enumerate(truncated(logits, sampling))
    }
    assert all(expected[pair] > 0 for pair in observed)
    common = [pair for pair, mean in expected.items() if mean >= 5]
    seen = [observed[pair] for pair in common]
    means = [expected[pair] for pair in common]
    rest = (count - sum(seen), count - sum(means))
    assert len(common) > 20
    statistic = sum((o - e) ** 2 / e for o, e in zip(seen, means, strict=True))
    statistic += (rest[0] - rest[1]) ** 2 / max(rest[1], 5)
    assert scipy.stats.chi2.sf(statistic, len(common)) > 0.01


def test_greedy_takes_the_likeliest(draw, next_logits, prompts):
    out = draw(dataclasses.replace(FREE, temperature=0.0))
    rows = [list(prompt) for prompt in prompts]
    for step in range(NEW):
        likeliest = next_logits(rows).argmax(-1)
        np.testing.assert_array_equal(out.tokens[:, step], likeliest)
        for tokens, token in zip(rows, likeliest, strict=True):
            tokens.append(int(token))
    np.testing.assert_array_equal(out.logprobs, 0)
    assert np.isneginf(out.cutoffs).all()


# ------------------------------------------------------------------ stopping


def test_a_stop_token_ends_a_row(draw, prompts):
    stopped, free = draw(STOPPING), draw(FREE)
    assert 0 < stopped.ended.sum() < len(prompts)
    for i in range(len(prompts)):
        where = np.flatnonzero(np.isin(free.tokens[i], STOPPING.stop_ids))
        n = where[0] + 1 if len(where) else NEW
        assert stopped.lengths[i] == n
        assert stopped.ended[i] == (len(where) > 0)
        np.testing.assert_array_equal(stopped.tokens[i, :n], free.tokens[i, :n])
        np.testing.assert_array_equal(stopped.logprobs[i, :n], free.logprobs[i, :n])
        np.testing.assert_array_equal(stopped.tokens[i, n:], 0)
        np.testing.assert_array_equal(stopped.logprobs[i, n:], 0)
        assert np.isneginf(stopped.cutoffs[i, n:]).all()
    np.testing.assert_array_equal(free.lengths, NEW)
    assert not free.ended.any()


def test_the_loop_ends_when_all_rows_have(draw, monkeypatch):
    steps = []

    class Counting(Decoder):
        def __call__(self, tokens, *args):
            jax.debug.callback(lambda width: steps.append(int(width)), jnp.int32(tokens.shape[1]))
            return super().__call__(tokens, *args)

    monkeypatch.setattr(sampler, "Decoder", Counting)
    endless = Sampling(max_new_tokens=500, stop_ids=(1, 4, 7, 9))
    out = draw(endless)
    jax.effects_barrier()
    assert out.ended.all()
    assert out.lengths.max() < 100
    assert steps.count(16) == 1
    assert steps.count(1) == out.lengths.max() - 1 > 1  # nothing follows the last token


def test_dummy_rows_stay_empty(draw, prompts):
    out = draw(FREE, prompts[:3], rows=8)
    np.testing.assert_array_equal(out.lengths, [NEW] * 3 + [0] * 5)
    np.testing.assert_array_equal(out.tokens[3:], 0)
    np.testing.assert_array_equal(out.logprobs[3:], 0)
    assert not out.ended[3:].any()
    assert all(np.isfinite(leaf).all() for leaf in (out.tokens, out.logprobs))


# ------------------------------------------------------------------ independence


def assert_same_rows(a, rows, b, others):
    for name in ("tokens", "lengths", "ended"):
        np.testing.assert_array_equal(getattr(a, name)[rows], getattr(b, name)[others])
    for name in ("logprobs", "cutoffs"):
        np.testing.assert_allclose(getattr(a, name)[rows], getattr(b, name)[others], atol=1e-5)


def test_a_row_depends_on_its_prompt_and_key_alone(draw, prompts):
    keys = keys_of(8)
    together = draw(STOPPING, prompts, keys)

    order = [3, 6, 1, 4, 7, 0, 2, 5]
    shuffled = draw(STOPPING, [prompts[i] for i in order], keys[np.array(order)])
    assert_same_rows(shuffled, slice(None), together, order)

    others = [[7], [7, 7], prompts[2], [7] * 16, [1]]
    beside_others = draw(STOPPING, others, keys, rows=8)
    assert_same_rows(beside_others, [2], together, [2])

    fewer_and_wider = draw(STOPPING, prompts[:2], keys[:2], width=32)
    assert_same_rows(fewer_and_wider, [0, 1], together, [0, 1])


def test_seeds_are_reproducible_and_differ(draw, prompts):
    a, b, c = (draw(FREE, prompts, keys_of(8, seed)) for seed in (0, 0, 1))
    jax.tree.map(np.testing.assert_array_equal, a, b)
    assert (a.tokens != c.tokens).mean() > 0.3
    same_prompt = draw(FREE, [prompts[0]] * 8)
    assert len(set(map(tuple, same_prompt.tokens.tolist()))) > 1


# ------------------------------------------------------------------ prompts


def test_prompts_are_padded_on_the_right():
    tokens, lengths = pad_prompts([[3, 4], [5, 6, 7]], width=4)
    np.testing.assert_array_equal(tokens, [[3, 4, 0, 0], [5, 6, 7, 0]])
    np.testing.assert_array_equal(lengths, [2, 3])
    assert tokens.dtype == lengths.dtype == np.int32
    assert pad_prompts([[1] * 16])[0].shape == (1, 16)
    assert pad_prompts([[1] * 17])[0].shape == (1, 32)
    tokens, lengths = pad_prompts([[3]], width=2, rows=3)
    np.testing.assert_array_equal(tokens, [[3, 0], [0, 0], [0, 0]])
    np.testing.assert_array_equal(lengths, [1, 0, 0])


@pytest.mark.parametrize(
    ("prompts", "rows", "message"),
    [
        ([], None, "at least one prompt"),
        ([[1], []], None, "at least one token in each"),
        ([[1], [2]], 1, "2 prompts do not fit into 1 rows"),
        ([[1] * 5], None, "a prompt of 5 tokens does not fit into a width of 4"),
    ],
)
def test_prompts_that_cannot_be_padded(prompts, rows, message):
    with pytest.raises(ValueError, match=message):
        pad_prompts(prompts, width=4, rows=rows)


# ------------------------------------------------------------------------- no distribution


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("vocabulary", [2, 12, 320])
def test_a_token_is_of_the_vocabulary_whatever_the_logits(number, vocabulary):
    logits = jnp.zeros(vocabulary).at[vocabulary // 2 :].set(number)
    for sampling in (
        FREE,
        dataclasses.replace(FREE, top_k=2),
        dataclasses.replace(FREE, top_p=0.5),
    ):
        log_probs, _ = log_distribution(logits, sampling)
        tokens = jax.vmap(distribution.draw, (0, None))(keys_of(64), log_probs)
        assert np.all((tokens >= 0) & (tokens < vocabulary))


@pytest.mark.parametrize("number", [np.nan, np.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_without_a_distribution_is_broken_and_leaves_others_as_they_are(
    model, params, prompts, number, temperature
):
    """Token 5 makes NaN of all that follows it."""
    sampling = dataclasses.replace(FREE, temperature=temperature)
    spoiled = jax.tree.map(np.array, params)
    spoiled["decoder"]["embed"]["embedding"][5] = number
    rows = [[1, 5], *([t for t in prompt if t != 5] or [1] for prompt in prompts)]
    tokens, lengths = pad_prompts(rows)

    def sampled(params):
        keys = keys_of(len(rows))
        return jax.device_get(
            sample(params, tokens, lengths, keys, config=model, sampling=sampling)
        )

    good, bad = sampled(params), sampled(spoiled)
    assert (bad.lengths[0], bad.broken[0], bad.ended[0]) == (0, True, False)
    assert not good.broken.any()
    drew_it = 0
    for i in range(1, len(rows)):
        met = np.flatnonzero(good.tokens[i] == 5)
        drew_it += bool(met.size)
        n = met[0] + 1 if met.size else NEW
        assert (bad.lengths[i], bad.broken[i]) == (n, met.size > 0 and n < NEW)
        np.testing.assert_array_equal(bad.tokens[i, :n], good.tokens[i, :n])
        assert np.all(bad.tokens[i, n:] == 0)
        assert np.isfinite(bad.logprobs[i]).all()
    assert drew_it or temperature == 0
