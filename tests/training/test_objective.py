"""Every term of the objective against an oracle that knows rows and losses, but no batches."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from t2g_jax import kl, losses
from t2g_jax.models import heads
from t2g_jax.reductions import Reduction
from t2g_jax.training.batch import (
    PREDICTION_FIELDS,
    TOKEN_FIELDS,
    Batch,
    Row,
    micro_batches,
    pack,
    pad,
    row,
)
from t2g_jax.training.objective import Objective, totals
from t2g_jax.training.step import score

LENGTH = 32


@pytest.fixture(scope="module")
def batch(rows, fields):
    return pack(rows, length=LENGTH, fields=fields)


@pytest.fixture(scope="module")
def hidden_of_tokens(params, rows, hidden_of):
    """Hidden states of all rows on their own: of the token before each token, and of the token."""
    width = LENGTH
    tokens = np.array([[*item.tokens, *[0] * (width - len(item))] for item in rows])
    positions = np.broadcast_to(np.arange(width), tokens.shape)
    segments = np.array([[1] * len(item) + [0] * (width - len(item)) for item in rows])
    hidden = hidden_of(params, Batch(tokens, tokens, positions, segments))
    rows_of_hidden = [np.asarray(h)[: len(item)] for h, item in zip(hidden, rows, strict=True)]
    before = [np.concatenate([0 * h[:1], h[:-1]]) for h in rows_of_hidden]
    return np.concatenate(before), np.concatenate(rows_of_hidden)


def oracle(params, rows, hidden_of_tokens, settings):
    """Loss and metrics from rows [n] laid end to end; the first token of each has weight 0."""
    before, own = hidden_of_tokens
    places = np.split(np.arange(len(before)), np.cumsum([len(item) for item in rows])[:-1])
    tokens = np.concatenate([item.tokens for item in rows])
    f = {
        name: np.concatenate(
            [item.fields.get(name, np.full(len(item), default)) for item in rows]
        ).astype(np.float32)
        for name, default in (PREDICTION_FIELDS | TOKEN_FIELDS).items()
    }
    policy, distill, nll, span = (
        f[f"{kind}_weight"] for kind in ("policy", "distill", "nll", "span")
    )

    logits = np.float64(before @ heads.lm_kernel(params))
    logits /= np.where((policy > 0) | (distill > 0), settings.temperature, 1.0)[:, None]
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    mine = np.eye(logits.shape[-1], dtype=bool)[tokens]
    untruncated = np.float32(log_probs[mine])
    log_probs[(log_probs < f["cutoffs"][:, None]) & ~mine] = -np.inf
    log_probs -= np.log(np.exp(log_probs).sum(-1, keepdims=True))
    safe = np.where(np.isneginf(log_probs), 0, log_probs)
    entropy = -(np.exp(log_probs) * safe).sum(-1)
    logprobs = np.float32(log_probs[mine])

    def mean(values, weight, total):
        return float(np.sum(np.float64(values) * weight) / total)

    def reduced(values, weight):
        """Of policy, distilled and modelled tokens, which share their denominator."""
        weighted, total = np.float64(values) * weight, policy.sum() + distill.sum() + nll.sum()
        if settings.reduction is not Reduction.TOKEN_MEAN:
            total = sum(kind[where].any() for kind in (policy, distill, nll) for where in places)
        if settings.reduction is Reduction.SEQUENCE_MEAN_TOKEN_MEAN:
            weighted = [weighted[w].sum() / weight[w].sum() for w in places if weight[w].any()]
        elif settings.reduction is Reduction.SEQUENCE_MEAN_TOKEN_SUM:
            total *= settings.longest
        return float(np.sum(weighted) / total)

    log_ratio = logprobs - f["old_logprobs"]
    ratio = np.exp(log_ratio)
    if settings.surrogate == "gspo":
        for where in places:
            if policy[where].any():
                ratio[where] = np.exp(log_ratio[where][policy[where] > 0].mean())
    clipped = np.clip(ratio, 1 - settings.epsilon_low, 1 + settings.epsilon_high)
    surrogate = {
        "ppo": np.maximum(-ratio * f["advantages"], -clipped * f["advantages"]),
        "gspo": np.maximum(-ratio * f["advantages"], -clipped * f["advantages"]),
        "cispo": -clipped * f["advantages"] * logprobs,
        "reinforce": -f["advantages"] * logprobs,
    }[settings.surrogate]
    to_reference = f["ref_logprobs"] - untruncated
    divergence = {
        "k2": 0.5 * to_reference**2,
        "k3": np.exp(to_reference) - 1 - to_reference,
        "abs": np.abs(to_reference),
    }[settings.kl]
    epsilons = {"epsilon_low": settings.epsilon_low, "epsilon_high": settings.epsilon_high}
    row_of_token = np.repeat(np.arange(len(rows)), [len(item) for item in rows])
    distilled = losses.self_distillation(
        logprobs,
        f["advantages"],
        correction=settings.correction,
        old_logprobs=f["old_logprobs"],
        teacher_logprobs=f["teacher_logprobs"],
        logprob_floor=settings.logprob_floor,
        mask=distill,
        segment_ids=row_of_token,
        **epsilons,
    )
    values = heads.values(params, before)
    value_loss = losses.clipped_value(
        values, f["old_values"], f["returns"], epsilon=settings.value_clip
    )
    span_logits = heads.span_logits(params, own)
    span_loss = losses.span_reward_cross_entropy(
        span_logits, f["span_labels"], class_weights=settings.class_weights
    )

    above, below = ratio > 1 + settings.epsilon_high, ratio < 1 - settings.epsilon_low
    held = (above & (f["advantages"] > 0)) | (below & (f["advantages"] < 0))
    clips = {"ppo": held, "gspo": held, "cispo": above | below, "reinforce": np.zeros_like(held)}
    kept = np.clip(
        values, f["old_values"] - settings.value_clip, f["old_values"] + settings.value_clip
    )
    likelihood = np.exp(span_logits) / (settings.class_weights or (1, 1, 1))
    metrics = {
        "policy_loss": reduced(surrogate, policy),
        "kl_loss": reduced(f["kl_weight"] * divergence, policy),
        "value_loss": mean(value_loss, policy, policy.sum()),
        "distill_loss": reduced(distilled, distill),
        "nll": mean(-logprobs, nll, nll.sum()),
        "nll_loss": reduced(-logprobs, nll),
        "value_clip_fraction": mean(
            abs(kept - f["returns"]) > abs(values - f["returns"]), policy, policy.sum()
        ),
        "span_loss": mean(span_loss, span, span.sum()),
        "entropy": mean(entropy, policy, policy.sum()),
        "ratio": mean(ratio, policy, policy.sum()),
        "ratio_min": ratio[policy > 0].min(),
        "ratio_max": ratio[policy > 0].max(),
        "log_ratio": mean(log_ratio, policy, policy.sum()),
        "log_ratio_min": log_ratio[policy > 0].min(),
        "log_ratio_max": log_ratio[policy > 0].max(),
        "clip_fraction": mean(clips[settings.surrogate], policy, policy.sum()),
        "kl_sampler_trainer": mean(kl.k3(f["old_logprobs"], logprobs), policy, policy.sum()),
        "distill_logprob": mean(logprobs, distill, distill.sum()),
        "span_accuracy": mean(likelihood.argmax(-1) - 1 == f["span_labels"], span, span.sum()),
    }
    if settings.correction in ("ppo", "cispo"):
        shift = np.exp(logprobs - f["teacher_logprobs"])
        above, below = shift > 1 + settings.epsilon_high, shift < 1 - settings.epsilon_low
        held = (above & (f["advantages"] > 0)) | (below & (f["advantages"] < 0))
        held = held if settings.correction == "ppo" else above | below
        metrics["distill_clip_fraction"] = mean(held, distill, distill.sum())
    if settings.logprob_floor is not None:
        dropped = f["old_logprobs"] < settings.logprob_floor
        metrics["distill_dropped"] = mean(dropped, distill, distill.sum())
    loss = metrics["policy_loss"] + metrics["kl_loss"] + metrics["distill_loss"]
    loss += settings.value_coefficient * metrics["value_loss"]
    loss += settings.nll_coefficient * metrics["nll_loss"]
    loss += settings.span_coefficient * metrics["span_loss"]
    return loss, metrics | {"loss": loss}


CASES = {
    "default": Objective(),
    "cispo": Objective(surrogate="cispo", epsilon_low=0.1, epsilon_high=0.4, correction="cispo"),
    "gspo": Objective(
        surrogate="gspo", epsilon_high=0.3, reduction=Reduction.SEQUENCE_MEAN_TOKEN_MEAN, kl="abs"
    ),
    "reinforce": Objective(surrogate="reinforce", value_coefficient=0.7, value_clip=0.05),
    "cool": Objective(temperature=0.6, kl="k2", correction="importance"),
    "hot": Objective(temperature=1.4, correction="ppo", logprob_floor=-4.0),
    "sums": Objective(
        reduction=Reduction.SEQUENCE_MEAN_TOKEN_SUM, longest=7, correction="sequence_importance"
    ),
    "sequences": Objective(reduction=Reduction.SEQUENCE_MEAN_TOKEN_MEAN, temperature=0.8),
    "weighted": Objective(nll_coefficient=0.2, span_coefficient=3.0, class_weights=(2.0, 0.5, 1.5)),
}


@pytest.mark.parametrize("settings", CASES.values(), ids=CASES)
def test_terms_equal_the_oracle(params, rows, batch, hidden_of_tokens, loss_of, settings):
    expected_loss, expected = oracle(params, rows, hidden_of_tokens, settings)
    loss, metrics = loss_of(params, batch, settings)
    assert set(metrics) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-5, atol=1e-5, err_msg=name)
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-5, atol=1e-5)


def test_the_cases_vary_every_setting():
    for field in dataclasses.fields(Objective):
        assert len({getattr(case, field.name) for case in CASES.values()}) > 1, field.name


def test_kl_weight_is_the_weight_of_the_divergence(params, batch, loss_of):
    loss, metrics = loss_of(params, batch)
    twice, more = loss_of(params, batch.replace(kl_weight=2 * batch.kl_weight))
    np.testing.assert_allclose(more["kl_loss"], 2 * metrics["kl_loss"], rtol=1e-6)
    np.testing.assert_allclose(twice, loss + metrics["kl_loss"], rtol=1e-6)
    without, less = loss_of(params, batch.replace(kl_weight=None, ref_logprobs=None))
    assert "kl_loss" not in less
    np.testing.assert_allclose(without, loss - metrics["kl_loss"], rtol=1e-5)


@pytest.mark.parametrize("how", Reduction)
@pytest.mark.parametrize("copies", [1, 8])
def test_a_critiques_token_weighs_lambda_however_many_there_are(params, rows, loss_of, copies, how):
    """RL + λ · NLL over one denominator: a sum by hand over the tokens of both."""
    critique = row(([1, 2, 3], {}), ([4, 5, 6, 7, 8] * copies, {"nll_weight": 1.0}))
    fields = ("policy_weight", "advantages", "old_logprobs", "nll_weight")
    policy = [
        Row(item.tokens, {k: v for k, v in item.fields.items() if k in fields}) for item in rows[:3]
    ]
    settings = Objective(surrogate="reinforce", nll_coefficient=0.1, reduction=how, longest=9)
    together = pad([*policy, critique], length=64, fields=fields)
    loss, _ = loss_of(params, together, settings)
    alone = pad([critique], length=64, fields=("nll_weight",))
    nll = loss_of(params, alone, Objective())[1]["nll"]
    (policy_alone,) = [pad(policy, length=64, fields=fields[:3])]
    rl, _ = loss_of(params, policy_alone, settings)
    if how is Reduction.TOKEN_MEAN:
        mine, theirs = policy_alone.policy_weight.sum(), len(critique) - 3
        expected = (rl * mine + 0.1 * nll * theirs) / (mine + theirs)
    else:  # three sequences and one
        share = nll if how is Reduction.SEQUENCE_MEAN_TOKEN_MEAN else nll * 5 * copies / 9
        expected = (3 * rl + 0.1 * share) / 4
    assert loss == pytest.approx(expected, rel=1e-5)


def test_severities_are_learned_as_they_are(params, rows, loss_of):
    """Half a label is half of its class, and half neutral."""
    (item,) = [item for item in rows if "span_weight" in item.fields][:1]
    fields = ("span_weight", "span_labels")
    signs, halves = (
        Row(item.tokens, {k: item.fields[k] * (f if k == "span_labels" else 1) for k in fields})
        for f in (1.0, 0.5)
    )
    neutral = Row(item.tokens, signs.fields | {"span_labels": 0 * signs.fields["span_labels"]})
    whole, half, none = (
        loss_of(params, pad([r], length=LENGTH, fields=fields))[1] for r in (signs, halves, neutral)
    )
    assert signs.fields["span_labels"].any()
    np.testing.assert_allclose(
        half["span_loss"], (whole["span_loss"] + none["span_loss"]) / 2, rtol=1e-5
    )
    assert half["span_accuracy"] == whole["span_accuracy"]


def test_distilled_tokens_are_scored_as_the_sampler_does(params, rows, loss_of):
    """At its temperature, though nothing in the batch is learned by policy gradient."""
    fields = ("distill_weight", "policy_weight", "advantages", "old_logprobs", "teacher_logprobs")
    batch = pack(rows[3:5], length=LENGTH, fields=fields)
    cool, hot = (
        loss_of(params, batch, Objective(temperature=t))[1]["distill_logprob"] for t in (0.6, 1.4)
    )
    assert abs(cool - hot) > 0.01


def test_only_what_a_batch_holds_is_learned(params, rows, loss_of):
    """The sampler's temperature is for policy tokens: none here."""
    rows = [Row(item.tokens, {"nll_weight": item.fields["nll_weight"]}) for item in rows[5:]]
    batch = pack(rows, length=LENGTH, fields=("nll_weight",))
    loss, metrics = loss_of(params, batch, Objective(temperature=0.5, nll_coefficient=0.5))
    assert set(metrics) == {"loss", "nll"}
    assert loss == metrics["loss"] == 0.5 * metrics["nll"]
    at_one, _ = loss_of(params, batch, Objective(temperature=1.0, nll_coefficient=0.5))
    assert loss == at_one


