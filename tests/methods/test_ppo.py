"""PPO: the task's reward at the last token, and GAE, against loops in NumPy."""

import numpy as np
import oracle
import pytest
import tiny
from cases import row

from t2g_jax.methods.ppo import PPO, estimate
from t2g_jax.training.terms import ADVANTAGES, OLD_VALUES, RETURNS

BETA, GAMMA, LAMBDA = 0.3, 0.9, 0.8


def test_the_reward_is_the_last_tokens(tiny_context):
    method = PPO(tiny.changed(tiny_context))
    turns = [
        tiny.turn(tiny_context, tokens=[7, 8, 4], reward=0.75),
        tiny.turn(tiny_context, tokens=[4], reward=-0.1),
        tiny.turn(tiny_context, tokens=[], reward=-0.1, ended=False),
    ]
    rewards, metrics = method.token_rewards(turns)
    expected = [[0, 0, 0.75], [-0.1], []]
    for found, wanted in zip(rewards, expected, strict=True):
        np.testing.assert_allclose(found, wanted)
    assert metrics == {}


def test_estimates_by_hand(tiny_context):
    config = tiny.changed(tiny_context, ppo__gamma=0.5, ppo__gae_lambda=0.5, ppo__whiten=False)
    item = row(([5, 5], {}), ([6, 7], {"policy_weight": 1.0}))
    rewards, values = np.array([9.0, 9.0, 0.0, 2.0]), np.array([9.0, 9.0, 0.5, 1.0])
    (found,) = estimate([item], [rewards], [values], config.config.ppo)
    # δ of the last is 2 − 1, of the one before ½·1 − ½ = 0, and a quarter of the last comes back.
    np.testing.assert_allclose(found[ADVANTAGES], [0, 0, 0.25, 1.0])
    np.testing.assert_allclose(found[RETURNS], [0, 0, 0.75, 2.0])
    np.testing.assert_allclose(found[OLD_VALUES], [0, 0, 0.5, 1.0])


@pytest.mark.parametrize(
    ("kind", "where", "whiten"),
    [("k1", "reward", False), ("full", "reward", True), ("k3", "loss", False)],
)
def test_advantages(tiny_context, moved, state_of, earning, read, kind, where, whiten):
    values = {"steps": 9, "gamma": GAMMA, "gae_lambda": LAMBDA, "whiten": whiten}
    values |= {"kl": kind, "kl_in": where, "kl_coefficient": BETA}
    method = PPO(tiny.changed(tiny_context, **{f"ppo__{k}": v for k, v in values.items()}))
    turns = earning()
    collected = method.collect(state_of(method, moved), 1)
    reference = method.reference.params | {"value_head": moved["value_head"]}  # not used
    expected = []
    for turn in turns:
        tokens = [*turn.prompt, *turn.tokens]
        before = slice(len(turn.prompt) - 1, len(tokens) - 1)
        (logits, found), (ref_logits, _) = read(moved, tokens), read(reference, tokens)
        policy, other = (oracle.log_softmax(x[before]) for x in (logits, ref_logits))
        sampled = turn.completion.logprobs
        rewards = np.zeros(len(turn.tokens))
        rewards[-1] = turn.score.reward
        if where == "reward":
            rewards -= BETA * oracle.divergence(kind, policy, other, sampled, turn.tokens)
        advantages = oracle.generalized_advantages(
            rewards, found[before], gamma=GAMMA, gae_lambda=LAMBDA
        )
        expected.append((advantages, advantages + found[before], found[before]))
    everything = np.concatenate([advantages for advantages, _, _ in expected])
    mean, deviation = everything.mean(), np.sqrt(everything.var(ddof=1) + 1e-8)
    for item, (advantages, returns, found) in zip(collected.rows, expected, strict=True):
        learned = item.fields["policy_weight"] > 0
        advantages = (advantages - mean) / deviation if whiten else advantages
        for name, wanted in (
            ("advantages", advantages),
            ("returns", returns),
            ("old_values", found),
        ):
            np.testing.assert_allclose(item.fields[name][learned], wanted, rtol=2e-4, atol=2e-4)
            assert not item.fields[name][~learned].any()
        assert ("kl_weight" in item.fields) == (where == "loss")


def test_what_the_log_and_the_report_get(collected):
    _, found = collected("ppo", ppo__group_size=2)
    assert found.metrics["tokens_generated"] == sum(
        item.fields["policy_weight"].sum() for item in found.rows
    )
    assert "span_reward" not in found.metrics
    assert found.metrics["kl"] == pytest.approx(0, abs=1e-5)
    for trajectory, item in zip(found.trajectories, found.rows, strict=True):
        learned = item.fields["policy_weight"] > 0
        (shown,) = trajectory.advantages
        np.testing.assert_allclose(shown, item.fields["advantages"][learned])
        assert trajectory.span_rewards is None
