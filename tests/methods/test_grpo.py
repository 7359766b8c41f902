import numpy as np
import pytest
import tiny

from t2g_jax.methods.grpo import GRPO, advantages
from t2g_jax.training.state import TrainState


def settings(context, **values):
    return tiny.with_values(context.config, **{f"grpo__{k}": v for k, v in values.items()}).grpo


@pytest.mark.parametrize("scale", [False, True])
def test_advantages_by_hand(tiny_context, scale):
    rewards = np.array([[1, 0, 0, -0.1], [1, 1, 1, 1], [0, 1, 0, 1]])
    turns = [tiny.turn(tiny_context, "0", reward=reward) for reward in rewards.ravel()]
    expected = rewards - rewards.mean(1, keepdims=True)
    if scale:
        expected /= np.sqrt(rewards.var(1, ddof=1, keepdims=True) + 1e-8)
    chosen = settings(tiny_context, group_size=4, scale_by_std=scale)
    np.testing.assert_allclose(advantages(turns, chosen), expected.ravel(), rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module")
def collected(tiny_context):
    def collected(**values):
        method = GRPO(tiny.changed(tiny_context, **values))
        return method, method.collect(TrainState(0, method.params, None), 0)

    return collected


def test_rows_learn_the_completions(collected):
    method, found = collected()
    assert len(found.rows) == 4 * 2
    for item in found.rows:
        weight, advantage = item.fields["policy_weight"], item.fields["advantages"]
        assert set(weight) == {0.0, 1.0}
        assert len(set(advantage[weight > 0])) == 1
        assert not advantage[weight == 0].any()
        assert "ref_logprobs" not in item.fields
    assert "ref_logprobs" not in method.learning.fields
    assert found.metrics["kl"] == pytest.approx(0, abs=1e-6)
    assert found.metrics["tokens_generated"] == sum(
        r.fields["policy_weight"].sum() for r in found.rows
    )


def test_a_kl_penalty_is_measured_where_the_sampler_is(collected):
    """At a temperature the reference is taken at that temperature too: no divergence at first."""
    method, found = collected(grpo__kl_coefficient=0.1, sampling__temperature=0.6)
    assert method.learning.objective.kl_coefficient == 0.1
    assert "ref_logprobs" in method.learning.fields
    for item in found.rows:
        learned = item.fields["policy_weight"] > 0
        np.testing.assert_allclose(
            item.fields["ref_logprobs"][learned], item.fields["old_logprobs"][learned], atol=1e-4
        )
    assert found.metrics["kl"] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    ("field", "value", "where"),
    [
        ("kl_coefficient", 0.2, "objective.kl_coefficient"),
        ("epsilon_low", 0.1, "objective.epsilon_low"),
        ("epsilon_high", 0.3, "objective.epsilon_high"),
        ("steps", 9, "steps"),
        ("epochs", 3, "epochs"),
        ("minibatches", 4, "minibatches"),
        ("micro_batches", 2, "micro_batches"),
    ],
)
def test_fields_of_the_config_reach_the_learning(tiny_context, field, value, where):
    method = GRPO(tiny.changed(tiny_context, **{f"grpo__{field}": value}))
    found = method.learning
    for name in where.split("."):
        found = getattr(found, name)
    assert found == value


def test_prompts_and_groups(collected):
    _, found = collected(grpo__prompts_per_step=2, grpo__group_size=3)
    prompts = [tuple(item.tokens[item.fields["policy_weight"] == 0]) for item in found.rows]
    assert len(prompts) == 6
    assert len(set(prompts[:3])) == len(set(prompts[3:])) == 1
    assert prompts[0] != prompts[3]