# ------------------------------------------------------------------ invariances


def assert_close(a, b, tolerance=4e-6):  # float32 sums of hundreds of tokens in another order
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=tolerance)


REDUCTIONS = {
    "tokens": Objective(temperature=0.7, kl="abs", correction="ppo", logprob_floor=-5.0),
    "sequences": Objective(surrogate="gspo", reduction=Reduction.SEQUENCE_MEAN_TOKEN_MEAN),
    "sums": Objective(
        surrogate="cispo", reduction=Reduction.SEQUENCE_MEAN_TOKEN_SUM, longest=5, kl="k2"
    ),
}


@pytest.fixture(scope="module", params=REDUCTIONS.values(), ids=REDUCTIONS)
def whole(request, params, rows, fields, gradient_of_loss):
    """For each reduction: the settings, rows one to a batch row, their loss and gradients."""
    batch = pad(rows, length=LENGTH, fields=fields)
    return request.param, batch, gradient_of_loss(params, batch, request.param)


def test_micro_batches_add_up(params, whole, gradient_of_loss):
    """Though they hold different numbers of tokens, and some hold none of a kind."""
    settings, batch, expected = whole
    parts, denominators = micro_batches(batch, 4), totals(batch, settings)
    results = [
        gradient_of_loss(params, jax.tree.map(lambda x, i=i: x[i], parts), settings, denominators)
        for i in range(4)
    ]
    assert len({part.sum() for part in parts.policy_weight}) > 2
    assert any(part.sum() == 0 for part in parts.policy_weight)
    assert_close(functools.reduce(lambda a, b: jax.tree.map(np.add, a, b), results), expected)


