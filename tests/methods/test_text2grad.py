"""Text2Grad: from span rewards and a critic to advantages, against loops in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from t2g_jax.judges.base import JudgeError
from t2g_jax.methods import text2grad
from t2g_jax.methods.text2grad import Text2Grad, adapted
from t2g_jax.models import heads
from t2g_jax.phases.judgement import judge, token_labels
from t2g_jax.training.state import TrainState

BETA, GAMMA, LAMBDA = 0.3, 0.9, 0.8
SETTINGS = {
    "text2grad__steps": 9,  # so that step 1 keeps no samples
    "text2grad__kl_coefficient": BETA,
    "text2grad__gamma": GAMMA,
    "text2grad__gae_lambda": LAMBDA,
}


@pytest.fixture(scope="module")
def moved(tiny_context):
    """Parameters some way from the warm start, with a value head that says something."""
    params = Text2Grad(tiny_context).params
    keys = iter(jax.random.split(jax.random.key(1), 100))
    return jax.tree.map(lambda x: x + 0.05 * jax.random.normal(next(keys), x.shape), params)


@pytest.fixture
def collect(tiny_context, moved, monkeypatch, rng):
    """collect(**values): the method, what it collects when spans are worth random numbers, the
    completions it sampled and those numbers."""

    sample = text2grad.first_attempts

    def collect(**values):
        method = Text2Grad(tiny.changed(tiny_context, **SETTINGS | values))
        kept = {}

        def first_attempts(*arguments):
            kept["turns"] = sample(*arguments)
            return kept["turns"]

        def span_rewards(given):
            kept["delta"] = [rng.uniform(-1, 1, len(turn.tokens)) for turn in given]
            return kept["delta"], {}

        monkeypatch.setattr(text2grad, "first_attempts", first_attempts)
        monkeypatch.setattr(method, "span_rewards", span_rewards)
        state = TrainState(0, moved, None, {"kl_coefficient": jnp.float32(BETA)})
        return method, method.collect(state, 1), kept["turns"], kept["delta"]

    return collect


@pytest.fixture(scope="module")
def read(tiny_context):
    """read(params, tokens): log-probabilities of all next tokens before temperature, and values."""

    @jax.jit
    def forward(params, tokens):
        ones = jnp.ones_like(tokens)
        positions = jnp.arange(tokens.shape[1])[None]
        hidden = heads.hidden_states(params, tiny_context.model, tokens, positions, ones)
        return hidden @ heads.lm_kernel(params), heads.values(params, hidden)

    def read(params, tokens):
        padded = np.zeros((1, 96), np.int32)
        padded[0, : len(tokens)] = tokens
        return tuple(np.asarray(x[0, : len(tokens)], np.float64) for x in forward(params, padded))

    return read


def log_softmax(logits):
    logits = logits - logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def penalty(kind, policy, reference, sampled, chosen):
    """KL of each token: policy and reference [n, V] log-probabilities, sampled [n]."""
    if kind == "full":
        return (np.exp(policy) * (policy - reference)).sum(-1)
    ratio = sampled - reference[np.arange(len(chosen)), chosen]
    return {
        "k1": ratio,
        "abs": np.abs(ratio),
        "k2": 0.5 * ratio**2,
        "k3": np.exp(-ratio) - 1 + ratio,
    }[kind]


def generalised_advantages(rewards, values):
    advantages = np.zeros(len(rewards))
    following = next_value = 0.0
    for t in reversed(range(len(rewards))):
        delta = rewards[t] + GAMMA * next_value - values[t]
        following = advantages[t] = delta + GAMMA * LAMBDA * following
        next_value = values[t]
    return advantages


@pytest.mark.parametrize(
    ("kind", "sampling"),
    [
        ("full", {}),
        ("k1", {}),
        ("k2", {}),
        ("k3", {}),
        ("abs", {}),
        ("full", {"sampling__temperature": 0.7, "sampling__top_k": 3}),
        ("k3", {"sampling__temperature": 0.7, "sampling__top_k": 3}),
    ],
)
@pytest.mark.parametrize("whiten", [True, False])
def test_advantages(collect, moved, read, kind, sampling, whiten):
    changes = {"text2grad__kl": kind, "text2grad__whiten": whiten} | sampling
    method, collected, turns, delta = collect(**changes)
    temperature = sampling.get("sampling__temperature", 1.0)
    reference = method.reference | {"value_head": moved["value_head"]}  # not used
    expected, divergences = [], []
    for turn, rewards in zip(turns, delta, strict=True):
        tokens = [*turn.prompt, *turn.tokens]
        before = slice(len(turn.prompt) - 1, len(tokens) - 1)
        (logits, values), (ref_logits, _) = read(moved, tokens), read(reference, tokens)
        divergence = penalty(
            kind,
            log_softmax(logits[before] / temperature),
            log_softmax(ref_logits[before] / temperature),
            turn.completion.logprobs,
            turn.tokens,
        )
        advantages = generalised_advantages(rewards - BETA * divergence, values[before])
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
            ("old_logprobs", turn.completion.logprobs),
        ):
            np.testing.assert_allclose(item.fields[name][learned], wanted, rtol=2e-4, atol=2e-4)
            assert not item.fields[name][~learned].any()
    assert ("cutoffs" in collected.rows[0].fields) == bool(sampling)
    assert collected.metrics["kl"] == pytest.approx(np.concatenate(divergences).mean(), abs=1e-4)
    assert collected.metrics["kl"] != 0
    assert collected.metrics["span_reward"] == pytest.approx(np.concatenate(delta).mean(), abs=1e-5)


def test_the_adaptive_controller(collect):
    for target, factor in ((None, 1.0), (1e-6, 1.02), (1e6, 0.98)):
        _, collected, _, _ = collect(text2grad__adaptive_kl_target=target, text2grad__kl="k3")
        assert collected.carry["kl_coefficient"] == pytest.approx(BETA * factor)
        assert collected.metrics["kl_coefficient"] == pytest.approx(BETA)


def test_the_controller_by_hand():
    assert adapted(0.2, 0.5, None) == 0.2
    assert adapted(0.2, 1.1, 1.0) == pytest.approx(0.2 * 1.01)
    assert adapted(0.2, 0.9, 1.0) == pytest.approx(0.2 * 0.99)
    assert adapted(0.2, 50.0, 1.0) == pytest.approx(0.2 * 1.02)  # no more than a fifth of K
    assert adapted(0.2, 0.0, 1.0) == pytest.approx(0.2 * 0.98)


def test_the_coefficient_of_the_state_is_what_counts(collect):
    """Also after the controller has moved it away from the config's."""
    _, first, _, _ = collect(text2grad__kl_coefficient=99.0)
    assert first.metrics["kl_coefficient"] == pytest.approx(BETA)


