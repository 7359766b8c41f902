"""Text2Grad: from span rewards and a critic to advantages, against loops in NumPy."""

import jax
import numpy as np
import oracle
import pytest
import tiny

from t2g_jax.feedback.judgment import judge, token_labels
from t2g_jax.methods.text2grad import Text2Grad, fade, fade_rewards
from t2g_jax.phases import samples

BETA, GAMMA, LAMBDA = 0.3, 0.9, 0.8
SETTINGS = {
    "text2grad__steps": 9,  # so that step 1 keeps no samples
    "text2grad__gamma": GAMMA,
    "text2grad__gae_lambda": LAMBDA,
    "text2grad__kl_coefficient": BETA,
}


@pytest.fixture
def collect(tiny_context, moved, state_of, earning, monkeypatch, rng):
    """collect(**values): the method, what it collects when spans are worth random numbers, the
    completions it sampled and those numbers."""

    def collect(beta=BETA, **values):
        method = Text2Grad(tiny.changed(tiny_context, **SETTINGS | values))
        turns, delta = earning(), []

        def marked(given):
            delta.extend(rng.uniform(-1, 1, len(turn.tokens)) for turn in given)
            return list(delta), {}

        monkeypatch.setattr(method, "marked", marked)
        state = state_of(method, moved, kl_coefficient=beta)
        return method, method.collect(state, 1), turns, delta

    return collect


@pytest.mark.parametrize(
    ("kind", "sampling"),
    [
        (None, {}),
        ("full", {}),
        ("k1", {}),
        ("full", {"sampling__temperature": 0.7, "sampling__top_k": 3}),
        ("k1", {"sampling__temperature": 0.7, "sampling__top_k": 3}),
    ],
)
@pytest.mark.parametrize("whiten", [True, False])
def test_advantages(collect, moved, read, kind, sampling, whiten):
    changes = {"text2grad__kl": kind, "text2grad__whiten": whiten} | sampling
    method, collected, turns, delta = collect(**changes)
    temperature = sampling.get("sampling__temperature", 1.0)
    reference = method.reference.params | {"value_head": moved["value_head"]}  # not used
    expected, divergences = [], []
    for turn, rewards in zip(turns, delta, strict=True):
        tokens = [*turn.prompt, *turn.tokens]
        before = slice(len(turn.prompt) - 1, len(tokens) - 1)
        (logits, values), (ref_logits, _) = read(moved, tokens), read(reference, tokens)
        policy, other = (oracle.log_softmax(x[before] / temperature) for x in (logits, ref_logits))
        mine = policy[np.arange(len(turn.tokens)), turn.tokens]
        divergence = oracle.divergence(kind or "k1", policy, other, mine, turn.tokens)
        advantages = oracle.generalized_advantages(
            rewards - BETA * divergence, values[before], gamma=GAMMA, gae_lambda=LAMBDA
        )
        expected.append((advantages, advantages + values[before], values[before]))
        divergences.append(divergence)
    everything = np.concatenate([advantages for advantages, _, _ in expected])
    mean, deviation = everything.mean(), np.sqrt(everything.var(ddof=1) + 1e-8)

    for item, turn, (advantages, returns, values) in zip(
        collected.rows, turns, expected, strict=True
    ):
        if whiten:
            advantages = (advantages - mean) / deviation
        learned = item.fields["policy_weight"] > 0
        assert item.tokens[learned].tolist() == turn.tokens
        for name, wanted in (
            ("advantages", advantages),
            ("returns", returns),
            ("old_values", values),
            ("sampler_logprobs", turn.completion.logprobs),
        ):
            np.testing.assert_allclose(item.fields[name][learned], wanted, rtol=2e-4, atol=2e-4)
            assert not item.fields[name][~learned].any()
    assert ("cutoffs" in collected.rows[0].fields) == bool(sampling)
    assert collected.metrics["kl"] == pytest.approx(np.concatenate(divergences).mean(), abs=1e-4)
    assert collected.metrics["kl"] != 0
    assert collected.metrics["span_reward"] == pytest.approx(np.concatenate(delta).mean(), abs=1e-5)
    assert collected.metrics["tokens_generated"] == sum(len(turn.tokens) for turn in turns)


