"""Methods at work: steps collected, attempts that earn what a test says, scores in NumPy."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
import tiny

from t2g_jax.methods import grpo, make_method, ppo
from t2g_jax.models import heads
from t2g_jax.rollouts import episodes
from t2g_jax.tasks.base import JudgeError, Score
from t2g_jax.training.state import TrainState


@pytest.fixture(scope="module", autouse=True)
def _compiled_once(compiled_once):
    with compiled_once():
        yield


@pytest.fixture(scope="session")
def moved(tiny_context):
    """Parameters some way from the warm start, with a value head that says something."""
    params = make_method("ppo", tiny_context).params
    keys = iter(jax.random.split(jax.random.key(1), 100))
    return jax.tree.map(lambda x: x + 0.05 * jax.random.normal(next(keys), x.shape), params)


@pytest.fixture(scope="session")
def moved_policy(moved):
    """The same without the value head."""
    return {name: tree for name, tree in moved.items() if name != "value_head"}


@pytest.fixture(scope="session")
def state_of():
    """state_of(method, params=…, **carry): before its first update."""

    def state_of(method, params=None, **carry):
        carry = {k: jnp.float32(v) for k, v in (method.plan.carry | carry).items()}
        return TrainState(0, method.params if params is None else params, None, carry)

    return state_of


@pytest.fixture(scope="session")
def collected(tiny_context, state_of):
    """collected(name, **values): the method with a changed config, and its first step."""

    def collected(name, **values):
        method = make_method(name, tiny.changed(tiny_context, **values))
        return method, method.collect(state_of(method), 0)

    return collected


@pytest.fixture
def script(tiny_context, monkeypatch, rng):
    """script(first, second, …): what the attempts of each turn will earn, whoever makes them.

    With `draws`, what first attempts earn that are sampled in addition; `graded`: as of a task in
    which nothing is right or wrong. Returns the context; the
    completions are "0", "0 0", … or, after feedback, "1", "1 1", …, of random probability.
    """

    def made(word, examples, prompts, earned, graded):
        turns = []
        for i, (example, prompt, reward) in enumerate(zip(examples, prompts, earned, strict=True)):
            turn = tiny.turn(
                tiny_context,
                " ".join([word] * (1 + i % 3)),
                example=example,
                prompt=prompt,
                reward=reward,
            )
            logprobs = np.float32(-rng.exponential(size=len(turn.tokens)))
            completion = dataclasses.replace(turn.completion, logprobs=logprobs)
            score = dataclasses.replace(turn.score, correct=None if graded else turn.score.correct)
            turns.append(dataclasses.replace(turn, completion=completion, score=score))
        return turns

    def script(first, *later, draws=(), graded=False):
        rounds, following = [first, *draws], iter(later)

        def first_attempts(rollouts, params, config, name, step, *, draw=0):
            examples = list(rollouts.prompts.task.split("train"))[draw * 8 :]
            groups = [examples[i // config.group_size] for i in range(len(rounds[draw]))]
            prompts = [rollouts.prompts.render(example.prompt) for example in groups]
            return made("0", groups, prompts, rounds[draw], graded)

        def attempt(rollouts, params, examples, prompts, key, *, batch_size, **progress):
            return made("1", examples, prompts, next(following), graded)

        for module in (episodes, grpo, ppo):
            monkeypatch.setattr(module, "first_attempts", first_attempts)
        monkeypatch.setattr(episodes, "attempt", attempt)

    return script


@pytest.fixture(scope="session")
def episodes_of(tiny_context):
    """episodes_of(rewards of the turns of each): prompts 5 5 …, completions 6 7."""

    def episodes_of(rewards):
        return [
            episodes.Episode(
                tuple(
                    tiny.turn(tiny_context, prompt=[5] * (2 + 4 * h), tokens=[6, 7], reward=reward)
                    for h, reward in enumerate(turns)
                )
            )
            for turns in rewards
        ]

    return episodes_of


@pytest.fixture(scope="session")
def assembly(golden):
    """The reference values of RLTF."""
    (assembly,) = json.loads((golden / "rltf_assembly.json").read_text())
    return assembly


@pytest.fixture
def reference_episodes(tiny_context, assembly):
    """The episodes that they are of."""
    found = []
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
            found.append(episodes.Episode(tuple(turns)))
    return found


@pytest.fixture
def earning(monkeypatch, rng):
    """earning(): attempts are sampled as ever, and earn random numbers. Returns a list of them."""
    sample = ppo.first_attempts

    def earning():
        turns = []

        def first_attempts(*arguments):
            for turn in sample(*arguments):
                score = Score(correct=False, formatted=True, reward=float(rng.uniform(-1, 1)))
                turns.append(dataclasses.replace(turn, score=score))
            return list(turns)

        for module in (grpo, ppo):
            monkeypatch.setattr(module, "first_attempts", first_attempts)
        return turns

    return earning


@pytest.fixture
def failing_judge(tiny_context, monkeypatch):
    """failing_judge(when=…): the judge fails at these completions."""
    critique = type(tiny_context.judge).critique

    def failing_judge(when=lambda completion: True):
        def fail(self, example, completion):
            if when(completion):
                raise JudgeError("no credit left")
            return critique(self, example, completion)

        monkeypatch.setattr(type(tiny_context.judge), "critique", fail)

    return failing_judge


@pytest.fixture(scope="session")
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


@pytest.fixture(scope="session")
def logprobs_of(read, moved):
    """logprobs_of(params, prompt, completion, temperature): [n, V] where each token was chosen."""

    def logprobs_of(params, prompt, completion, temperature=1.0):
        tokens = [*prompt, *completion]
        logits, _ = read({"value_head": moved["value_head"]} | params, tokens)
        return oracle.log_softmax(logits[len(prompt) - 1 : len(tokens) - 1] / temperature)

    return logprobs_of
