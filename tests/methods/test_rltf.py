"""RLTF: what is learned from episodes, in all three methods."""

import dataclasses

import jax
import numpy as np
import oracle
import pytest
import tiny

from t2g_jax import losses
from t2g_jax.methods import make_method
from t2g_jax.methods.rltf import (
    RLTFSelfDistillation,
    distillation_gains,
    distilled_rows,
    progress,
)
from t2g_jax.training.batch import pack
from t2g_jax.training.terms import (
    ADVANTAGES,
    DISTILL_WEIGHT,
    NLL,
    OLD_LOGPROBS,
    TEACHER_LOGPROBS,
)

EPISODIC = ("grpo-multiturn", "rltf-sd", "rltf-fm")
REWARDS = [[0, 1], [0, 0], [0, 1], [1]]
"""Of the turns of two groups of two."""
SCRIPT = [0, 0, 0, 1], [1, 0, 1]
"""The same as attempts are made."""


def settings(context, **values):
    changes = {f"rltf_sd__{name}": value for name, value in values.items()}
    return tiny.with_values(context.config, **changes).rltf_sd


# --- All three ---------------------------------------------------------------------------------


def policy_part(found):
    return [item for item in found.rows if "policy_weight" in item.fields]


@pytest.mark.parametrize("name", EPISODIC)
def test_they_are_multi_turn_grpo(script, collected, name):
    script(*SCRIPT)
    section = name.replace("-", "_")
    _, found = collected(name, **{f"{section}__prompts_per_step": 2, f"{section}__gamma": 0.5})
    rows = policy_part(found)
    assert len(rows) == 4
    turns = [[0.25, 0.5], [-0.25, -0.5], [-0.25, 0.0], [0.25]]
    for item, expected in zip(rows, turns, strict=True):
        weight = item.fields["policy_weight"]
        starts = np.flatnonzero(np.diff(weight, prepend=0) > 0)
        np.testing.assert_allclose(item.fields["advantages"][starts], expected, atol=1e-6)
        assert not item.fields["advantages"][weight == 0].any()
    assert found.metrics["accuracy_turn_2"] == pytest.approx(2 / 3)
    assert [trajectory.advantages for trajectory in found.trajectories] == [
        pytest.approx(expected, abs=1e-6) for expected in turns
    ]


@pytest.mark.parametrize("name", EPISODIC)
@pytest.mark.parametrize("where", ["reward", "loss"])
def test_kl_costs_each_turn_its_own_reward(
    tiny_context, moved_policy, state_of, script, logprobs_of, name, where
):
    script([0, 0], [0.5, 0.25])
    section = name.replace("-", "_")
    values = {"kl": None, "kl_in": where, "kl_coefficient": 0.3, "gamma": 0.5, "steps": 9}
    values |= {"prompts_per_step": 1}
    context = tiny.changed(tiny_context, **{f"{section}__{k}": v for k, v in values.items()})
    method = make_method(name, context)
    found = method.collect(state_of(method, moved_policy), 1)
    rewards, starts = np.array([[0, 0.5], [0, 0.25]]), []
    for i, item in enumerate(policy_part(found)):
        weight = item.fields["policy_weight"]
        starts.append(np.flatnonzero(np.diff(weight, prepend=0) > 0))
        ends = np.flatnonzero(np.diff(weight, append=0) < 0) + 1
        for h, (start, end) in enumerate(zip(starts[i], ends, strict=True)):
            prompt, chosen = item.tokens[:start], item.tokens[start:end]
            reference = logprobs_of(method.reference.params, prompt, chosen)
            policy = logprobs_of(moved_policy, prompt, chosen)
            mine = policy[np.arange(len(chosen)), chosen]
            cost = oracle.divergence("k1", None, reference, mine, chosen)
            rewards[i, h] -= 0.3 * cost.sum() if where == "reward" else 0
        assert ("kl_weight" in item.fields) == (where == "loss")
    returns = np.stack([rewards[:, 0] + 0.5 * rewards[:, 1], rewards[:, 1]], 1)
    expected = returns - returns.mean(0)
    for item, places, wanted in zip(policy_part(found), starts, expected, strict=True):
        np.testing.assert_allclose(item.fields["advantages"][places], wanted, rtol=1e-3, atol=1e-4)


