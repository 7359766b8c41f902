"""Every term of the objective against an oracle that knows rows and losses, but no batches."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from cases import BY_NAME, FIELDS, Case, only, pad, row

from t2g_jax import kl, losses
from t2g_jax.models import heads
from t2g_jax.reductions import Reduction
from t2g_jax.training.batch import Batch, micro_batches, pack
from t2g_jax.training.forward import Need, forward
from t2g_jax.training.objective import SHARED, Objective
from t2g_jax.training.sequences import Field, Weight
from t2g_jax.training.step import score
from t2g_jax.training.terms import (
    NLL,
    POLICY_WEIGHT,
    KLToReference,
    PolicyGradient,
    SelfDistillation,
    SpanLabels,
)

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
        for name, default in ((field.name, field.padding) for field in FIELDS)
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
        """Of policy, distilled and modeled tokens, which share their denominator."""
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
    }[settings.divergence[0]]
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
    likelihood = np.exp(span_logits) / settings.class_weights
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
        "kl_sampler_trainer": mean(kl.k3(f["sampler_logprobs"], logprobs), policy, policy.sum()),
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
    loss += settings.span_weight * metrics["span_loss"]
    return loss, metrics | {"loss": loss}


CASES = {
    "default": Case(),
    "cispo": Case(surrogate="cispo", epsilon_low=0.1, epsilon_high=0.4, correction="cispo"),
    "gspo": Case(
        surrogate="gspo",
        epsilon_high=0.3,
        reduction=Reduction.SEQUENCE_MEAN_TOKEN_MEAN,
        divergence=("abs", "loss"),
    ),
    "reinforce": Case(surrogate="reinforce", value_coefficient=0.7, value_clip=0.05),
    "cool": Case(temperature=0.6, divergence=("k2", "loss"), correction="importance"),
    "hot": Case(temperature=1.4, correction="ppo", logprob_floor=-4.0),
    "sums": Case(
        reduction=Reduction.SEQUENCE_MEAN_TOKEN_SUM, longest=7, correction="sequence_importance"
    ),
    "sequences": Case(reduction=Reduction.SEQUENCE_MEAN_TOKEN_MEAN, temperature=0.8),
    "weighted": Case(nll_coefficient=0.2, span_weight=3.0, class_weights=(2.0, 0.5, 1.5)),
}


@pytest.mark.parametrize("settings", CASES.values(), ids=CASES)
def test_terms_equal_the_oracle(params, rows, batch, hidden_of_tokens, loss_of, settings):
    expected_loss, expected = oracle(params, rows, hidden_of_tokens, settings)
    loss, metrics = loss_of(params, batch, settings.objective())
    assert set(metrics) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-5, atol=1e-5, err_msg=name)
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-5, atol=1e-5)


def test_the_cases_vary_every_setting():
    for field in dataclasses.fields(Case):
        if field.name == "updates_per_step":  # with one of them ratios are 1, see below
            continue
        assert len({getattr(case, field.name) for case in CASES.values()}) > 1, field.name


def test_kl_weight_is_the_weight_of_the_divergence(params, batch, loss_of):
    loss, metrics = loss_of(params, batch)
    twice, more = loss_of(params, batch.with_fields(kl_weight=2 * batch.fields["kl_weight"]))
    np.testing.assert_allclose(more["kl_loss"], 2 * metrics["kl_loss"], rtol=1e-6)
    np.testing.assert_allclose(twice, loss + metrics["kl_loss"], rtol=1e-6)
    objective = Case().objective()
    others = tuple(term for term in objective.terms if not isinstance(term, KLToReference))
    without, less = loss_of(params, batch, dataclasses.replace(objective, terms=others))
    assert "kl_loss" not in less
    np.testing.assert_allclose(without, loss - metrics["kl_loss"], rtol=1e-5)


@pytest.mark.parametrize("how", Reduction)
@pytest.mark.parametrize("copies", [1, 8])
def test_a_critiques_token_weighs_lambda_however_many_there_are(params, rows, loss_of, copies, how):
    """RL + λ · NLL over one denominator: a sum by hand over the tokens of both."""
    critique = row(([1, 2, 3], {}), ([4, 5, 6, 7, 8] * copies, {"nll_weight": 1.0}))
    case = Case(surrogate="reinforce", nll_coefficient=0.1, reduction=how, longest=9)
    both, rl_alone, nll_alone = (
        case.objective(*kinds, truncated=False)
        for kinds in ((PolicyGradient, NLL), (PolicyGradient,), (NLL,))
    )
    policy = [
        only(item, "policy_weight", "advantages", "sampler_logprobs", "old_logprobs")
        for item in rows[:3]
    ]
    together = pad([*policy, critique], length=64, fields=both.fields)
    loss, _ = loss_of(params, together, both)
    nll = loss_of(params, pad([critique], length=64, fields=nll_alone.fields), nll_alone)[1]["nll"]
    policy_alone = pad(policy, length=64, fields=rl_alone.fields)
    rl, _ = loss_of(params, policy_alone, rl_alone)
    if how is Reduction.TOKEN_MEAN:
        mine, theirs = policy_alone[POLICY_WEIGHT].sum(), len(critique) - 3
        expected = (rl * mine + 0.1 * nll * theirs) / (mine + theirs)
    else:  # three sequences and one
        share = nll if how is Reduction.SEQUENCE_MEAN_TOKEN_MEAN else nll * 5 * copies / 9
        expected = (3 * rl + 0.1 * share) / 4
    assert loss == pytest.approx(expected, rel=1e-5)


def test_severities_are_learned_as_they_are(params, rows, loss_of):
    """Half a label is half of its class, and half neutral."""
    (item,) = [item for item in rows if "span_weight" in item.fields][:1]
    objective = Case().objective(SpanLabels)
    labels = item.fields["span_labels"]
    assert labels.any()

    def learned(labels):
        marked = only(item, "span_weight").with_fields({BY_NAME["span_labels"]: labels})
        return loss_of(params, pad([marked], length=LENGTH, fields=objective.fields), objective)[1]

    whole, half, none = learned(labels), learned(labels / 2), learned(0 * labels)
    np.testing.assert_allclose(
        half["span_loss"], (whole["span_loss"] + none["span_loss"]) / 2, rtol=1e-5
    )
    assert half["span_accuracy"] == whole["span_accuracy"]


def test_distilled_tokens_are_scored_as_the_sampler_does(params, rows, loss_of):
    """At its temperature, though nothing in the batch is learned by policy gradient."""
    found = []
    for temperature in (0.6, 1.4):
        objective = Case(temperature=temperature).objective(SelfDistillation, truncated=False)
        items = [only(item, "distill_weight", "advantages") for item in rows[3:5]]
        batch = pack(items, length=LENGTH, fields=objective.fields)
        found.append(loss_of(params, batch, objective)[1]["distill_logprob"])
    assert abs(found[0] - found[1]) > 0.01


def test_the_samplers_temperature_is_for_sampled_tokens(params, rows, loss_of):
    """None are where only likelihood is learned."""
    items, found = [only(item, "nll_weight") for item in rows[5:]], []
    for temperature in (0.5, 1.0):
        case = Case(temperature=temperature, nll_coefficient=0.5)
        objective = case.objective(NLL, truncated=False)
        batch = pack(items, length=LENGTH, fields=objective.fields)
        loss, metrics = loss_of(params, batch, objective)
        assert set(metrics) == {"loss", "nll", "nll_loss"}
        assert loss == metrics["loss"] == 0.5 * metrics["nll"]
        found.append(loss)
    assert found[0] == found[1]


# ------------------------------------------------------------------ what follows from the terms


def test_a_round_of_one_update_compares_with_itself(params, model, batch, loss_of):
    """Whatever stands in the rows: its ratios are 1, and the floor looks at its own pass."""
    case = Case(updates_per_step=1, correction="ppo", logprob_floor=-3.0)
    objective = case.objective()
    assert "old_logprobs" not in {field.name for field in objective.fields}
    _, metrics = loss_of(params, batch, objective)
    assert [metrics[name] for name in ("ratio", "ratio_min", "ratio_max")] == [1, 1, 1]
    assert 0 < metrics["distill_dropped"] < 1
    several = dataclasses.replace(case, updates_per_step=2).objective()
    temperature_one = score(params, batch, Need.LOGPROBS, model=model)
    before = batch.with_fields(old_logprobs=np.asarray(temperature_one["logprobs"]))
    _, as_before = loss_of(params, before, several)
    for name, value in metrics.items():
        np.testing.assert_allclose(as_before[name], value, rtol=1e-6, atol=1e-6, err_msg=name)


def test_needs_and_fields_are_those_of_the_terms():
    everything = Case(correction="ppo", logprob_floor=-5.0).objective()
    assert set(everything.fields) == set(FIELDS)
    assert everything.needs == (
        Need.LOGPROBS | Need.ENTROPY | Need.UNTRUNCATED | Need.VALUES | Need.SPAN_LOGITS
    )
    assert [weight.name for weight in everything.weights] == [
        *("policy_weight", "distill_weight", "nll_weight", "span_weight")
    ]
    likelihood = Case().objective(NLL, truncated=False)
    assert [field.name for field in likelihood.fields] == ["nll_weight"]
    assert likelihood.needs == Need.LOGPROBS
    assert Case().objective(SpanLabels).needs == Need.SPAN_LOGITS
    reads = {field.name for field in Case().objective(SelfDistillation, truncated=False).fields}
    assert reads == {"distill_weight", "advantages"}  # neither corrected nor with a floor


def test_tokens_that_count_in_any_term_are_counted_once():
    item = row(
        (range(2), {"span_weight": [0, 1]}),
        ([2], {"span_weight": 1, "nll_weight": 1, "advantages": 1}),
        ([3], {"nll_weight": 1, "advantages": 1}),
        ([4], {"advantages": 1}),
    )
    assert Case().objective().loss_token_count(item) == 3
    assert Case().objective().loss_token_count(row(([1, 2], {}))) == 0
    with pytest.raises(ValueError, match="no term of the objective reads advantages"):
        Case().objective(NLL, SpanLabels).loss_token_count(item)


def test_terms_that_do_not_go_together():
    with pytest.raises(ValueError, match="terms of different names"):
        Objective((NLL(), NLL(0.5)))
    with pytest.raises(ValueError, match="terms of different names"):
        Objective(())

    class Other(NLL):
        name = "other"
        reads = (Field("advantages", padding=1.0),)

    with pytest.raises(ValueError, match="advantages is declared twice, and differently"):
        Objective((Other(), PolicyGradient(Case())))


# ------------------------------------------------------------------ invariances


def assert_close(a, b, tolerance=4e-6):  # float32 sums of hundreds of tokens in another order
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=tolerance)


REDUCTIONS = {
    "tokens": Case(
        temperature=0.7, divergence=("abs", "loss"), correction="ppo", logprob_floor=-5.0
    ),
    "sequences": Case(surrogate="gspo", reduction=Reduction.SEQUENCE_MEAN_TOKEN_MEAN),
    "sums": Case(
        surrogate="cispo",
        reduction=Reduction.SEQUENCE_MEAN_TOKEN_SUM,
        longest=5,
        divergence=("k2", "loss"),
    ),
}


@pytest.fixture(scope="module", params=REDUCTIONS.values(), ids=REDUCTIONS)
def whole(request, params, rows, fields, gradient_of_loss):
    """For each reduction: the settings, rows one to a batch row, their loss and gradients."""
    batch = pad(rows, length=LENGTH, fields=fields)
    return (
        request.param.objective(),
        batch,
        gradient_of_loss(params, batch, request.param.objective()),
    )


def test_micro_batches_add_up(params, whole, gradient_of_loss):
    """Though they hold different numbers of tokens, and some hold none of a kind."""
    settings, batch, expected = whole
    parts, denominators = micro_batches(batch, 4), settings.denominators(batch)
    results = [
        gradient_of_loss(params, jax.tree.map(lambda x, i=i: x[i], parts), settings, denominators)
        for i in range(4)
    ]
    assert len({part.sum() for part in parts[POLICY_WEIGHT]}) > 2
    assert any(part.sum() == 0 for part in parts[POLICY_WEIGHT])
    assert_close(functools.reduce(lambda a, b: jax.tree.map(np.add, a, b), results), expected)


def test_packed_rows_are_learned_as_unpacked_ones(params, whole, batch, gradient_of_loss):
    settings, unpacked, expected = whole
    assert batch.tokens.shape[0] < unpacked.tokens.shape[0]
    assert batch.segment_ids.max() > 1
    assert_close(gradient_of_loss(params, batch, settings), expected)


def test_uniform_weights_are_the_plain_policy_gradient(params, batch, loss_of):
    """Token weights that are all alike give the mean over tokens, whatever they are."""
    nothing = np.zeros_like(batch.fields["policy_weight"])
    alone = batch.with_fields(distill_weight=nothing, nll_weight=nothing, span_weight=nothing)
    sampled = batch.fields["policy_weight"] > 0
    results = [
        loss_of(
            params,
            alone.with_fields(policy_weight=np.float32(weight * sampled)),
            CASES["cool"].objective(),
        )
        for weight in (1.0, 0.25)
    ]
    assert_close(*results)
    metrics = results[0][1]
    assert metrics["policy_loss"] != 0
    assert [metrics[name] for name in ("distill_loss", "nll", "span_loss")] == [0, 0, 0]


def test_the_ratio_is_one_before_the_first_update(params, model, batch, loss_of):
    objective = CASES["cool"].objective()

    @jax.jit
    def logprobs(batch):
        options = {"model": model, "temperature": objective.temperatures(batch)}
        return forward(params, batch, Need.LOGPROBS, **options).logprobs

    old = np.asarray(logprobs(batch))
    same = batch.with_fields(old_logprobs=old, sampler_logprobs=old)
    _, metrics = loss_of(params, same, objective)
    for name in ("ratio", "ratio_min", "ratio_max"):
        np.testing.assert_allclose(metrics[name], 1, rtol=1e-6)
    assert metrics["clip_fraction"] == 0
    for name in ("log_ratio", "log_ratio_min", "log_ratio_max", "kl_sampler_trainer"):
        np.testing.assert_allclose(metrics[name], 0, atol=1e-6)
    weights = [batch.fields[f"{kind}_weight"] for kind in ("policy", "distill", "nll")]
    total = sum(weight.sum() for weight in weights)
    expected = -(batch.fields["policy_weight"] * batch.fields["advantages"]).sum() / total
    np.testing.assert_allclose(metrics["policy_loss"], expected, rtol=1e-5)


def test_weights_of_zero_teach_nothing(params, batch, gradient_of_loss, fields, settings):
    nothing = np.zeros_like(batch.fields["policy_weight"])
    weights = {f.name: nothing for f in fields if isinstance(f, Weight)}
    loss, gradients = gradient_of_loss(params, batch.with_fields(**weights), settings)
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
    objective = Case(reduction=how, longest=7).objective()
    total = {name: float(value) for name, value in objective.denominators(batch).items()}
    kinds = ("policy", "distill", "nll", "span")
    sums = {f"{kind}_weight": batch.fields[f"{kind}_weight"].sum() for kind in kinds}
    tokens = sums["policy_weight"] + sums["distill_weight"] + sums["nll_weight"]
    shared = {
        Reduction.TOKEN_MEAN: tokens,
        Reduction.SEQUENCE_MEAN_TOKEN_MEAN: 8,  # rows, the one with two turns is one of them
        Reduction.SEQUENCE_MEAN_TOKEN_SUM: 8 * 7,
    }[how]
    assert total == pytest.approx(sums | {SHARED: shared})
