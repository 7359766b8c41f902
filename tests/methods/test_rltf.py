"""RLTF-SD: episodes, and the rows that are made of them."""

import json

import jax
import numpy as np
import pytest
import tiny

from t2g_jax import losses
from t2g_jax.judges.base import JudgeError
from t2g_jax.methods import rltf
from t2g_jax.methods.rltf import Episode, RLTFSelfDistillation, assemble
from t2g_jax.training.batch import pack
from t2g_jax.training.state import TrainState


def settings(context, **values):
    changes = {f"rltf_sd__{name}": value for name, value in values.items()}
    return tiny.with_values(context.config, **changes).rltf_sd


@pytest.fixture(scope="module")
def assembly(golden):
    (assembly,) = json.loads((golden / "rltf_assembly.json").read_text())
    return assembly


@pytest.fixture(scope="module")
def assembled(assembly, tiny_context):
    """Our rows of the reference's groups, and the trajectories they are of."""
    episodes = []
    for group in assembly["groups"]:
        for given in group["trajectories"]:
            names = [("y0", group["x0"], "r0"), ("y1", given.get("x1"), "r1")]
            turns = [
                tiny.turn(
                    tiny_context,
                    prompt=prompt,
                    tokens=given[name],
                    logprobs=given[f"{name}_logprobs"],
                    reward=given[reward],
                )
                for name, prompt, reward in names
                if name in given
            ]
            episodes.append(Episode(turns))
    chosen = settings(
        tiny_context,
        group_size=len(assembly["groups"][0]["trajectories"]),
        prompts_per_step=len(assembly["groups"]),
        gamma=assembly["gamma"],
        distill_coefficient=assembly["sd_coef"],
        logprob_floor=assembly["logprob_threshold"],
        baseline="first_turn",
    )
    return assemble(episodes, chosen)


def places(assembly):
    """(group, trajectory) of the reference's rows: of all, and of those with a second turn."""
    everyone = [
        (g, t, "y1" in trajectory)
        for g, group in enumerate(assembly["groups"])
        for t, trajectory in enumerate(group["trajectories"])
    ]
    return [(g, t) for g, t, _ in everyone], [(g, t) for g, t, retried in everyone if retried]


def expected_rows(assembly, *, distilled):
    return {
        (row["group"], row["traj"]): row
        for row in assembly["training_rows"]
        if row["is_distillation"] == distilled
    }


def test_policy_rows_are_the_references(assembly, assembled):
    expected, (ours, _) = expected_rows(assembly, distilled=False), assembled
    everyone, _ = places(assembly)
    assert len(ours) == len(expected) == 12
    for where, item in zip(everyone, ours, strict=True):
        wanted = expected[where]
        batch = pack(
            [item], length=len(item), fields=("policy_weight", "advantages", "old_logprobs")
        )
        length = len(item) - 1
        for name, array in (
            ("input", batch.tokens),
            ("target", batch.targets),
            ("mask", batch.policy_weight),
            ("advantages", batch.advantages),
            ("logprobs", batch.old_logprobs),
        ):
            np.testing.assert_allclose(array[0, :length], wanted[name], rtol=1e-5, atol=1e-5)


def test_distilled_rows_are_the_references(assembly, assembled):
    expected, (_, ours) = expected_rows(assembly, distilled=True), assembled
    _, retried = places(assembly)
    assert len(ours) == len(expected) == 9
    floors = 0
    for (g, t), item in zip(retried, ours, strict=True):
        wanted, trajectory = expected[g, t], assembly["groups"][g]["trajectories"][t]
        before = np.zeros(len(item), np.float32)
        before[-len(trajectory["y1"]) :] = trajectory["y1_logprobs_given_x0"]
        item.fields["old_logprobs"] = before
        fields = ("distill_weight", "advantages", "old_logprobs", "teacher_logprobs")
        batch = jax.tree.map(lambda x: x[0], pack([item], length=16, fields=fields))
        length = len(item) - 1
        for name, array in (
            ("input", batch.tokens),
            ("target", batch.targets),
            ("mask", batch.distill_weight),
            ("logprobs", batch.old_logprobs),
            ("advantages", multiplier(batch, assembly["logprob_threshold"])),
        ):
            np.testing.assert_allclose(array[:length], wanted[name], rtol=1e-5, atol=1e-6)
        sampled = batch.teacher_logprobs[batch.distill_weight > 0]
        np.testing.assert_allclose(sampled, trajectory["y1_logprobs"], rtol=1e-5)
        floors += int(np.sum(np.array(wanted["logprobs"]) < -5))
    assert floors > 0


