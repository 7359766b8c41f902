"""Episodes: who tries again after which feedback, and what the turns are worth."""

import numpy as np
import oracle
import pytest
import tiny

from t2g_jax.methods.grpo_multiturn import policy_rows, turn_advantages
from t2g_jax.rollouts.engine import Rollouts
from t2g_jax.rollouts.episodes import play, turn_rewards
from t2g_jax.training.batch import pack
from t2g_jax.training.terms import ADVANTAGES, POLICY_WEIGHT, SAMPLER_LOGPROBS


def settings(context, **values):
    changes = {f"grpo_multiturn__{name}": value for name, value in values.items()}
    return tiny.with_values(context.config, **changes).grpo_multiturn


# --- Rows, against the reference values --------------------------------------------------------


@pytest.fixture
def assembled(assembly, reference_episodes, tiny_context):
    """Our rows of the reference's episodes, and the advantages of their turns."""
    chosen = settings(
        tiny_context,
        group_size=len(assembly["groups"][0]["trajectories"]),
        prompts_per_step=len(assembly["groups"]),
        gamma=assembly["gamma"],
    )
    advantages = turn_advantages(*turn_rewards(reference_episodes, 2), chosen)
    rows = [episode.row() for episode in reference_episodes]
    return policy_rows(reference_episodes, advantages, rows), advantages


def test_policy_rows_are_the_references(assembly, assembled):
    expected = [row for row in assembly["training_rows"] if not row["is_distillation"]]
    ours, _ = assembled
    assert len(ours) == len(expected) == 12
    for wanted, item in zip(
        sorted(expected, key=lambda row: (row["group"], row["traj"])), ours, strict=True
    ):
        fields = (POLICY_WEIGHT, ADVANTAGES, SAMPLER_LOGPROBS)
        batch = pack([item], length=len(item), fields=fields)
        length = len(item) - 1
        for name, array in (
            ("input", batch.tokens),
            ("target", batch.targets),
            ("mask", batch[POLICY_WEIGHT]),
            ("advantages", batch[ADVANTAGES]),
            ("logprobs", batch[SAMPLER_LOGPROBS]),
        ):
            np.testing.assert_allclose(array[0, :length], wanted[name], rtol=1e-5, atol=1e-5)


def test_turn_advantages_are_the_references(assembly, assembled):
    _, advantages = assembled
    trajectories = [t for group in assembly["groups"] for t in group["trajectories"]]
    wanted = [turns for group in assembly["rl_advantages"] for turns in group]
    for found, expected, trajectory in zip(advantages, wanted, trajectories, strict=True):
        turns = 1 + ("y1" in trajectory)
        np.testing.assert_allclose(found[:turns], expected[:turns], rtol=1e-5, atol=1e-6)
        assert not found[turns:].any()


# --- Rows, by hand -----------------------------------------------------------------------------

# Two groups of two: rewards of the turns.
REWARDS = [[0, 1], [0, 0], [0, 1], [1]]


@pytest.fixture
def rows_of(tiny_context, episodes_of):
    """rows_of(rewards, **settings): the policy rows of episodes with these rewards."""

    def rows_of(rewards, **values):
        chosen = settings(tiny_context, **values)
        episodes = episodes_of(rewards)
        advantages = turn_advantages(*turn_rewards(episodes, chosen.turns), chosen)
        return policy_rows(episodes, advantages, [episode.row() for episode in episodes])

    return rows_of


def learned(item):
    return item.fields["advantages"][item.fields["policy_weight"] > 0]


def test_rewards_of_turns_that_took_place(episodes_of):
    rewards, took_place = turn_rewards(episodes_of(REWARDS), 3)
    assert rewards.tolist() == [[0, 1, 0], [0, 0, 0], [0, 1, 0], [1, 0, 0]]
    assert took_place.tolist() == [[1, 1, 0], [1, 1, 0], [1, 1, 0], [1, 0, 0]]


@pytest.mark.parametrize(("gamma", "first"), [(0.0, 0.0), (0.5, 0.25), (1.0, 0.5)])
def test_gamma_hands_later_rewards_to_the_first_turn(rows_of, gamma, first):
    rows = rows_of(REWARDS, gamma=gamma)
    np.testing.assert_allclose(learned(rows[0]), [first, first, 0.5, 0.5])