@pytest.mark.parametrize(
    ("baseline", "whiten"), [("group", True), ("group", False), ("batch", True)]
)
def test_without_a_value_head(collect, baseline, whiten):
    """What follows a token, less what follows it in the group's others, or in the whole round."""
    method, collected, turns, delta = collect(
        beta=0.0,
        text2grad__baseline=baseline,
        text2grad__whiten=whiten,
        text2grad__gae_lambda=0.95,  # the default: it has no effect
        text2grad__kl_coefficient=0.0,
    )
    assert "value_head" not in method.params
    assert {term.name for term in method.plan.objective.terms} == {"policy_loss"}
    to_go = [
        [sum(GAMMA ** (k - t) * r[k] for k in range(t, len(r))) for t in range(len(r))]
        for r in delta
    ]
    expected = []
    for i, mine in enumerate(to_go):
        group = i // method.config.group_size * method.config.group_size
        others = [to_go[j] for j in range(group, group + method.config.group_size) if j != i]
        if baseline == "batch":
            expected.append(np.array(mine))
            continue
        there = [[other[t] for other in others if t < len(other)] for t in range(len(mine))]
        expected.append(
            np.array([g - np.mean(of) if of else 0.0 for g, of in zip(mine, there, strict=True)])
        )
    if whiten:
        everything = np.concatenate(expected)
        deviation = np.sqrt(everything.var(ddof=1) + 1e-8)
        expected = [(each - everything.mean()) / deviation for each in expected]
    for row, turn, wanted in zip(collected.rows, turns, expected, strict=True):
        learned = row.fields["policy_weight"] > 0
        assert row.tokens[learned].tolist() == turn.tokens
        np.testing.assert_allclose(row.fields["advantages"][learned], wanted, rtol=1e-4, atol=1e-4)
        assert not row.fields["advantages"][~learned].any()
        assert not {"returns", "old_values"} & set(row.fields)


def test_the_tasks_reward_is_not_learned(collect):
    """Spans alone are: the completions earn random numbers, and returns do not show them."""
    _, collected, turns, delta = collect(
        beta=0.0, text2grad__kl="k3", text2grad__gamma=1.0, text2grad__gae_lambda=1.0
    )
    for item, turn, rewards in zip(collected.rows, turns, delta, strict=True):
        first = item.fields["returns"][len(turn.prompt)]
        assert first == pytest.approx(rewards.sum(), abs=1e-4)


@pytest.mark.parametrize("after", [0, 3, None])
def test_fade_after(collect, after):
    _, collected, _, delta = collect(text2grad__fade_after=after, text2grad__kl="k3")
    expected = [
        [
            d / (1 + np.exp(min(max(n - after - 6, -10), 6))) if after is not None else d
            for n, d in enumerate(rewards, start=1)
        ]
        for rewards in delta
    ]
    expected = np.concatenate(expected).mean()
    assert collected.metrics["span_reward"] == pytest.approx(expected, abs=1e-5)


def test_fading_by_hand():
    factors = fade(30, 4)  # of the tokens 1 … 30
    assert factors[9] == 0.5
    np.testing.assert_allclose(factors[0], 1 / (1 + np.exp(-9)))
    assert fade(1, 30)[0] == np.float32(1 / (1 + np.exp(-10)))
    np.testing.assert_allclose(factors[-1], 1 / (1 + np.exp(6)))
    assert (np.diff(factors) <= 0).all()


def test_fading_begins_with_the_first_span():
    """As the authors count: n = 1 is the first token whose reward is not 0."""
    rewards = np.array([0, 0, -1, 0, 1, 1], np.float32)
    factors = 1 / (1 + np.exp(np.arange(1, 5) - 2 - 6.0))
    expected = np.concatenate([[0, 0], rewards[2:] * factors])
    np.testing.assert_allclose(fade_rewards(rewards, 2), expected, rtol=1e-6)
    np.testing.assert_array_equal(fade_rewards(np.zeros(4), 0), 0)
    assert fade_rewards(np.zeros(0), 3).shape == (0,)


def test_the_adaptive_controller(collect):
    for target, error in ((None, 0.0), (1e-6, 0.2), (1e6, -0.2)):
        _, collected, turns, _ = collect(text2grad__adaptive_kl_target_per_sequence=target)
        factor = 1 + error * len(turns) / 10_000
        assert collected.carry["kl_coefficient"] == pytest.approx(BETA * factor, rel=1e-7)
        assert collected.metrics["kl_coefficient"] == pytest.approx(BETA)


# --- Where span rewards come from ----------------------------------------------------------------


@pytest.fixture
def turns(tiny_context):
    examples = tiny_context.task.split("train")
    texts = [tiny_context.task.solve(examples[0]), "\\boxed{9}", ""]
    return [tiny.turn(tiny_context, text, example=examples[i]) for i, text in enumerate(texts)]