def test_the_baseline_distils_nothing_and_models_nothing(script, collected):
    script(*SCRIPT)
    method, found = collected("grpo-multiturn", grpo_multiturn__prompts_per_step=2)
    fields = {"policy_weight", "advantages", "sampler_logprobs"}
    expected = fields | ({"kl_weight", "ref_logprobs"} if method.config.kl_in == "loss" else set())
    assert {field.name for field in method.plan.objective.fields} == expected
    assert all(set(item.fields) == expected for item in found.rows)
    assert len(found.rows) == 4
    assert "distilled" not in found.metrics
    assert "critiques_learned" not in found.metrics


def distilled(episodes, chosen, coefficient, *, sampled=False):
    """The rows of episodes; `sampled`: with what the sampler said of them as the teacher's."""
    gains = distillation_gains(episodes, chosen, coefficient)
    revised = [episodes[i] for i in gains]
    teachers = [episode.turns[-1].completion.logprobs for episode in revised]
    return distilled_rows(revised, list(gains.values()), teachers if sampled else None)


# --- RLTF-SD: rows -----------------------------------------------------------------------------


def test_distilled_rows_are_the_references(assembly, reference_episodes, tiny_context):
    chosen = settings(
        tiny_context,
        group_size=len(assembly["groups"][0]["trajectories"]),
        prompts_per_step=len(assembly["groups"]),
        baseline="first_turn",
    )
    ours = distilled(reference_episodes, chosen, assembly["sd_coef"], sampled=True)
    expected = [row for row in assembly["training_rows"] if row["is_distillation"]]
    expected.sort(key=lambda row: (row["group"], row["traj"]))
    assert len(ours) == len(expected) == 9
    floors = 0
    for wanted, item in zip(expected, ours, strict=True):
        trajectory = assembly["groups"][wanted["group"]]["trajectories"][wanted["traj"]]
        before = np.zeros(len(item), np.float32)
        before[-len(trajectory["y1"]) :] = trajectory["y1_logprobs_given_x0"]
        item = item.with_fields({OLD_LOGPROBS: before})
        fields = (DISTILL_WEIGHT, ADVANTAGES, OLD_LOGPROBS, TEACHER_LOGPROBS)
        batch = jax.tree.map(lambda x: x[0], pack([item], length=16, fields=fields))
        length = len(item) - 1
        for name, array in (
            ("input", batch.tokens),
            ("target", batch.targets),
            ("mask", batch[DISTILL_WEIGHT]),
            ("logprobs", batch[OLD_LOGPROBS]),
            ("advantages", multiplier(batch, assembly["logprob_threshold"])),
        ):
            np.testing.assert_allclose(array[:length], wanted[name], rtol=1e-5, atol=1e-6)
        sampled = batch[TEACHER_LOGPROBS][batch[DISTILL_WEIGHT] > 0]
        np.testing.assert_allclose(sampled, trajectory["y1_logprobs"], rtol=1e-5)
        floors += int(np.sum(np.array(wanted["logprobs"]) < -5))
    assert floors > 0


def multiplier(batch, floor):
    """What each token's score is multiplied by in the end, the floor included."""

    def loss(logprobs):
        per_token = losses.self_distillation(
            logprobs, batch[ADVANTAGES], old_logprobs=batch[OLD_LOGPROBS], logprob_floor=floor
        )
        return (per_token * batch[DISTILL_WEIGHT]).sum()

    return -jax.grad(loss)(batch[OLD_LOGPROBS])


@pytest.mark.parametrize(
    ("baseline", "gains"),
    [
        # r₁ − mean r₀ of the group: 0 in the first, ½ in the second.
        ("first_turn", [1.0, 0.0, 0.5]),
        # r₁ − mean r₁ of those that were tried again: ½ in the first, 1 in the second.
        ("second_turn", [0.5, -0.5, 0.0]),
    ],
)
@pytest.mark.parametrize("coefficient", [0.0, 0.1, 2.0])
def test_baseline(tiny_context, episodes_of, baseline, gains, coefficient):
    chosen = settings(tiny_context, baseline=baseline)
    rows = distilled(episodes_of(REWARDS), chosen, coefficient)
    found = [item.fields["advantages"][-1] for item in rows]
    np.testing.assert_allclose(found, coefficient * np.array(gains), rtol=1e-6)


def test_the_baselines_differ_where_every_second_attempt_is_right(tiny_context, episodes_of):
    """The second-turn mean makes the signal vanish: the reason for the first-turn baseline."""
    episodes = episodes_of([[0, 1]] * 4)
    signal = {}
    for baseline in ("first_turn", "second_turn"):
        rows = distilled(episodes, settings(tiny_context, baseline=baseline), 0.1)
        signal[baseline] = [item.fields["advantages"][-1] for item in rows]
    assert signal["second_turn"] == [0] * 4
    assert min(signal["first_turn"]) > 0


