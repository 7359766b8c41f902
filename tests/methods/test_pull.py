"""What is charged for the divergence pulls back to the reference."""

import dataclasses
import functools
import types

import jax
import numpy as np
import pytest
import tiny

from t2g_jax.config import OptimizerConfig
from t2g_jax.methods import grpo, make_method, ppo
from t2g_jax.parallel.sharding import batch_sharding, state_shardings
from t2g_jax.rollouts.attempts import completion_row, first_attempts
from t2g_jax.run.trainer import minibatches
from t2g_jax.runtime import hosts
from t2g_jax.tasks.base import Score
from t2g_jax.training.forward import Need
from t2g_jax.training.state import TrainState, make_optimizer
from t2g_jax.training.step import make_update
from t2g_jax.training.terms import POLICY_WEIGHT


@dataclasses.dataclass
class Learner:
    """A method on its way from `moved`, which is away from the reference."""

    name: str
    context: object
    method: object
    state: TrainState
    update: object

    def learn(self, steps):
        """Makes steps; the metrics of each."""
        context, plan = self.context, self.method.plan
        log = []
        for step in range(1, steps + 1):
            collected = self.method.collect(self.state, step)
            log.append(collected.metrics)
            carried = {name: np.float32(value) for name, value in collected.carry.items()}
            carried = hosts.place(carried, jax.tree.map(lambda x: x.sharding, self.state.carry))
            self.state = self.state.replace(carry=carried)
            purpose = f"{self.name}/{step}"
            for batch in minibatches(plan, collected.rows, context.mesh, context.keys, purpose):
                placed = hosts.place(batch, batch_sharding(context.mesh, micro_batched=True))
                self.state, _ = self.update(self.state, placed)
        return log

    def attempts(self):
        rollouts, params = self.method.rollouts, self.state.params
        draw = functools.partial(first_attempts, rollouts, params, self.method.config, "measured")
        return [turn for step in range(2) for turn in draw(step)]

    @property
    def divergence(self):
        """The exact KL to the reference, nats a token."""
        rows = [completion_row(turn, {POLICY_WEIGHT: 1.0}) for turn in self.attempts()]
        reference = self.method.reference.params
        score_rows, params = self.method.score_rows, self.state.params
        found = score_rows(params, rows, Need.REFERENCE_KL, reference=reference)
        weights = np.concatenate([item.fields["policy_weight"] for item in rows])
        full = np.concatenate([about["reference_kl"] for about in found])
        return float(np.average(full, weights=weights))

    @property
    def length(self):
        """Tokens of a completion."""
        return float(np.mean([len(turn.tokens) for turn in self.attempts()]))


def _learner(context, params, name, learning_rate=2e-3, **values):
    values = {"kl_coefficient": 1.0, "group_size": 8, "prompts_per_step": 8} | values
    values |= {"steps": 1000, "minibatches": 1}
    context = tiny.changed(context, **{f"{name}__{k}": v for k, v in values.items()})
    method = make_method(name, context)
    optimizer = make_optimizer(OptimizerConfig(learning_rate=learning_rate), 1000)
    params = {k: jax.tree.map(jax.numpy.copy, params[k]) for k in method.params}
    carry = {k: np.float32(v) for k, v in method.plan.carry.items()}
    state = TrainState.create(params, optimizer, carry)
    state = hosts.place(state, state_shardings(state, context.mesh))
    objective = method.plan.objective
    update = make_update(context.model, objective, optimizer, context.mesh, state)
    return Learner(name, context, method, state, update)


@pytest.fixture(scope="module")
def before(tiny_context, moved):
    """Where all begin."""
    learner = _learner(tiny_context, moved, "ppo")
    return types.SimpleNamespace(divergence=learner.divergence, length=learner.length)


@pytest.fixture
def learner(tiny_context, moved, before, monkeypatch):
    """learner(name, earn, **values): a method whose attempts earn what `earn` says of their tokens,
    and that charges what its settings say."""

    def learner(name, earn=lambda tokens: 0.0, **values):
        def attempts(*arguments, **options):
            turns = first_attempts(*arguments, **options)
            scores = [Score(correct=False, formatted=True, reward=earn(t.tokens)) for t in turns]
            pairs = zip(turns, scores, strict=True)
            return [dataclasses.replace(turn, score=score) for turn, score in pairs]

        for module in (grpo, ppo):
            monkeypatch.setattr(module, "first_attempts", attempts)
        return _learner(tiny_context, moved, name, **values)

    return learner


@pytest.mark.parametrize(
    ("name", "kl", "kl_in"),
    [
        ("grpo", "k1", None),
        ("grpo", "k2", None),
        ("grpo", "abs", None),
        ("grpo", None, None),
        ("ppo", None, None),
        ("ppo", "k3", "loss"),
    ],
)
def test_the_divergence_falls(learner, before, name, kl, kl_in):
    """The task rewards nothing."""
    pulled = learner(name, kl=kl, kl_in=kl_in)
    pulled.learn(12)
    assert pulled.divergence < before.divergence / 2


def test_the_full_divergence_in_rewards_pays_for_ending_early(learner, before):
    """Each token costs 0 or more: completions get shorter, and the divergence does not fall."""
    charged = learner("ppo", kl="full")
    charged.learn(10)
    assert charged.length < 0.7 * before.length
    assert charged.divergence > before.divergence


def test_the_controller_holds_the_divergence_that_a_reward_drives_away(learner):
    """The reward is for tokens that the reference does not prefer; β starts far too low for it."""
    target = 2.0
    earning = {"earn": lambda tokens: float(np.mean(np.asarray(tokens) % 2 == 0))}
    earning |= {"learning_rate": 5e-3, "kl_coefficient": 0.02}
    fixed = learner("grpo", **earning).learn(10)
    assert fixed[-1]["kl_per_sequence"] > 3 * target
    controlled = {"adaptive_kl_target_per_sequence": target, "adaptive_kl_horizon": 32}
    log = learner("grpo", **earning, **controlled).learn(16)
    assert max(line["kl_coefficient"] for line in log) > 0.1
    assert target / 2 < np.mean([line["kl_per_sequence"] for line in log[-6:]]) < 2 * target