def test_from_the_judge(tiny_context, turns):
    context = tiny.changed(tiny_context, text2grad__span_source="judge")
    context.tally.clear()
    method = Text2Grad(context)
    assert method.reward_model is None
    rewards, metrics = method.token_rewards(turns)
    for given, turn in zip(rewards, turns, strict=True):
        expected = token_labels(
            judge(tiny_context.judges, tiny_context.tokenizer, turn).spans, len(turn.tokens)
        )
        np.testing.assert_array_equal(given, expected)
    assert rewards[0].max() == 1
    assert rewards[1].min() == -1
    assert metrics == {
        "span_reward": pytest.approx(np.concatenate(rewards).mean()),
        "unaligned_quotes": 0,
    }
    assert context.tally["judge_failures"] == 0
    assert list(context.watch.lap()) == ["judge"]


def test_from_the_reward_model(tiny_context, turns):
    context = tiny.changed(tiny_context)
    method = Text2Grad(context)
    rewards, metrics = method.token_rewards(turns)
    expected = method.reward_model.rewards([(turn.prompt, turn.tokens) for turn in turns])
    for given, turn, wanted in zip(rewards, turns, expected, strict=True):
        assert given.shape == (len(turn.tokens),)
        np.testing.assert_allclose(given, wanted)
        assert (np.abs(given) < 1).all()
    assert (metrics["no_room"], metrics["unaligned_quotes"]) == (0, 0)
    assert list(context.watch.lap()) == ["score"]


def test_a_judge_that_fails_is_neutral_and_counted(tiny_context, turns, failing_judge):
    context = tiny.changed(tiny_context, text2grad__span_source="judge")
    context.tally.clear()
    method = Text2Grad(context)
    failing_judge(lambda completion: completion == turns[0].text)
    rewards, metrics = method.token_rewards(turns)
    assert rewards[0].tolist() == [0] * len(turns[0].tokens)
    assert rewards[1].min() == -1
    assert (context.tally["judge_failures"], metrics["unaligned_quotes"]) == (1, 0)


def test_what_a_reward_model_cannot_read_is_neutral_and_counted(tiny_context, turns, monkeypatch):
    method = Text2Grad(tiny.changed(tiny_context))
    monkeypatch.setattr(
        type(method.reward_model),
        "rewards",
        lambda self, answers, at_once: [None, *map(ones, answers[1:])],
    )
    rewards, metrics = method.token_rewards(turns)
    assert rewards[0].tolist() == [0] * len(turns[0].tokens)
    assert rewards[1].min() == 1
    assert metrics["no_room"] == 1


@pytest.mark.parametrize("threshold", [0.0, 0.5])
def test_hard_rewards_are_of_the_likeliest_class(tiny_context, turns, threshold):
    """−1, 0 or +1 and nothing between, 0 where the model is less sure than it must be."""
    changes = {"text2grad__reward": "hard", "text2grad__reward_threshold": threshold}
    method = Text2Grad(tiny.changed(tiny_context, **changes))
    rewards, _ = method.token_rewards(turns)
    answers = [(turn.prompt, turn.tokens) for turn in turns]
    for given, p in zip(rewards, method.reward_model.probabilities(answers), strict=True):
        sure = p.max(-1) >= threshold
        np.testing.assert_array_equal(given, np.where(sure, p.argmax(-1) - 1, 0))
    assert {-1, 0, 1} >= set(np.concatenate(rewards).tolist())
    assert np.concatenate(rewards).any()


def ones(answer):
    return np.ones(len(answer[1]))


# --- The rest --------------------------------------------------------------------------------


def test_samples_at_the_first_the_middle_and_the_last_step(tiny_context, state_of):
    context = tiny.changed(tiny_context, text2grad__steps=5, text2grad__kl="k1")
    method, kept = Text2Grad(context), []
    for step in range(5):
        played = method.collect(state_of(method), step).trajectories
        shown = [played[i] for i in samples.chosen(method.config, step, len(played))]
        kept.append(samples.samples_of(context, method, step, shown))
    assert [len(made) for made in kept] == [4, 0, 4, 0, 4]  # one of each prompt
    assert kept[0][0].predicted_critique is not None
    assert any(cell.predicted for cell in kept[0][0].tokens)


def test_the_value_head_starts_at_zero_beside_the_warm_start(tiny_context):
    method = Text2Grad(tiny.changed(tiny_context))
    assert not np.asarray(method.params["value_head"]["out"]["kernel"]).any()
    without = {name: value for name, value in method.params.items() if name != "value_head"}
    jax.tree.map(np.testing.assert_array_equal, without, method.reference.params)
