"""GRPO: one advantage an attempt, from what it earned and what the others of its group did."""

import numpy as np
import oracle
import pytest
import tiny

from t2g_jax.methods.grpo import GRPO, keep_unequal


def advantages_of(found):
    """The advantage of each row, which all its completion's tokens have and no others."""
    values = []
    for item in found.rows:
        learned = item.fields["policy_weight"] > 0
        (value,) = set(item.fields["advantages"][learned].tolist())
        assert not item.fields["advantages"][~learned].any()
        values.append(value)
    return values


def test_rows_learn_the_completions(collected):
    method, found = collected("grpo")
    assert len(found.rows) == 4 * 2
    advantages_of(found)
    fields = {"policy_weight", "advantages", "sampler_logprobs"}
    assert {field.name for field in method.plan.objective.fields} == fields
    assert all(set(item.fields) == fields for item in found.rows)
    assert found.metrics["tokens_generated"] == sum(
        item.fields["policy_weight"].sum() for item in found.rows
    )


def test_prompts_and_groups(collected):
    _, found = collected("grpo", grpo__prompts_per_step=2, grpo__group_size=3)
    prompts = [tuple(item.tokens[item.fields["policy_weight"] == 0]) for item in found.rows]
    assert len(prompts) == 6
    assert len(set(prompts[:3])) == len(set(prompts[3:])) == 1
    assert prompts[0] != prompts[3]


REWARDS = [1, 0, 0, -0.1, 0, 1, 0.5, 1]


@pytest.mark.parametrize("how", ["centered", "scaled", "leave_one_out"])
def test_advantage(script, collected, how):
    script(REWARDS)
    _, found = collected("grpo", grpo__group_size=4, grpo__advantage=how)
    expected = [*oracle.compared(REWARDS[:4], how), *oracle.compared(REWARDS[4:], how)]
    np.testing.assert_allclose(advantages_of(found), expected, rtol=1e-4, atol=1e-6)
    shown = [trajectory.advantages for trajectory in found.trajectories]
    np.testing.assert_allclose(np.ravel(shown), expected, rtol=1e-4, atol=1e-6)


# --- What leaving the warm start costs ---------------------------------------------------------


@pytest.mark.parametrize("where", ["reward", "loss"])
def test_kl_costs_reward_or_is_in_the_loss(
    tiny_context, moved_policy, state_of, earning, logprobs_of, where
):
    kind = {"reward": "k1", "loss": "k3"}[where]
    values = {"kl_in": where, "kl_coefficient": 0.3, "adaptive_kl_target_per_sequence": 1e-6}
    context = tiny.changed(tiny_context, **{f"grpo__{k}": v for k, v in values.items()})
    method, turns = GRPO(context), earning()
    found = method.collect(state_of(method, moved_policy), 1)
    earned = []
    for turn in turns:
        reference = logprobs_of(method.reference.params, turn.prompt, turn.tokens)
        cost = oracle.divergence(kind, None, reference, turn.completion.logprobs, turn.tokens)
        assert abs(cost.sum()) > 1e-3
        earned.append(turn.score.reward - (0.3 * cost.sum() if where == "reward" else 0))
    expected = [oracle.compared(pair, "centered") for pair in np.reshape(earned, (-1, 2))]
    np.testing.assert_allclose(advantages_of(found), np.ravel(expected), rtol=1e-3, atol=1e-4)
    in_rows = {"kl_weight", "ref_logprobs"} if where == "loss" else set()
    fields = {field.name for field in method.plan.objective.fields}
    assert all(set(item.fields) == fields for item in found.rows)
    assert fields >= in_rows
    assert method.config.divergence == (kind, where)
    assert found.metrics["kl_per_sequence"] > 0
    assert found.carry["kl_coefficient"] == pytest.approx(0.3 * (1 + 0.2 * 8 / 10_000), rel=1e-7)


# --- DAPO --------------------------------------------------------------------------------------