def test_a_turn_is_compared_with_the_same_turn_of_the_others(tiny_context, episodes_of):
    """Of four, three of which were tried again and two once more: r₁ = 1, 0, 0 and r₂ = 1, 0."""
    episodes = episodes_of([[0, 1], [0, 0, 1], [0, 0, 0], [1]])
    chosen = settings(
        tiny_context, turns=3, group_size=4, prompts_per_step=1, baseline="second_turn"
    )
    found = [item.fields["advantages"][-1] for item in distilled(episodes, chosen, 1.0)]
    np.testing.assert_allclose(found, [1 - 1 / 3, 1 / 2, -1 / 2], rtol=1e-6)
    chosen = dataclasses.replace(chosen, baseline="first_turn")  # mean of 0, 0, 0 and 1
    found = [item.fields["advantages"][-1] for item in distilled(episodes, chosen, 1.0)]
    np.testing.assert_allclose(found, [0.75, 0.75, -0.25], rtol=1e-6)


def test_the_last_of_three_turns_is_distilled(tiny_context, episodes_of):
    chosen = settings(tiny_context, turns=3, group_size=2)
    rows = distilled(episodes_of([[0, 0, 1], [0, 0, 0]]), chosen, 0.1)
    assert rows[0].tokens.tolist() == [5, 5, 6, 7]
    assert rows[0].fields["advantages"][-1] == pytest.approx(0.1)
    assert not any("cutoffs" in item.fields for item in rows)  # not so sampled from x₀


# --- RLTF-SD: collecting -----------------------------------------------------------------------


def distilled_part(found):
    return [item for item in found.rows if "distill_weight" in item.fields]


def test_collected_rows_know_what_the_first_prompt_made_of_them(collected):
    values = {"minibatches": 2, "correction": "importance"}  # else nobody asks
    _, found = collected("rltf-sd", **{f"rltf_sd__{k}": v for k, v in values.items()})
    rows = distilled_part(found)
    assert rows
    assert len(found.rows) == 8 + len(rows)
    for item in rows:
        learned = item.fields["distill_weight"] > 0
        before, teacher = (
            item.fields[name][learned] for name in ("old_logprobs", "teacher_logprobs")
        )
        assert (before < 0).all()
        assert (before != teacher).any()


@pytest.mark.parametrize(
    ("schedule", "coefficients"), [("constant", [0.2] * 5), ("linear", [0, 0.05, 0.1, 0.15, 0.2])]
)
def test_distill_schedule(tiny_context, script, state_of, schedule, coefficients):
    values = {"steps": 5, "distill_coefficient": 0.2, "distill_schedule": schedule}
    values |= {"prompts_per_step": 1}
    context = tiny.changed(tiny_context, **{f"rltf_sd__{k}": v for k, v in values.items()})
    method = RLTFSelfDistillation(context)
    for step, coefficient in enumerate(coefficients):
        script([0, 0], [1, 1])
        found = method.collect(state_of(method), step)
        (one, other) = distilled_part(found)
        assert one.fields["advantages"][-1] == pytest.approx(coefficient)
        assert other.fields["advantages"][-1] == pytest.approx(coefficient)
        assert found.metrics["distill_coefficient"] == pytest.approx(coefficient)
        assert found.metrics["distilled"] == 2


def test_progress_is_none_at_the_first_step_and_whole_at_the_last():
    assert [progress(step, 3) for step in range(3)] == [0, 0.5, 1]
    assert progress(0, 1) == 1


def test_with_a_budget_the_schedule_follows_the_tokens(tiny_context, script, state_of):
    """From 0 to all of λ in the round that reaches the budget, whatever `steps`."""
    values = {"steps": 2, "token_budget": 40, "distill_coefficient": 0.2}
    values |= {"distill_schedule": "linear", "prompts_per_step": 1}
    context = tiny.changed(tiny_context, **{f"rltf_sd__{k}": v for k, v in values.items()})
    method, generated, coefficients = RLTFSelfDistillation(context), 0, []
    while generated < 40:
        script([0, 0], [1, 1])
        state = state_of(method, progress=generated / 40)
        found = method.collect(state, len(coefficients))
        assert found.metrics["tokens_generated"] == 10
        generated += 10
        coefficients.append(found.metrics["distill_coefficient"])
    assert coefficients == pytest.approx([0, 0.2 / 3, 0.4 / 3, 0.2])


def test_right_first_attempts_leave_nothing_to_distil(script, collected):
    script([1, 1])
    _, found = collected("rltf-sd", rltf_sd__prompts_per_step=1)
    assert found.metrics["distilled"] == 0
    assert len(found.rows) == 2


