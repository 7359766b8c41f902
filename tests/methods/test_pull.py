"""What is charged for the divergence pulls back to the reference: learning from nothing else."""

import dataclasses

import jax
import numpy as np
import pytest
import tiny

from t2g_jax import hosts
from t2g_jax.config import OptimizerConfig
from t2g_jax.methods import grpo, make_method, ppo
from t2g_jax.methods.base import completion_row, first_attempts
from t2g_jax.phases.training import minibatches
from t2g_jax.tasks.base import Score
from t2g_jax.training.sharding import batch_sharding, state_shardings
from t2g_jax.training.state import TrainState, make_optimizer
from t2g_jax.training.step import make_update

STEPS = 25


@pytest.fixture
def pulled(tiny_context, moved, monkeypatch):
    """pulled(name, kl): the exact KL to the reference, nats a token, before and after learning with
    a task that rewards nothing."""
    nothing = Score(correct=False, formatted=True, reward=0.0)

    def unrewarded(*arguments, **options):
        turns = first_attempts(*arguments, **options)
        return [dataclasses.replace(turn, score=nothing) for turn in turns]

    for module in (grpo, ppo):
        monkeypatch.setattr(module, "first_attempts", unrewarded)

    def pulled(name, kl):
        values = {"kl": kl, "kl_coefficient": 1.0, "group_size": 8, "prompts_per_step": 8}
        values |= {"steps": 1000, "minibatches": 1}
        context = tiny.changed(tiny_context, **{f"{name}__{k}": v for k, v in values.items()})
        method = make_method(name, context)
        learning, mesh = method.learning, context.mesh
        optimizer = make_optimizer(OptimizerConfig(learning_rate=2e-3), 1000)
        params = {k: v for k, v in moved.items() if k in method.params}
        carry = {k: np.float32(v) for k, v in learning.carry.items()}
        state = TrainState.create(jax.tree.map(jax.numpy.copy, params), optimizer, carry)
        state = hosts.place(state, state_shardings(state, mesh))
        update = make_update(
            context.model, learning.objective, optimizer, mesh, state, one_update=True
        )

        def exact(params):
            turns = first_attempts(context, params, method.config, "measured", 0)
            rows = [completion_row(context, turn, policy_weight=1.0) for turn in turns]
            weights = np.concatenate([item.fields["policy_weight"] for item in rows])
            return np.average(np.concatenate(method.reference.full(params, rows)), weights=weights)

        before = exact(state.params)
        for step in range(1, STEPS + 1):
            rows = method.collect(state, step).rows
            for batch in minibatches(context, name, learning, rows, step):
                state, _ = update(
                    state, hosts.place(batch, batch_sharding(mesh, micro_batched=True))
                )
        return before, exact(state.params)

    return pulled


@pytest.mark.parametrize(
    ("name", "kl"),
    [("grpo", "k1"), ("grpo", "k2"), ("grpo", "abs"), ("grpo", None), ("ppo", None)],
)
def test_the_divergence_falls(pulled, name, kl):
    before, after = pulled(name, kl)
    print(name, kl, before, after)
    assert after < before / 2
