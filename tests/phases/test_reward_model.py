"""The reward model: what its rows say, how it is trained, asked and measured."""

import dataclasses
import itertools
import json

import numpy as np
import pytest
import tiny
from tiny import without_checksum

from t2g_jax.data.dataset import load_dataset, write_dataset
from t2g_jax.errors import T2GError
from t2g_jax.feedback.reward_model import RewardModel, hard_rewards, reward_model_row
from t2g_jax.feedback.span_scores import class_scores
from t2g_jax.phases import policy, reward_model
from t2g_jax.phases.reward_model import labels_of, marked, training_row
from t2g_jax.run import provenance
from t2g_jax.run.context import Context
from t2g_jax.training.metrics import read_metrics


@pytest.fixture(scope="module")
def records(tiny_run):
    return list(load_dataset(tiny_run.workdir / "annotate" / "dataset", "train"))


@pytest.fixture(scope="module")
def model(tiny_context):
    return RewardModel.load(tiny_context)


@pytest.fixture(params=[False, True], ids=["plain", "conditioned"])
def context(tiny_context, request):
    return tiny.changed(tiny_context, reward_model__critique_conditioned=request.param)


def pieces(context, item):
    """The row as pieces of text: (text, weight in the likelihood, weight among the labels)."""
    weights = [item.fields[name].tolist() for name in ("nll_weight", "span_weight")]
    tokens = zip(item.tokens.tolist(), *weights, strict=True)
    for key, piece in itertools.groupby(tokens, lambda t: t[1:]):
        yield (context.tokenizer.decode([t[0] for t in piece], skip_special=False), *key)


def test_what_a_row_reads_and_learns(context, records):
    record = next(r for r in records if r.correct is False and r.completion_tokens[-1] == 4)
    prompt, answer = f"<|user|>{record.prompt}<|end|><|assistant|>", f"{record.completion}<|end|>"
    request = "<|user|>Critique the answer.<|end|><|assistant|>"
    critique = f"{record.critique}<|end|>"
    found = list(pieces(context, training_row(context, record)))
    if context.config.reward_model.critique_conditioned:
        mark = "<|user|>Mark the answer.<|end|><|assistant|>"
        assert found == [
            (prompt + answer + request, 0, 0),
            (critique, 1, 0),
            (mark, 0, 0),
            (answer, 0, 1),
        ]
    else:
        assert found == [(prompt, 0, 0), (answer, 0, 1), (request, 0, 0), (critique, 1, 0)]


def test_labels_sit_on_the_right_tokens(context, records):
    for record in records:
        item = training_row(context, record)
        marked = item.fields["span_weight"] > 0
        np.testing.assert_array_equal(item.tokens[marked], record.completion_tokens)
        labels = item.fields["span_labels"]
        np.testing.assert_array_equal(labels[marked], labels_of(record))
        assert not labels[~marked].any()
        for start, end, reward in zip(
            record.span_starts, record.span_ends, record.span_rewards, strict=True
        ):
            assert (labels[marked][start:end] == np.sign(reward)).all()
    assert any(labels_of(record).any() for record in records)


def test_a_completion_that_was_cut_off_is_closed_first(tiny_context):
    end = tiny_context.tokenizer.end_id
    tokenizer, how = tiny_context.tokenizer, {"conditioned": False, "critique": [end]}
    ended = reward_model_row(tokenizer, ([1, 2], [9, end]), **how)
    cut_off = reward_model_row(tokenizer, ([1, 2], [9, 9]), **how)
    assert cut_off.tokens[4] == end
    assert cut_off.tokens[5:].tolist() == ended.tokens[4:].tolist()


def test_without_a_critique_nothing_follows_the_completion(tiny_context):
    item = reward_model_row(tiny_context.tokenizer, ([1, 2], [9, 9, 4]), conditioned=False)
    assert item.tokens.tolist() == [1, 2, 9, 9, 4]
    assert item.fields["span_weight"].tolist() == [0, 0, 1, 1, 1]


def test_severities_become_signs(records):
    record = next(r for r in records if len(r.span_rewards) > 1)
    mild = dataclasses.replace(record, span_rewards=record.span_rewards * 0.3)
    np.testing.assert_array_equal(labels_of(mild), labels_of(record))