TEMPERATURE, COEFFICIENT, GAMMA = 0.8, 0.7, 0.5


@pytest.mark.parametrize("baseline", ["first_turn", "second_turn"])
@pytest.mark.parametrize(
    "correction", ["none", "importance", "sequence_importance", "ppo", "cispo"]
)
@pytest.mark.parametrize("floor", [None, -5.0])
def test_the_loss_of_a_collected_step(
    tiny_context, moved_policy, state_of, script, logprobs_of, baseline, correction, floor
):
    """From what turns earned to the number that is differentiated, at a policy that has moved."""
    script(*SCRIPT)
    values = {"baseline": baseline, "correction": correction, "logprob_floor": floor}
    values |= {"distill_coefficient": COEFFICIENT, "gamma": GAMMA, "prompts_per_step": 2}
    values |= {"epochs": 2}  # with one update ratios are 1
    context = tiny.changed(
        tiny_context,
        sampling__temperature=TEMPERATURE,
        **{f"rltf_sd__{k}": v for k, v in values.items()},
    )
    method = RLTFSelfDistillation(context)
    found = method.collect(state_of(method), 0)
    start, objective = method.params, method.plan.objective
    length = max(len(item) for item in found.rows)
    batch = pack(found.rows, length=2 * length, fields=objective.fields)
    loss = jax.jit(
        lambda params, batch: objective(
            params, batch, objective.denominators(batch), model=context.model
        )[0]
    )(moved_policy, batch)

    def parts(item, weight):
        """Of each completion in a row: where it is, and log π of its tokens, now and before."""
        weight = item.fields[weight]
        starts = np.flatnonzero(np.diff(weight, prepend=0) > 0)
        ends = np.flatnonzero(np.diff(weight, append=0) < 0) + 1
        for a, b in zip(starts, ends, strict=True):
            y = item.tokens[a:b]
            now, before = (
                logprobs_of(params, item.tokens[:a], y, TEMPERATURE)[np.arange(len(y)), y]
                for params in (moved_policy, start)
            )
            yield slice(a, b), now, before

    returns = np.array([[0.5, 1], [0, 0], [0.5, 1], [1, np.nan]]).reshape(2, 2, 2)
    advantages = (returns - np.nanmean(returns, 1, keepdims=True)).reshape(4, 2)
    terms, dropped = [], 0
    for item, values in zip(policy_part(found), advantages, strict=True):
        for (where, now, _), advantage in zip(parts(item, "policy_weight"), values, strict=False):
            old = item.fields["old_logprobs"][where]
            terms.append(oracle.surrogate("ppo", now, old, np.full(len(now), advantage)))
    gains = {"first_turn": [1, 0, 0.5], "second_turn": [0.5, -0.5, 0]}[baseline]
    for item, gain in zip(distilled_part(found), gains, strict=True):
        ((where, now, before),) = parts(item, "distill_weight")
        teacher = item.fields["teacher_logprobs"][where] if correction != "none" else now
        weights = np.full(len(now), COEFFICIENT * gain)
        term = oracle.surrogate(correction, now, teacher, weights)
        if floor is not None:
            dropped += (before < floor).sum()
            term[before < floor] = 0
        terms.append(term)
    assert len(terms) == 4 + 3 + 3
    expected = np.concatenate(terms).mean()
    assert loss == pytest.approx(expected, rel=2e-3, abs=2e-4)
    everything = sum(len(term) for term in terms[-3:])
    assert floor is None or 0 < dropped < everything


# --- RLTF-FM -----------------------------------------------------------------------------------


def critique_part(found):
    return [item for item in found.rows if "nll_weight" in item.fields]


