"""Every term of the objective against an oracle that knows rows and losses, but no batches."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from t2g_jax import kl, losses
from t2g_jax.models import heads
from t2g_jax.training.batch import (
    PREDICTION_FIELDS,
    TOKEN_FIELDS,
    Batch,
    Row,
    micro_batches,
    pack,
    pad,
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
    logits /= np.where(policy > 0, settings.temperature, 1.0)[:, None]
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    mine = np.eye(logits.shape[-1], dtype=bool)[tokens]
    log_probs[(log_probs < f["cutoffs"][:, None]) & ~mine] = -np.inf
    log_probs -= np.log(np.exp(log_probs).sum(-1, keepdims=True))
    safe = np.where(np.isneginf(log_probs), 0, log_probs)
    entropy = -(np.exp(log_probs) * safe).sum(-1)
    logprobs = np.float32(log_probs[mine])

    def mean(values, weight, total):
        return float(np.sum(np.float64(values) * weight) / total)

    epsilons = {"epsilon_low": settings.epsilon_low, "epsilon_high": settings.epsilon_high}
    on_policy = (logprobs, f["old_logprobs"], f["advantages"])
    surrogate = {
        "ppo": lambda: losses.clipped_surrogate(*on_policy, **epsilons),
        "cispo": lambda: losses.cispo(*on_policy, **epsilons),
        "reinforce": lambda: losses.reinforce(logprobs, f["advantages"]),
    }[settings.surrogate]()
    distilled = losses.self_distillation(
        logprobs,
        f["advantages"],
        correction=settings.correction,
        old_logprobs=f["old_logprobs"],
        teacher_logprobs=f["teacher_logprobs"],
        logprob_floor=settings.logprob_floor,
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

    both = policy.sum() + distill.sum()
    ratio = np.exp(logprobs - f["old_logprobs"])
    outside = (ratio < 1 - settings.epsilon_low) | (ratio > 1 + settings.epsilon_high)
    metrics = {
        "policy_loss": mean(surrogate, policy, both),
        "value_loss": mean(value_loss, policy, policy.sum()),
        "distill_loss": mean(distilled, distill, both),
        "nll": mean(-logprobs, nll, nll.sum()),
        "span_loss": mean(span_loss, span, span.sum()),
        "entropy": mean(entropy, policy, policy.sum()),
        "ratio": mean(ratio, policy, policy.sum()),
        "ratio_min": ratio[policy > 0].min(),
        "ratio_max": ratio[policy > 0].max(),
        "clip_fraction": mean(outside, policy, policy.sum()),
        "kl_sampler_trainer": mean(kl.k3(f["old_logprobs"], logprobs), policy, policy.sum()),
        "distill_logprob": mean(logprobs, distill, distill.sum()),
        "span_accuracy": mean(span_logits.argmax(-1) - 1 == f["span_labels"], span, span.sum()),
    }
    loss = metrics["policy_loss"] + metrics["distill_loss"]
    loss += settings.value_coefficient * metrics["value_loss"]
    loss += settings.nll_coefficient * metrics["nll"]
    loss += settings.span_coefficient * metrics["span_loss"]
    if settings.kl_coefficient:
        metrics["kl"] = mean(kl.k3(logprobs, f["ref_logprobs"]), policy, both)
        loss += settings.kl_coefficient * metrics["kl"]
    return loss, metrics | {"loss": loss}


CASES = {
    "default": Objective(),
    "cispo": Objective(surrogate="cispo", epsilon_low=0.1, epsilon_high=0.4, correction="cispo"),
    "reinforce": Objective(surrogate="reinforce", value_coefficient=0.7, value_clip=0.05),
    "cool": Objective(temperature=0.6, kl_coefficient=0.3, correction="importance"),
    "hot": Objective(temperature=1.4, correction="ppo", logprob_floor=-4.0),
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


def assert_close(a, b, tolerance=1e-6):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=tolerance)


def test_micro_batches_add_up(params, rows, fields, gradient_of_loss, settings):
    """Though they hold different numbers of tokens, and some hold none of a kind."""
    batch = pad(rows, length=LENGTH, fields=fields)
    expected = gradient_of_loss(params, batch, settings)
    parts = micro_batches(batch, 4)
    results = [
        gradient_of_loss(params, jax.tree.map(lambda x, i=i: x[i], parts), settings, totals(batch))
        for i in range(4)
    ]
    assert len({part.sum() for part in parts.policy_weight}) > 2
    assert any(part.sum() == 0 for part in parts.policy_weight)
    assert_close(functools.reduce(lambda a, b: jax.tree.map(np.add, a, b), results), expected)


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
    np.testing.assert_allclose(metrics["kl_sampler_trainer"], 0, atol=1e-6)
    total = batch.policy_weight.sum() + batch.distill_weight.sum()
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


def test_denominators_are_sums_of_weights(batch):
    total = {name: float(value) for name, value in totals(batch).items()}
    sums = {name: getattr(batch, f"{name}_weight").sum() for name in ("distill", "nll", "span")}
    policy = batch.policy_weight.sum()
    expected = sums | {"value": policy, "policy": policy + sums["distill"]}
    assert total == pytest.approx(expected)
    assert float(totals(batch.replace(nll_weight=None))["nll"]) == 0