def test_severities_are_kept_where_that_is_asked_for(tiny_context, records):
    record = next(r for r in records if len(r.span_rewards) > 1)
    mild = dataclasses.replace(record, span_rewards=record.span_rewards * 0.3)
    kept = tiny.changed(tiny_context, reward_model__labels="severity")
    by_sign, by_severity = (training_row(context, mild) for context in (tiny_context, kept))
    np.testing.assert_allclose(
        by_severity.fields["span_labels"], 0.3 * by_sign.fields["span_labels"], rtol=1e-6
    )
    assert by_sign.fields["span_labels"].any()


def write_annotations(tiny_run, workdir, splits):
    """Annotations of one's own, complete as if that phase had made them."""
    folder = workdir / "annotate"
    write_dataset(folder / "dataset", splits, name="tiny", description="-", metadata={})
    summary = without_checksum(tiny_run.workdir / "annotate" / "complete.json")
    summary["fingerprint"] = provenance.of_records(splits)
    (folder / "complete.json").write_text(json.dumps(summary))


def test_what_is_no_severity_is_refused_before_training(tiny_run, tmp_path, records):
    workdir, config = tiny_run.branch(tmp_path / "run", "sft", reward_model__labels="severity")
    strict = [dataclasses.replace(r, span_rewards=3 * r.span_rewards) for r in records]
    write_annotations(tiny_run, workdir, {"train": records, "held_out": strict})
    with pytest.raises(T2GError, match=r"record '.*': a span's reward is -?3, but .*severity"):
        reward_model.run(config, workdir)
    assert not (workdir / "reward_model" / "checkpoints").exists()


def test_from_severities_to_a_policy(tiny_run, tmp_path, records):
    """Annotations of graded quotes, a reward model of them, and a policy that learns from it."""
    workdir, config = tiny_run.branch(
        tmp_path / "run",
        "sft",
        reward_model__labels="severity",
        reward_model__class_weights=(2.0, 1.0, 1.0),
        text2grad__steps=1,
        text2grad__reward="hard",
    )
    graded = [dataclasses.replace(r, span_rewards=0.5 * r.span_rewards) for r in records]
    write_annotations(tiny_run, workdir, {"train": graded[:-4], "held_out": graded[-4:]})
    summary = reward_model.run(config, workdir)
    tokens = sum(len(r.completion_tokens) for r in graded[-4:])
    for found in summary["calibration"]:
        assert sum(row["tokens"] for row in found["bins"]) == tokens
        assert 0 <= found["error"] <= 1
    observed = sum(r["tokens"] * r["observed"] for r in summary["calibration"][0]["bins"])
    expected = sum(np.maximum(-labels_of(r, "severity"), 0).sum() for r in graded[-4:])
    assert observed == pytest.approx(expected, rel=1e-6)
    policy.run(config, workdir, "text2grad")
    (line,) = read_metrics(workdir / "text2grad")
    assert line["rows"] > 0
    assert np.isfinite(line["loss"])
    model = RewardModel.load(Context.open(config, workdir))
    assert model.settings.class_weights == (2.0, 1.0, 1.0)


def test_class_weights_are_divided_out_of_probabilities(tiny_context, model, records):
    """Of those that it was trained with, whatever the config says by now."""
    answers = [(record.prompt_tokens, record.completion_tokens) for record in records[:2]]
    weights = np.array([5.0, 1.0, 0.5], np.float32)
    settings = dataclasses.replace(model.settings, class_weights=tuple(weights.tolist()))
    weighted = dataclasses.replace(model, settings=settings)
    plain = model.probabilities(answers)
    for p_w, p in zip(plain, weighted.probabilities(answers), strict=True):
        expected = p_w / weights / (p_w / weights).sum(-1, keepdims=True)
        np.testing.assert_allclose(p, expected, rtol=1e-4, atol=1e-6)
    changed = tiny.changed(tiny_context, reward_model__class_weights=(5.0, 1.0, 0.5))
    for p, expected in zip(RewardModel.load(changed).probabilities(answers), plain, strict=True):
        np.testing.assert_allclose(p, expected, rtol=1e-5, atol=1e-6)
    of_config = RewardModel.of(changed, changed, model.params).probabilities(answers)
    for p, expected in zip(of_config, weighted.probabilities(answers), strict=True):
        np.testing.assert_allclose(p, expected, rtol=1e-5, atol=1e-6)


