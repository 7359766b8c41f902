"""What the methods share: attempts, the fields of their tokens, comparisons, and scores."""

import dataclasses
import re

import numpy as np
import oracle
import pytest
import tiny

from t2g_jax.config import METHODS
from t2g_jax.errors import T2GError
from t2g_jax.methods import make_method
from t2g_jax.methods.base import group_advantages
from t2g_jax.methods.scores import RowScorer
from t2g_jax.rollouts import engine
from t2g_jax.rollouts.attempts import (
    attempt_metrics,
    completion_row,
    first_attempts,
    tokens_generated,
)
from t2g_jax.rollouts.engine import Rollouts
from t2g_jax.run import trainer
from t2g_jax.training.forward import Need
from t2g_jax.training.terms import ADVANTAGES, POLICY_WEIGHT


@pytest.mark.parametrize("name", METHODS)
def test_a_method_has_its_section_of_the_config(tiny_context, name):
    method = make_method(name, tiny.changed(tiny_context))
    assert method.config is getattr(tiny_context.config, name.replace("-", "_"))
    assert method.plan.optimizer is method.config.optimizer
    fields = {field.name for field in method.plan.objective.fields}
    if name == "rejection-sampling":
        assert fields == {"nll_weight"}
    else:
        assert fields >= {"policy_weight", "advantages", "sampler_logprobs"}


@pytest.mark.parametrize(
    ("file", "names", "others"),
    [
        ("rejection_sampling", 'RejectionSampling|rejection_sampling|"rejection-sampling', []),
        ("rltf", 'RLTFFM|RLTFFeedback|rltf_fm|"rltf-fm', []),
        # Others are made from it.
        ("grpo_multiturn", 'GRPOMultiTurn|grpo_multiturn|"grpo-multiturn', ["methods/rltf.py"]),
    ],
)
def test_a_method_is_three_files(root, file, names, others):
    package = root / "t2g_jax"
    found = {
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        if re.search(names, path.read_text("utf-8"))
    }
    assert found == {f"methods/{file}.py", "methods/__init__.py", "config/methods.py", *others}


@pytest.mark.parametrize(
    "sampling",
    [
        {},
        {"temperature": 0.6, "top_k": 5},
        {"temperature": 1.4, "top_p": 0.8},
        {"top_k": 10, "top_p": 0.9},
    ],
)
def test_the_trainer_agrees_with_the_sampler(tiny_context, sampling):
    """So the ratio is 1 before the first update, whatever the sampler's settings."""
    context = tiny.changed(tiny_context, **{f"sampling__{k}": v for k, v in sampling.items()})
    params = context.weights.load()
    turns = first_attempts(Rollouts.of(context), params, context.config.grpo, "grpo", 0)
    truncated = context.sampling.truncates
    rows = [completion_row(turn, {}, truncated=truncated) for turn in turns]
    found = RowScorer.of(context)(params, rows, Need.LOGPROBS)
    log_ratio = np.concatenate(
        [
            (about["logprobs"] - item.fields["sampler_logprobs"])[len(turn.prompt) :]
            for about, item, turn in zip(found, rows, turns, strict=True)
        ]
    )
    assert len(log_ratio) == tokens_generated(turns)
    np.testing.assert_allclose(log_ratio, 0, atol=2e-4)


def test_attempts_are_grouped_and_differ(tiny_context):
    context = tiny.changed(tiny_context, grpo__group_size=4)
    params, config = context.weights.load(), context.config.grpo
    turns = first_attempts(Rollouts.of(context), params, config, "grpo", 0)
    names = [turn.example.id for turn in turns]
    assert names == [name for name in names[::4] for _ in range(4)]
    assert len({tuple(turn.tokens) for turn in turns}) > 4
    for other in (("grpo", 1), ("rltf-sd", 0)):
        again = first_attempts(Rollouts.of(context), params, config, *other)
        assert [turn.tokens for turn in again] != [turn.tokens for turn in turns]
    again = first_attempts(Rollouts.of(context), params, config, "grpo", 0)
    assert [turn.tokens for turn in again] == [turn.tokens for turn in turns]
    others = first_attempts(Rollouts.of(context), params, config, "grpo", 0, draw=1)
    assert [turn.example.id for turn in others] != names
    assert list(context.watch.lap()) == ["sample"]