def test_packed_rows_are_learned_as_unpacked_ones(params, whole, batch, gradient_of_loss):
    settings, unpacked, expected = whole
    assert batch.tokens.shape[0] < unpacked.tokens.shape[0]
    assert batch.segment_ids.max() > 1
    assert_close(gradient_of_loss(params, batch, settings), expected)


def test_uniform_weights_are_the_plain_policy_gradient(params, batch, loss_of):
    """Token weights that are all alike give the mean over tokens, whatever they are."""
    nothing = np.zeros_like(batch.policy_weight)
    alone = batch.replace(distill_weight=nothing, nll_weight=nothing, span_weight=nothing)
    sampled = batch.policy_weight > 0
    results = [
        loss_of(params, alone.replace(policy_weight=np.float32(weight * sampled)), CASES["cool"])
        for weight in (1.0, 0.25)
    ]
    assert_close(*results)
    metrics = results[0][1]
    assert metrics["policy_loss"] != 0
    assert [metrics[name] for name in ("distill_loss", "nll", "span_loss")] == [0, 0, 0]


def test_the_ratio_is_one_before_the_first_update(params, model, batch, loss_of):
    settings = CASES["cool"]
    old = score(params, batch, model=model, temperature=settings.temperature)["logprobs"]
    _, metrics = loss_of(params, batch.replace(old_logprobs=np.asarray(old)), settings)
    for name in ("ratio", "ratio_min", "ratio_max"):
        np.testing.assert_allclose(metrics[name], 1, rtol=1e-6)
    assert metrics["clip_fraction"] == 0
    for name in ("log_ratio", "log_ratio_min", "log_ratio_max", "kl_sampler_trainer"):
        np.testing.assert_allclose(metrics[name], 0, atol=1e-6)
    weights = batch.policy_weight, batch.distill_weight, batch.nll_weight
    total = sum(weight.sum() for weight in weights)
    expected = -(batch.policy_weight * batch.advantages).sum() / total
    np.testing.assert_allclose(metrics["policy_loss"], expected, rtol=1e-5)