# --- Where span rewards come from ----------------------------------------------------------------


@pytest.fixture
def turns(tiny_context):
    examples = tiny_context.task.split("train")
    texts = [tiny_context.task.solve(examples[0]), "\\boxed{9}", ""]
    return [tiny.turn(tiny_context, text, example=examples[i]) for i, text in enumerate(texts)]


def test_from_the_judge(tiny_context, turns):
    context = tiny.changed(tiny_context, text2grad__span_source="judge")
    method = Text2Grad(context)
    assert method.reward_model is None
    rewards, metrics = method.span_rewards(turns)
    for given, turn in zip(rewards, turns, strict=True):
        expected = token_labels(judge(tiny_context, turn).spans, len(turn.tokens))
        np.testing.assert_array_equal(given, expected)
    assert rewards[0].max() == 1
    assert rewards[1].min() == -1
    assert metrics == {"judge_failures": 0, "unaligned_quotes": 0}
    assert list(context.watch.lap()) == ["judge"]


def test_from_the_reward_model(tiny_context, turns):
    context = tiny.changed(tiny_context)
    method = Text2Grad(context)
    rewards, metrics = method.span_rewards(turns)
    expected = method.reward_model.rewards([(turn.prompt, turn.tokens) for turn in turns])
    for given, turn, wanted in zip(rewards, turns, expected, strict=True):
        assert given.shape == (len(turn.tokens),)
        np.testing.assert_allclose(given, wanted)
        assert (np.abs(given) < 1).all()
    assert metrics == {"judge_failures": 0, "unaligned_quotes": 0}
    assert list(context.watch.lap()) == ["score"]


def test_a_judge_that_fails_is_neutral_and_counted(tiny_context, turns, monkeypatch):
    method = Text2Grad(tiny.changed(tiny_context, text2grad__span_source="judge"))
    critique = type(tiny_context.judge).critique

    def fail(self, example, completion):
        if completion == turns[0].text:
            raise JudgeError("no credit left")
        return critique(self, example, completion)

    monkeypatch.setattr(type(tiny_context.judge), "critique", fail)
    rewards, metrics = method.span_rewards(turns)
    assert rewards[0].tolist() == [0] * len(turns[0].tokens)
    assert rewards[1].min() == -1
    assert metrics == {"judge_failures": 1, "unaligned_quotes": 0}


def test_what_a_reward_model_cannot_read_is_neutral_and_counted(tiny_context, turns, monkeypatch):
    method = Text2Grad(tiny.changed(tiny_context))
    monkeypatch.setattr(
        type(method.reward_model), "rewards", lambda self, answers: [None, *map(ones, answers[1:])]
    )
    rewards, metrics = method.span_rewards(turns)
    assert rewards[0].tolist() == [0] * len(turns[0].tokens)
    assert rewards[1].min() == 1
    assert metrics["judge_failures"] == 1


def ones(answer):
    return np.ones(len(answer[1]))


# --- The rest --------------------------------------------------------------------------------


def test_samples_at_the_first_the_middle_and_the_last_step(tiny_context):
    method = Text2Grad(tiny.changed(tiny_context, text2grad__steps=5, text2grad__kl="k1"))
    state = TrainState(0, method.params, None, {"kl_coefficient": jnp.float32(0)})
    kept = [len(method.collect(state, step).samples) for step in range(5)]
    assert kept == [4, 0, 4, 0, 4]  # one of each prompt


@pytest.mark.parametrize(
    ("field", "value", "where"),
    [
        ("value_coefficient", 0.7, "objective.value_coefficient"),
        ("value_clip", 0.7, "objective.value_clip"),
        ("epsilon_low", 0.1, "objective.epsilon_low"),
        ("epsilon_high", 0.3, "objective.epsilon_high"),
        ("steps", 9, "steps"),
        ("epochs", 3, "epochs"),
        ("minibatches", 4, "minibatches"),
        ("micro_batches", 2, "micro_batches"),
    ],
)
def test_fields_of_the_config_reach_the_learning(tiny_context, field, value, where):
    method = Text2Grad(tiny.changed(tiny_context, **{f"text2grad__{field}": value}))
    found = method.learning
    for name in where.split("."):
        found = getattr(found, name)
    assert found == value


def test_the_value_head_starts_at_zero_beside_the_warm_start(tiny_context):
    method = Text2Grad(tiny.changed(tiny_context))
    assert not np.asarray(method.params["value_head"]["out"]["kernel"]).any()
    without = {name: value for name, value in method.params.items() if name != "value_head"}
    jax.tree.map(np.testing.assert_array_equal, without, method.reference)