def breaking(monkeypatch, broken):
    """Makes completions broken whose number `broken` contains."""
    sampled = engine.generate

    def generate(*arguments, **options):
        found = sampled(*arguments, **options)
        return [
            dataclasses.replace(c, broken=True, ended=False) if i in broken else c
            for i, c in enumerate(found)
        ]

    monkeypatch.setattr(engine, "generate", generate)


def test_a_group_with_a_broken_completion_is_left_out_and_counted(tiny_context, monkeypatch):
    context = tiny.changed(tiny_context, grpo__group_size=4)
    params, config = context.weights.load(), context.config.grpo
    whole = first_attempts(Rollouts.of(context), params, config, "grpo", 0)
    before = context.tally["broken_completions"]
    breaking(monkeypatch, {1, 2})
    scored = []
    score = type(context.task).score
    monkeypatch.setattr(
        type(context.task), "score", lambda *arguments: scored.append(1) or score(*arguments)
    )
    turns = first_attempts(Rollouts.of(context), params, config, "grpo", 0)
    assert [turn.tokens for turn in turns] == [turn.tokens for turn in whole[4:]]
    assert context.tally["broken_completions"] == before + 2
    assert len(scored) == len(whole) - 2
    breaking(monkeypatch, set(range(0, 100, 4)))
    with pytest.raises(T2GError, match=r"logits are NaN or Inf in .* of .* completions"):
        first_attempts(Rollouts.of(context), params, config, "grpo", 0)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_scores_stand_on_their_tokens(tiny_context, moved, read, temperature):
    context = tiny.changed(tiny_context, sampling__temperature=temperature)
    turns = first_attempts(Rollouts.of(context), moved, context.config.grpo, "grpo", 0)
    rows = [completion_row(turn, {}) for turn in turns]
    needs = Need.LOGPROBS | Need.ENTROPY | Need.VALUES
    for item, turn, found in zip(
        rows, turns, RowScorer.of(context)(moved, rows, needs), strict=True
    ):
        logits, values = read(moved, item.tokens)
        log_probs = oracle.log_softmax(logits / temperature)
        mine = log_probs[np.arange(len(item) - 1), item.tokens[1:]]
        entropy = -(np.exp(log_probs) * log_probs).sum(-1)
        expected = {"logprobs": mine, "entropy": entropy[:-1], "values": values[:-1]}
        assert set(found) == set(expected)
        for name, wanted in expected.items():
            assert found[name][0] == 0
            np.testing.assert_allclose(found[name][1:], wanted, rtol=1e-3, atol=2e-4)
        sampled = turn.completion.logprobs
        np.testing.assert_allclose(found["logprobs"][len(turn.prompt) :], sampled, atol=2e-4)
    assert list(context.watch.lap()) == ["sample", "score"]


@pytest.mark.parametrize("name", METHODS)
def test_fewer_rows_at_once_collect_the_same(tiny_context, state_of, monkeypatch, name):
    section = name.replace("-", "_")
    changes = {"prompts_per_step": 4, "group_size": 2}
    if name != "rejection-sampling":
        changes |= {"kl": "full" if name == "ppo" else "k3", "kl_coefficient": 0.1}
    generated, packed = [], []
    generate, pack = engine.generate, trainer.pack

    def seen_generate(params, prompts, *arguments, batch_size, **options):
        generated.append(min(batch_size, len(prompts)))
        return generate(params, prompts, *arguments, batch_size=batch_size, **options)

    def seen_pack(rows, **options):
        packed.append(len(rows))
        return pack(rows, **options)

    monkeypatch.setattr(engine, "generate", seen_generate)
    monkeypatch.setattr(trainer, "pack", seen_pack)

    def collected(at_once):
        generated.clear(), packed.clear()
        values = changes | {"rows_at_once": at_once}
        context = tiny.changed(tiny_context, **{f"{section}__{k}": v for k, v in values.items()})
        method = make_method(name, context)
        found = method.collect(state_of(method), 0)
        return found, max(generated), max(packed, default=0)

    whole, *at_once = collected(None)
    assert at_once == [8, 0 if name == "rejection-sampling" else 8]
    parts, *at_once = collected(3)
    assert at_once == [3, 0 if name == "rejection-sampling" else 3]
    assert len(parts.rows) == len(whole.rows)
    assert whole.rows or name == "rejection-sampling"  # which found nothing right
    for one, other in zip(parts.rows, whole.rows, strict=True):
        np.testing.assert_array_equal(one.tokens, other.tokens)
        assert set(one.fields) == set(other.fields)
        for field, values in one.fields.items():
            np.testing.assert_allclose(values, other.fields[field], atol=1e-4)
    assert parts.metrics == pytest.approx(whole.metrics, abs=1e-4)