def test_groups_that_teach_something(tiny_context):
    rewards = [0, 0, 1, 0, 1, 1, 0, -0.1]
    turns = [tiny.turn(tiny_context, "0", reward=reward) for reward in rewards]
    assert keep_unequal(turns, 2) == [*turns[2:4], *turns[6:8]]
    assert keep_unequal(turns, 4) == turns
    assert keep_unequal(turns[:2], 2) == []


EQUAL, OTHER, THIRD = [0, 0, 1, 0, 1, 1], [0, 0, 0, 1, 0, 0], [1, 0, 0, 1, 1, 0]


@pytest.mark.parametrize(
    ("rounds", "kept", "generated"),
    [
        (0, [(0, 0), (1, 0), (1, 1)], 1),
        (1, [(1, 0), (0, 1)], 2),
        (2, [(1, 0), (0, 1), (1, 0)], 3),
        (9, [(1, 0), (0, 1), (1, 0)], 3),
    ],
)
def test_resample_rounds(script, collected, rounds, kept, generated):
    """Groups with equal rewards give way to others, as long as there are rounds and a need."""
    script(EQUAL, draws=(OTHER, THIRD))
    values = {"grpo__resample_rounds": rounds, "grpo__prompts_per_step": 3}
    _, found = collected("grpo", **values)
    expected = np.ravel([oracle.compared(group, "centered") for group in kept])
    np.testing.assert_allclose(advantages_of(found), expected, atol=1e-6)
    assert found.metrics.get("groups_kept", 3) == len(kept)
    assert found.metrics["tokens_generated"] == generated * 6 * found.metrics["completion_tokens"]
    # Those that were sampled first are what the policy is like, also without a second look.
    assert found.metrics["accuracy"] == pytest.approx(np.mean(np.array(EQUAL) == 1))
    assert found.metrics["equal_groups"] == pytest.approx(2 / 3)


def test_where_no_group_teaches_the_first_are_kept(script, collected):
    script([0, 0, 1, 1], draws=([0, 0, 0, 0],))
    values = {"grpo__resample_rounds": 1, "grpo__prompts_per_step": 2}
    _, found = collected("grpo", **values)
    assert advantages_of(found) == [0] * 4
    assert found.metrics["groups_kept"] == 0


def test_resampled_prompts_are_others(collected):
    _, found = collected("grpo", grpo__resample_rounds=2)
    assert found.metrics["groups_kept"] <= 4
    assert found.metrics["tokens_generated"] >= sum(
        item.fields["policy_weight"].sum() for item in found.rows
    )


@pytest.mark.parametrize(
    ("tokens", "expected"),
    # The limit is 24 tokens.
    [(0, [0] * 4), (8, [0, 0, 3 / 8, 1]), (24, [1 / 24, 16 / 24, 19 / 24, 1])],
)
def test_overlong_tokens(tiny_context, tokens, expected):
    method = GRPO(tiny.changed(tiny_context, grpo__overlong_tokens=tokens))
    turns = [tiny.turn(tiny_context, tokens=[9] * n) for n in (1, 16, 19, 24)]
    assert [method.overlong(turn) for turn in turns] == expected


def test_overlong_tokens_cost_reward(script, collected):
    """Of equal answers the shorter one is better."""
    script([1, 1, 1, 1])
    _, plain = collected("grpo", grpo__prompts_per_step=2)
    assert advantages_of(plain) == [0] * 4
    script([1, 1, 1, 1])
    _, found = collected("grpo", grpo__prompts_per_step=2, grpo__overlong_tokens=24)
    lengths = [item.fields["policy_weight"].sum() for item in found.rows]
    expected = [oracle.compared(pair, "centered") for pair in -np.reshape(lengths, (2, 2)) / 24]
    np.testing.assert_allclose(advantages_of(found), np.ravel(expected), atol=1e-6)
    assert len(set(lengths)) > 1