def test_weights_of_zero_teach_nothing(params, batch, gradient_of_loss, fields, settings):
    nothing = np.zeros_like(batch.policy_weight)
    weights = {name: nothing for name in fields if name.endswith("_weight")}
    loss, gradients = gradient_of_loss(params, batch.replace(**weights), settings)
    assert loss == 0
    assert not any(leaf.any() for leaf in jax.tree.leaves(gradients))


def test_empty_rows_change_nothing(params, rows, fields, gradient_of_loss, settings):
    few = pack(rows[:4], length=LENGTH, fields=fields, multiple=2)
    many = pad(rows[:4], length=LENGTH, fields=fields, multiple=8)
    assert (few.segment_ids == 0).all(-1).sum() == 1
    assert (many.segment_ids == 0).all(-1).sum() == 4
    assert_close(gradient_of_loss(params, few, settings), gradient_of_loss(params, many, settings))


@pytest.mark.parametrize("how", Reduction)
def test_denominators_are_of_weights_or_sequences(batch, how):
    settings = Objective(reduction=how, longest=7)
    total = {name: float(value) for name, value in totals(batch, settings).items()}
    sums = {name: getattr(batch, f"{name}_weight").sum() for name in ("distill", "nll", "span")}
    tokens = batch.policy_weight.sum() + sums["distill"] + sums["nll"]
    policy = {
        Reduction.TOKEN_MEAN: tokens,
        Reduction.SEQUENCE_MEAN_TOKEN_MEAN: 8,  # rows, the one with two turns is one of them
        Reduction.SEQUENCE_MEAN_TOKEN_SUM: 8 * 7,
    }[how]
    assert total == pytest.approx(sums | {"value": batch.policy_weight.sum(), "policy": policy})
    assert float(totals(batch.replace(nll_weight=None), settings)["nll"]) == 0
