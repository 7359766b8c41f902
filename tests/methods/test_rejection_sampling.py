"""Rejection sampling: right answers are learned, as answers to the first prompt."""

import numpy as np
import pytest

from t2g_jax.errors import T2GError

SETTINGS = {"rejection_sampling__prompts_per_step": 2}


@pytest.mark.parametrize(("turns", "right"), [(1, [1, 0, 0, 0]), (2, [1, 1, 0, 1]), (3, [1] * 4)])
def test_only_right_answers_are_learned(script, collected, tiny_context, turns, right):
    script([1, 0, 0, 0], [1, 0, 1], [1])
    _, found = collected("rejection-sampling", rejection_sampling__turns=turns, **SETTINGS)
    assert len(found.rows) == found.metrics["accepted"] == sum(right)
    prompts = [
        tiny_context.prompts.render(e.prompt) for e in list(tiny_context.task.split("train"))[:2]
    ]
    wanted = [prompts[i // 2] for i, yes in enumerate(right) if yes]
    for item, prompt in zip(found.rows, wanted, strict=True):
        weight = item.fields["nll_weight"]
        assert set(item.fields) == {"nll_weight"}
        assert item.tokens[weight == 0].tolist() == prompt  # the first prompt, without feedback
        assert weight[len(prompt) :].all()
    words = [
        tiny_context.tokenizer.decode(r.tokens[r.fields["nll_weight"] > 0]) for r in found.rows
    ]
    assert words[0] == "0"  # right at once
    assert all(set(word) <= {"1", " "} for word in words[1:])  # the repaired answer


def test_where_nothing_is_right_nothing_is_learned(script, collected):
    script([0, 0, 0, 0], [0, 0, 0, 0])
    method, found = collected("rejection-sampling", rejection_sampling__turns=2, **SETTINGS)
    assert found.rows == []
    assert found.metrics["accepted"] == 0
    assert found.metrics["accuracy_turn_2"] == 0
    assert found.carry is None
    assert method.plan.carry == {}


def test_answers_that_earn_enough_are_learned(script, collected):
    script([1, 0.5, 0.25, 0], [0.75, 0.1], graded=True)
    settings = {"rejection_sampling__turns": 1, "rejection_sampling__least_reward": 0.5}
    _, found = collected("rejection-sampling", **settings, **SETTINGS)
    assert found.metrics["accepted"] == 2
    assert not {"accuracy", "accuracy_turn_2"} & set(found.metrics)


def test_where_nothing_can_be_right_a_threshold_is_asked_for(script, collected):
    script([1, 0.5, 0.25, 0], graded=True)
    with pytest.raises(T2GError, match=r"only grades them: set rejection_sampling\.least_reward"):
        collected("rejection-sampling", rejection_sampling__turns=1, **SETTINGS)


def test_one_completion_a_prompt_is_enough(collected):
    _, found = collected("rejection-sampling", rejection_sampling__group_size=1)
    assert np.isfinite(found.metrics["reward"])
    assert "equal_groups" not in found.metrics