def test_hard_rewards_by_hand():
    p = [[0.6, 0.3, 0.1], [0.2, 0.3, 0.5], [0.3, 0.4, 0.3], [0.45, 0.1, 0.45], [0.4, 0.4, 0.2]]
    np.testing.assert_array_equal(hard_rewards(np.array(p)), [-1, 1, 0, 0, 0])
    np.testing.assert_array_equal(hard_rewards(np.array(p), threshold=0.5), [-1, 1, 0, 0, 0])
    np.testing.assert_array_equal(hard_rewards(np.array(p), threshold=0.55), [-1, 0, 0, 0, 0])
    np.testing.assert_array_equal(hard_rewards(np.array(p), threshold=1.0), 0)


def test_probabilities_are_of_each_token_and_do_not_depend_on_the_batch(model, records):
    answers = [(record.prompt_tokens, record.completion_tokens) for record in records[:3]]
    together = model.probabilities(answers)
    for answer, expected in zip(answers, together, strict=True):
        (alone,) = model.probabilities([answer])
        assert alone.shape == (len(answer[1]), 3)
        np.testing.assert_allclose(alone, expected, atol=1e-5)
        np.testing.assert_allclose(alone.sum(-1), 1, rtol=1e-5)
        (rewards,) = model.rewards([answer])
        np.testing.assert_allclose(rewards, alone[:, 2] - alone[:, 0], atol=1e-6)


def test_critiques_are_the_likeliest_and_end(model, records, tiny_context):
    answers = [(record.prompt_tokens, record.completion_tokens) for record in records[:3]]
    critiques = model.critiques(answers)
    assert critiques == model.critiques(answers)
    assert {critique[-1] for critique in critiques} == {tiny_context.tokenizer.end_id}
    short = tiny.changed(tiny_context, reward_model__max_critique_tokens=4)
    brief = RewardModel.of(short, short, model.params)
    for cut_off, whole in zip(brief.critiques(answers), critiques, strict=True):
        assert cut_off == (whole if len(whole) <= 4 else [*whole[:4], whole[-1]])


def test_where_there_is_no_room_for_a_critique(context, model, records):
    """A conditioned model cannot mark such a completion; a plain one needs no critique."""
    model = RewardModel.of(context, context, model.params)
    long = ([1] * context.config.model.context_length, [9, 9, 4])
    short = (records[0].prompt_tokens, records[0].completion_tokens)
    assert model.critiques([long]) == [None]
    first, second = model.rewards([long, short])
    assert (first is None) == context.config.reward_model.critique_conditioned
    assert second.shape == (len(short[1]),)
    assert [c is None for c in model.critiques([short, long])] == [False, True]


class Oracle:
    """A reward model that says what it is told."""

    def __init__(self, classes):
        self.classes = iter(classes)

    def probabilities(self, answers):
        return [np.eye(3)[next(self.classes)] for _ in answers]


def test_class_scores_by_hand(records):
    chosen = records[:3]
    true = [labels_of(record).astype(int) + 1 for record in chosen]
    assert class_scores(*marked(Oracle(true), chosen, 2)) == [
        {
            "label": label,
            "precision": float(support > 0),
            "recall": float(support > 0),
            "f1": pytest.approx(float(support > 0)),
            "support": support,
        }
        for label, support in zip(
            ("poor", "neutral", "good"),
            np.bincount(np.concatenate(true), minlength=3).tolist(),
            strict=True,
        )
    ]
    # Everything called poor: recall 1 and the share of poor tokens as precision.
    poor, neutral, _ = class_scores(*marked(Oracle([0 * labels for labels in true]), chosen, 2))
    share = float(np.mean(np.concatenate(true) == 0))
    assert (poor["precision"], poor["recall"]) == (pytest.approx(share), 1.0)
    assert poor["f1"] == pytest.approx(2 * share / (share + 1))
    assert (neutral["precision"], neutral["recall"], neutral["f1"]) == (0, 0, 0)