@pytest.mark.parametrize("correct", [True, False])
def test_critiques_are_predicted(script, collected, tiny_context, correct):
    """After x₀, y₀ and the request; of right attempts too, if that is asked for."""
    script(*SCRIPT)
    _, found = collected("rltf-fm", rltf_fm__prompts_per_step=2, rltf_fm__critique_correct=correct)
    rows, encode = critique_part(found), tiny_context.tokenizer.encode
    assert len(rows) == found.metrics["critiques_learned"] == (4 if correct else 3)
    assert found.metrics["judge_failures"] == 0
    for item, first in zip(rows, policy_part(found), strict=False):
        weight = item.fields["nll_weight"]
        start = int(np.argmax(weight > 0))
        assert weight[start:].all()
        assert set(item.fields) == {"nll_weight"}  # y₀ is read, and not learned by this
        y0 = np.flatnonzero(np.diff(first.fields["policy_weight"], prepend=0, append=0))
        x0_y0 = first.tokens[: y0[1]]
        assert item.tokens[: len(x0_y0)].tolist() == x0_y0.tolist()
        asked = tiny_context.tokenizer.decode(item.tokens[len(x0_y0) : start].tolist())
        assert asked == "Critique the answer."
        examples = tiny_context.task.split("train")
        text = tiny_context.tokenizer.decode(x0_y0[y0[0] :].tolist())
        example = next(
            e for e in examples if tiny_context.prompts.render(e.prompt) == x0_y0[: y0[0]].tolist()
        )
        critique = tiny_context.judges.critique(example, text).text
        said = [*encode(critique), tiny_context.tokenizer.end_id]
        assert item.tokens[start:].tolist() == said


@pytest.mark.parametrize(("correct", "learned"), [(False, 3), (True, 4)])
def test_critiques_of_every_turn_are_predicted(script, collected, tiny_context, correct, learned):
    """Of three turns the first two are criticized: the right one among them if that is asked for.

    A critique is asked for where its own attempt stands in the conversation.
    """
    script([0, 0], [0, 1], [1])
    changes = {"prompts_per_step": 1, "turns": 3, "critique_correct": correct}
    _, found = collected("rltf-fm", **{f"rltf_fm__{k}": v for k, v in changes.items()})
    rows, decode = critique_part(found), tiny_context.tokenizer.decode
    assert len(rows) == found.metrics["critiques_learned"] == learned
    asked_after = []
    for item in rows:
        start = int(np.argmax(item.fields["nll_weight"] > 0))
        conversation = decode(item.tokens[:start].tolist(), skip_special=False)
        assert conversation.endswith("<|user|>Critique the answer.<|end|><|assistant|>")
        asked_after.append(conversation.count("<|assistant|>") - 1)
    assert asked_after == ([1, 2, 1, 2] if correct else [1, 2, 1])


@pytest.mark.parametrize("name", [*EPISODIC, "rejection-sampling"])
def test_nobody_asks_about_right_answers_nor_about_the_last(script, collected, failing_judge, name):
    """A judge may cost money: it is asked about what is tried again, and about nothing else."""
    asked = []
    failing_judge(lambda completion: bool(asked.append(completion)))
    script([0, 1, 0, 1], [0, 1], [1])
    section = name.replace("-", "_")
    changes = {"prompts_per_step": 2, "group_size": 2, "turns": 3}
    collected(name, **{f"{section}__{k}": v for k, v in changes.items()})
    # The wrong first attempts and the wrong second one; `script` writes "0" and "1" for them.
    assert asked == ["0", "0 0 0", "1"]


@pytest.mark.parametrize("coefficient", [0.0, 0.1, 2.0])
def test_feedback_coefficient(tiny_context, coefficient):
    context = tiny.changed(tiny_context, rltf_fm__feedback_coefficient=coefficient)
    method = make_method("rltf-fm", context)
    (term,) = (term for term in method.plan.objective.terms if isinstance(term, NLL))
    assert term.coefficient == coefficient


@pytest.mark.parametrize(("when", "failures", "learned"), [("right", 1, 3), ("all", 4, 0)])
def test_a_judge_that_fails_teaches_nothing_and_is_counted(
    script, collected, failing_judge, when, failures, learned
):
    """Also where it is only asked for what is to be learned: the last attempt is right."""
    script(*SCRIPT)
    asked = []

    def fails(completion):
        asked.append(completion)
        return when == "all" or len(asked) == 4

    failing_judge(fails)
    changes = {"prompts_per_step": 2, "critique_correct": True}
    _, found = collected("rltf-fm", **{f"rltf_fm__{k}": v for k, v in changes.items()})
    assert found.metrics["judge_failures"] == failures
    assert found.metrics["critiques_learned"] == len(critique_part(found)) == learned
    assert len(policy_part(found)) == 4


def test_critiques_that_do_not_fit_are_not_learned(script, collected, tiny_context):
    script([0, 0, 0, 1])
    examples = list(tiny_context.task.split("train"))[:2]
    longest = max(len(tiny_context.prompts.render(example.prompt)) for example in examples)
    room = longest + tiny_context.config.sampling.max_new_tokens
    _, found = collected("rltf-fm", rltf_fm__prompts_per_step=2, model__context_length=room)
    assert found.metrics["no_room"] == 3
    assert all(len(item) <= room for item in found.rows)
    assert found.metrics["critiques_learned"] < 4