def test_metrics_of_attempts_by_hand(tiny_context):
    turns = [
        tiny.turn(tiny_context, tokens=[7, 8, 4], reward=1),
        tiny.turn(tiny_context, tokens=[7], reward=0, ended=False),
        tiny.turn(tiny_context, tokens=[4], reward=-0.1),
        tiny.turn(tiny_context, tokens=[4, 4], reward=-0.1),
    ]
    assert attempt_metrics(turns, 2) == {
        "accuracy": 1 / 4,
        "reward": pytest.approx(0.2),
        "formatted": 1.0,
        "equal_groups": 1 / 2,
        "completion_tokens": 7 / 4,
        "completion_tokens_max": 3,
        "cut_off": 1 / 4,
    }
    assert "equal_groups" not in attempt_metrics(turns, 1)  # nothing is compared
    assert tokens_generated(turns) == 7


@pytest.mark.parametrize("how", ["centered", "scaled", "leave_one_out"])
def test_rewards_are_compared_in_their_group(how):
    rewards = np.float32([1, 0, 0, -0.1, 1, 1, 1, 1, 0, 1, 0, 1])
    expected = [oracle.compared(group, how) for group in rewards.reshape(3, 4)]
    found = group_advantages(rewards, np.ones_like(rewards), how, 4)
    np.testing.assert_allclose(found, np.ravel(expected), rtol=1e-5, atol=1e-6)
    assert not found[4:8].any()
    assert found[0] > 0


@pytest.mark.parametrize("how", ["centered", "scaled", "leave_one_out"])
def test_turns_are_compared_with_those_that_took_place(how):
    rewards = np.float32([[0.5, 1.0], [1.0, 9.0], [0.0, 0.0], [0.3, 0.5]])
    took_place = np.float32([[1, 1], [1, 0], [1, 1], [1, 1]])
    expected = np.zeros((4, 2))
    expected[:, 0] = oracle.compared(rewards[:, 0], how)
    expected[[0, 2, 3], 1] = oracle.compared(rewards[[0, 2, 3], 1], how)
    found = group_advantages(rewards, took_place, how, 4)
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize(("tokens", "ended"), [([4], True), ([], False), ([9] * 24, False)])
def test_empty_and_cut_off_completions_are_rows_like_others(tiny_context, tokens, ended):
    turn = tiny.turn(tiny_context, tokens=tokens, ended=ended)
    item = completion_row(turn, {POLICY_WEIGHT: 1.0, ADVANTAGES: 0.5})
    assert item.tokens[len(turn.prompt) :].tolist() == tokens
    assert item.fields["policy_weight"].sum() == len(tokens)
    (found,) = RowScorer.of(tiny_context)(tiny_context.weights.load(), [item], Need.LOGPROBS)
    assert np.isfinite(found["logprobs"]).all()
    following = turn.after_feedback(tiny_context.tokenizer, "Wrong.")
    assert following[: len(item)] == item.tokens.tolist()
    assert following.count(tiny_context.tokenizer.end_id) == 3  # of x₀, y₀ and the feedback