def multiplier(batch, floor):
    """What each token's score is multiplied by in the end, the floor included."""

    def loss(logprobs):
        per_token = losses.self_distillation(
            logprobs, batch.advantages, old_logprobs=batch.old_logprobs, logprob_floor=floor
        )
        return (per_token * batch.distill_weight).sum()

    return -jax.grad(loss)(batch.old_logprobs)


def test_turn_advantages_are_the_references(assembly, assembled):
    (ours, _), (everyone, _) = assembled, places(assembly)
    for (g, t), item in zip(everyone, ours, strict=True):
        learned = item.fields["advantages"][item.fields["policy_weight"] > 0]
        trajectory = assembly["groups"][g]["trajectories"][t]
        sizes = [len(trajectory[name]) for name in ("y0", "y1") if name in trajectory]
        wanted = np.repeat(assembly["rl_advantages"][g][t][: len(sizes)], sizes)
        np.testing.assert_allclose(learned, wanted, rtol=1e-5, atol=1e-6)


# Two groups of two: rewards of the turns.
REWARDS = [[0, 1], [0, 0], [0, 1], [1]]


def episodes_of(context, rewards):
    return [
        Episode(
            [
                tiny.turn(context, prompt=[5] * (2 + 4 * h), tokens=[6, 7], reward=reward)
                for h, reward in enumerate(turns)
            ]
        )
        for turns in rewards
    ]


@pytest.mark.parametrize(
    ("baseline", "gains"),
    [
        # r₁ − mean r₀ of the group: 0 in the first, ½ in the second.
        ("first_turn", [1.0, 0.0, 0.5]),
        # r₁ − mean r₁ of those that were tried again: ½ in the first, 1 in the second.
        ("second_turn", [0.5, -0.5, 0.0]),
    ],
)
def test_baseline(tiny_context, baseline, gains):
    chosen = settings(tiny_context, baseline=baseline, distill_coefficient=0.1)
    _, distilled = assemble(episodes_of(tiny_context, REWARDS), chosen)
    found = [item.fields["advantages"][-1] for item in distilled]
    np.testing.assert_allclose(found, 0.1 * np.array(gains), rtol=1e-6)


def test_the_baselines_differ_where_every_second_attempt_is_right(tiny_context):
    """The second-turn mean makes the signal vanish: the reason for the first-turn baseline."""
    episodes = episodes_of(tiny_context, [[0, 1], [0, 1], [0, 1], [0, 1]])
    signal = {}
    for baseline in ("first_turn", "second_turn"):
        _, distilled = assemble(episodes, settings(tiny_context, baseline=baseline))
        signal[baseline] = [item.fields["advantages"][-1] for item in distilled]
    assert signal["second_turn"] == [0] * 4
    assert min(signal["first_turn"]) > 0


@pytest.mark.parametrize("coefficient", [0.0, 0.1, 2.0])
def test_distill_coefficient(tiny_context, coefficient):
    chosen = settings(tiny_context, distill_coefficient=coefficient)
    rows, distilled = assemble(episodes_of(tiny_context, REWARDS), chosen)
    assert distilled[0].fields["advantages"][-1] == pytest.approx(coefficient)
    assert rows[0].fields["advantages"][-1] == pytest.approx(0.5)  # not these


@pytest.mark.parametrize(("gamma", "first"), [(0.0, 0.0), (0.5, 0.25), (1.0, 0.5)])
def test_gamma_hands_later_rewards_to_the_first_turn(tiny_context, gamma, first):
    rows, _ = assemble(episodes_of(tiny_context, REWARDS), settings(tiny_context, gamma=gamma))
    learned = rows[0].fields["advantages"][rows[0].fields["policy_weight"] > 0]
    np.testing.assert_allclose(learned, [first, first, 0.5, 0.5])


def test_three_turns_are_one_row_and_the_last_is_distilled(tiny_context):
    episodes = episodes_of(tiny_context, [[0, 0, 1], [0, 0, 0]])
    rows, distilled = assemble(episodes, settings(tiny_context, turns=3, group_size=2))
    assert [len(item) for item in rows] == [2 + 4 + 4 + 2] * 2
    assert rows[0].fields["policy_weight"].tolist() == 3 * [0, 0, 1, 1]
    assert distilled[0].tokens.tolist() == [5, 5, 6, 7]
    assert distilled[0].fields["advantages"][-1] == pytest.approx(0.1)


def test_cutoffs_are_in_the_rows_of_a_sampler_that_truncates(tiny_context):
    episodes = episodes_of(tiny_context, REWARDS)
    for truncates in (False, True):
        rows, distilled = assemble(episodes, settings(tiny_context), truncates=truncates)
        assert {"cutoffs" in item.fields for item in rows} == {truncates}
        assert not any("cutoffs" in item.fields for item in distilled)  # not so sampled from x₀