def test_class_scores_leave_out_what_could_not_be_marked(records):
    class Silent:
        def probabilities(self, answers):
            return [None] * len(answers)

    assert {score["support"] for score in class_scores(*marked(Silent(), records[:2], 1))} == {0}


def test_scores_of_a_model_that_diverged_are_none(records):
    class Diverged(Oracle):
        def probabilities(self, answers):
            return [np.full_like(p, np.nan) for p in super().probabilities(answers)]

    true = [labels_of(record).astype(int) + 1 for record in records[:2]]
    with pytest.raises(T2GError, match=r"of (\d+) of \1 held-out tokens are NaN: it has diverged"):
        marked(Diverged(true), records[:2], 1)


def test_held_out_scores_are_in_the_summary(tiny_run):
    summary = reward_model.run(tiny_run.config, tiny_run.workdir)
    held_out = load_dataset(tiny_run.workdir / "annotate" / "dataset", "held_out")
    supports = [score["support"] for score in summary["class_scores"]]
    tokens = sum(len(record.completion_tokens) for record in held_out)
    assert sum(supports) == tokens
    assert [found["label"] for found in summary["calibration"]] == ["poor", "neutral", "good"]
    for found, support in zip(summary["calibration"], supports, strict=True):
        assert sum(row["tokens"] for row in found["bins"]) == tokens
        hits = sum(row["tokens"] * row["observed"] for row in found["bins"])
        assert hits == pytest.approx(support)


def test_settings_of_training(tiny_context, monkeypatch):
    given = []

    def training(*arguments):
        given.append(arguments)
        raise T2GError("enough")

    monkeypatch.setattr(reward_model, "run_training", training)
    optimizer = tiny.with_values(
        tiny_context.config, reward_model__optimizer__b1=0.5
    ).reward_model.optimizer
    changes = {
        "epochs": 2,
        "batch_size": 3,
        "micro_batches": 3,
        "critique_weight": 0.25,
        "span_weight": 2.0,
        "class_weights": (3.0, 1.0, 2.0),
        "optimizer": optimizer,
    }
    changes = {f"reward_model__{name}": value for name, value in changes.items()}
    with pytest.raises(T2GError, match="enough"):
        reward_model.train(tiny.changed(tiny_context, **changes))
    (_, phase, _, collect, plan) = given[0]
    assert phase == "reward_model"
    assert (plan.steps, plan.micro_batches) == (2 * (12 // 3), 3)
    critiques, spans = plan.objective.terms
    assert (critiques.name, critiques.coefficient) == ("nll_loss", 0.25)
    assert (spans.name, spans.coefficient) == ("span_loss", 2.0)
    assert spans.settings.class_weights == (3.0, 1.0, 2.0)
    assert plan.optimizer == optimizer
    first, second = (collect(None, step).rows for step in (0, 1))
    assert len(first) == len(second) == 3
    again = collect(None, 0).rows  # whatever was asked for in between
    assert [item.tokens.tolist() for item in again] == [item.tokens.tolist() for item in first]


def test_critique_conditioned_from_training_to_policy(tiny_run, tmp_path):
    workdir, config = tiny_run.branch(
        tmp_path / "run",
        "sft",
        "annotate",
        reward_model__critique_conditioned=True,
        text2grad__steps=1,
    )
    summary = reward_model.run(config, workdir)
    assert {score["label"] for score in summary["class_scores"]} == {"poor", "neutral", "good"}
    assert 0 < summary["last"]["span_accuracy"] <= 1
    plain = read_metrics(tiny_run.workdir / "reward_model")[0]
    conditioned = read_metrics(workdir / "reward_model")[0]
    assert conditioned["tokens_trained"] == plain["tokens_trained"]
    assert conditioned["nll"] == pytest.approx(plain["nll"], rel=1e-4)  # critiques read the same
    assert conditioned["span_loss"] != pytest.approx(plain["span_loss"], rel=1e-4)
    policy.run(config, workdir, "text2grad")
    (line,) = read_metrics(workdir / "text2grad")
    assert line["judge_failures"] == 0
    assert line["span_reward"] != 0
    assert isinstance(RewardModel.load(Context.open(config, workdir)).params, dict)