@pytest.mark.parametrize("how", ["centered", "scaled", "leave_one_out"])
def test_advantage(rows_of, how):
    first, *others = rows_of(REWARDS, gamma=0.5, advantage=how, group_size=4, prompts_per_step=1)
    returns = oracle.compared([0.5, 0, 0.5, 1], how)
    seconds = oracle.compared([1, 0, 1], how)
    expected = np.repeat([returns[0], seconds[0]], 2)
    np.testing.assert_allclose(learned(first), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(learned(others[-1]), [returns[3]] * 2, rtol=1e-5, atol=1e-6)


def test_three_turns_are_one_row(rows_of):
    rows = rows_of([[0, 0, 1], [0, 0, 0]], turns=3, group_size=2)
    assert [len(item) for item in rows] == [2 + 4 + 4 + 2] * 2
    assert rows[0].fields["policy_weight"].tolist() == 3 * [0, 0, 1, 1]
    assert rows[0].tokens.tolist() == [5, 5, 6, 7, 5, 5, 6, 7, 5, 5, 6, 7]


def test_cutoffs_are_in_the_rows_of_a_sampler_that_truncates(episodes_of):
    for episode in episodes_of(REWARDS):
        for truncates in (False, True):
            assert ("cutoffs" in episode.row(truncated=truncates).fields) == truncates


# --- Playing -----------------------------------------------------------------------------------


@pytest.fixture
def played(tiny_context, script):
    """played(first, second, …): episodes whose attempts earn these rewards, and their metrics."""

    def played(*rewards, turns=2, group_size=1, graded=False, **values):
        context = tiny.changed(tiny_context, grpo__eval_every=1, **values)
        config = tiny.with_values(
            context.config, rejection_sampling__group_size=group_size
        ).rejection_sampling
        script(*rewards, graded=graded)
        return play(Rollouts.of(context), {}, config, "test", 0, turns=turns)

    return played


def rewards_of(episodes):
    return [[turn.score.reward for turn in episode.turns] for episode in episodes]


def test_a_right_attempt_ends_the_episode(played):
    episodes, metrics = played([1, 0, 0, 1], [1, 0])
    assert rewards_of(episodes) == [[1], [0, 1], [0, 0], [1]]
    assert [len(episode.critiques) for episode in episodes] == [0, 1, 1, 0]
    assert metrics["accuracy"] == 0.5
    assert metrics["accuracy_turn_2"] == 0.5
    assert (metrics["judge_failures"], metrics["no_room"]) == (0, 0)
    assert metrics["tokens_generated"] == sum(
        len(turn.tokens) for episode in episodes for turn in episode.turns
    )


def test_where_nothing_can_be_right_each_attempt_is_improved_on(played):
    episodes, metrics = played([1, 0.5], [0.75, 1], graded=True)
    assert rewards_of(episodes) == [[1, 0.75], [0.5, 1]]
    assert not any(name.startswith("accuracy") for name in metrics)
    assert metrics["reward"] == 0.75
    assert metrics["reward_turn_2"] == 0.875


@pytest.mark.parametrize(
    ("turns", "expected"),
    [
        (1, [[0], [0], [0]]),
        (2, [[0, 0], [0, 1], [0, 0]]),
        (3, [[0, 0, 1], [0, 1], [0, 0, 0]]),
    ],
)
def test_turns(played, turns, expected):
    episodes, metrics = played([0, 0, 0], [0, 1, 0], [1, 0], turns=turns)
    assert rewards_of(episodes) == expected
    known = {name for name in metrics if name.startswith("accuracy_turn")}
    assert known == {f"accuracy_turn_{h}" for h in range(2, turns + 1)}
    if turns == 3:
        assert (metrics["accuracy_turn_2"], metrics["accuracy_turn_3"]) == (1 / 3, 0.5)


def test_the_second_prompt_is_the_first_turn_and_the_critique(played, tiny_context):
    ((episode,), _) = played([0], [1])
    first, second = episode.turns
    known = [*first.prompt, *first.tokens]
    assert second.prompt[: len(known)] == known
    said = tiny_context.tokenizer.decode(second.prompt[len(known) :], skip_special=False)
    critique = tiny_context.judges.critique(first.example, first.text).text
    assert said == f"<|user|>{critique}<|end|><|assistant|>"
    assert episode.critiques[0].text == critique


def test_a_judge_that_fails_ends_the_episode(played, failing_judge):
    failing_judge()
    episodes, metrics = played([1, 0, 0])
    assert rewards_of(episodes) == [[1], [0], [0]]
    assert metrics["judge_failures"] == 2
    assert "accuracy_turn_2" not in metrics


def test_an_episode_ends_where_the_context_does(played, tiny_context):
    length = max(
        len(tiny_context.prompts.render(e.prompt)) for e in tiny_context.task.split("train")
    )
    new = tiny_context.config.sampling.max_new_tokens
    episodes, metrics = played([0, 1], model__context_length=length + new)
    assert rewards_of(episodes) == [[0], [1]]
    assert metrics["no_room"] == 1


def test_each_turn_samples_with_a_key_of_its_own(tiny_context):
    """Otherwise the second attempt would be the first one again."""
    config = tiny_context.config.rejection_sampling
    params = tiny_context.weights.load()
    episodes, _ = play(Rollouts.of(tiny_context), params, config, "test", 0, turns=2)
    again, _ = play(Rollouts.of(tiny_context), params, config, "test", 0, turns=2)
    others, _ = play(Rollouts.of(tiny_context), params, config, "test", 1, turns=2)

    def said(episodes):
        return [[turn.tokens for turn in episode.turns] for episode in episodes]

    assert said(episodes) == said(again) != said(others)
    assert all(first != second for first, second in filter(lambda e: len(e) == 2, said(episodes)))