# --- Playing -----------------------------------------------------------------------------------


@pytest.fixture
def play(tiny_context, monkeypatch):
    """play(first, second, …): episodes whose attempts earn these rewards, and their metrics."""

    def play(*rewards, **values):
        context = tiny.changed(tiny_context, **values)
        examples = context.task.split("train")
        first = [
            tiny.turn(context, "0", example=examples[i], reward=reward)
            for i, reward in enumerate(rewards[0])
        ]
        later = iter(rewards[1:])

        def attempt(context, params, examples, prompts, key, *, batch_size):
            return [
                tiny.turn(context, "1", example=example, prompt=prompt, reward=reward)
                for example, prompt, reward in zip(examples, prompts, next(later), strict=True)
            ]

        monkeypatch.setattr(rltf, "first_attempts", lambda *_: first)
        monkeypatch.setattr(rltf, "attempt", attempt)
        return RLTFSelfDistillation(context).play({}, 0)

    return play


def rewards_of(episodes):
    return [[turn.score.reward for turn in episode.turns] for episode in episodes]


def test_a_right_attempt_ends_the_episode(play):
    episodes, metrics = play([1, 0, 0, 1], [1, 0])
    assert rewards_of(episodes) == [[1], [0, 1], [0, 0], [1]]
    assert metrics["accuracy"] == 0.5
    assert metrics["accuracy_turn_2"] == 0.5
    assert (metrics["judge_failures"], metrics["no_room"]) == (0, 0)
    assert metrics["tokens_generated"] == 6 * 2


def test_turns(play):
    episodes, metrics = play([0, 0, 0], [0, 1, 0], [1, 0], rltf_sd__turns=3)
    assert rewards_of(episodes) == [[0, 0, 1], [0, 1], [0, 0, 0]]
    assert (metrics["accuracy_turn_2"], metrics["accuracy_turn_3"]) == (pytest.approx(1 / 3), 0.5)


def test_the_second_prompt_is_the_first_turn_and_the_critique(play, tiny_context):
    ((episode,), _) = play([0], [1])
    first, second = episode.turns
    known = [*first.prompt, *first.tokens]
    assert second.prompt[: len(known)] == known
    said = tiny_context.tokenizer.decode(second.prompt[len(known) :], skip_special=False)
    critique = tiny_context.critique(first.example, first.text).text
    assert said == f"<|user|>{critique}<|end|><|assistant|>"


def test_a_judge_that_fails_ends_the_episode(play, tiny_context, monkeypatch):
    def fail(*_):
        raise JudgeError("no credit left")

    monkeypatch.setattr(type(tiny_context.judge), "critique", fail)
    episodes, metrics = play([1, 0, 0])
    assert rewards_of(episodes) == [[1], [0], [0]]
    assert metrics["judge_failures"] == 2
    assert "accuracy_turn_2" not in metrics


def test_an_episode_ends_where_the_context_does(play, tiny_context):
    length = len(tiny_context.prompt(tiny_context.task.split("train")[0].prompt))
    new = tiny_context.config.sampling.max_new_tokens
    episodes, metrics = play([0, 1], model__context_length=length + new)
    assert rewards_of(episodes) == [[0], [1]]
    assert metrics["no_room"] == 1


# --- Collecting --------------------------------------------------------------------------------


def test_collected_rows_know_what_the_first_prompt_made_of_them(tiny_context):
    method = RLTFSelfDistillation(tiny.changed(tiny_context))
    state = TrainState(0, method.params, None)
    collected = method.collect(state, 0)
    distilled = [item for item in collected.rows if "distill_weight" in item.fields]
    assert distilled
    assert len(collected.rows) == 8 + len(distilled)
    for item in distilled:
        learned = item.fields["distill_weight"] > 0
        assert (item.fields["old_logprobs"][learned] < 0).all()
        assert (
            item.fields["old_logprobs"][learned] != item.fields["teacher_logprobs"][learned]
        ).any()


@pytest.mark.parametrize(
    ("field", "value", "where"),
    [
        ("correction", "cispo", "objective.correction"),
        ("logprob_floor", None, "objective.logprob_floor"),
        ("epsilon_low", 0.1, "objective.epsilon_low"),
        ("epsilon_high", 0.3, "objective.epsilon_high"),
        ("steps", 9, "steps"),
        ("epochs", 3, "epochs"),
        ("minibatches", 4, "minibatches"),
        ("micro_batches", 2, "micro_batches"),
    ],
)
def test_fields_of_the_config_reach_the_learning(tiny_context, field, value, where):
    method = RLTFSelfDistillation(tiny.changed(tiny_context, **{f"rltf_sd__{field}": value}))
    found = method.learning
    for name in where.split("."):
        found = getattr(found, name)
    assert found == value
