"""Before a round's first update the policy is what it was: ratios are exactly 1."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from t2g_jax.config import OptimizerConfig
from t2g_jax.methods import make_method
from t2g_jax.methods.scores import RowScorer
from t2g_jax.parallel.sharding import batch_sharding, state_shardings
from t2g_jax.rollouts.attempts import completion_row
from t2g_jax.run.trainer import minibatches
from t2g_jax.runtime import hosts
from t2g_jax.training.forward import Need
from t2g_jax.training.state import TrainState, make_optimizer
from t2g_jax.training.step import make_update

RATIOS = ("ratio", "ratio_min", "ratio_max")


@pytest.fixture
def round_of(tiny_context, moved, state_of):
    """round_of(name, dtype, **values): method, state, and the batches [1, B, T] of a round."""

    def round_of(name, dtype, sampling=(), **values):
        section = name.replace("-", "_")
        changes = {f"{section}__{k}": v for k, v in values.items()}
        changes |= {f"sampling__{k}": v for k, v in dict(sampling).items()}
        context = tiny.changed(tiny_context, **changes)
        model = dataclasses.replace(context.model, dtype=jnp.dtype(dtype))
        context = dataclasses.replace(context, model=model)
        method = make_method(name, context)
        params = {k: v for k, v in moved.items() if k in method.params}
        state = state_of(method, params)
        rows = method.collect(state, 1).rows
        batches = minibatches(method.plan, rows, context.mesh, context.keys, f"{name}/1")
        return context, method, params, list(batches)

    return round_of


def metrics_of(context, method, params, batch):
    """What the objective says of a batch, at parameters that have not moved."""
    objective = method.plan.objective

    @jax.jit
    def compute(params, batch):
        options = {"model": context.model, "mesh": context.mesh}
        return objective(params, batch, objective.denominators(batch), **options)[1]

    sharding = batch_sharding(context.mesh)
    batch = jax.tree.map(lambda x: hosts.place(x[0], sharding), batch)
    found = jax.device_get(compute(params, batch))
    return found["sum"] | found["max"] | found["min"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("surrogate", ["ppo", "gspo", "cispo", "reinforce"])
@pytest.mark.parametrize("updates", [{}, {"epochs": 2, "minibatches": 2}])
def test_ratios_are_1_before_the_first_update(round_of, dtype, surrogate, updates):
    context, method, params, batches = round_of("grpo", dtype, surrogate=surrogate, **updates)
    assert len(batches) == (4 if updates else 1)
    found = metrics_of(context, method, params, batches[0])
    assert [float(found[name]) for name in RATIOS] == pytest.approx([1] * 3, abs=1e-6)
    assert found["clip_fraction"] == 0
    # How far the sampler is away is still measured.
    assert 0 <= found["kl_sampler_trainer"] < {"float32": 1e-7, "bfloat16": 1e-4}[dtype]


@pytest.mark.parametrize(
    ("name", "sampling"),
    [("rltf-sd", {}), ("ppo", {}), ("grpo", {"temperature": 1.3, "top_p": 0.8})],
)
def test_also_of_second_attempts_of_critics_and_of_truncated_samples(round_of, name, sampling):
    values = {"minibatches": 2, "epochs": 1}
    context, method, params, batches = round_of(name, "bfloat16", sampling, **values)
    for batch in batches:
        found = metrics_of(context, method, params, batch)
        assert [float(found[name]) for name in RATIOS] == pytest.approx([1] * 3, abs=1e-6)
        assert 0 < found["kl_sampler_trainer"] < 1e-2


def test_gspo_in_bfloat16_learns_from_all_sequences(round_of):
    """By the authors' clip range, which is a tenth of what sampler and trainer differ by."""
    values = {"surrogate": "gspo", "epsilon_low": 3e-4, "epsilon_high": 4e-4, "minibatches": 2}
    context, method, params, batches = round_of("grpo", "bfloat16", **values)
    optimizer = make_optimizer(OptimizerConfig(learning_rate=0.0), 10)
    state = TrainState.create(jax.tree.map(jnp.copy, params), optimizer)
    state = hosts.place(state, state_shardings(state, context.mesh))
    update = make_update(context.model, method.plan.objective, optimizer, context.mesh, state)
    for batch in batches:
        placed = hosts.place(batch, batch_sharding(context.mesh, micro_batched=True))
        state, report = update(state, placed)
        assert [float(report[name]) for name in RATIOS] == pytest.approx([1] * 3, abs=1e-6)
        assert report["clip_fraction"] == 0
        learned, sampler = (batch.fields[f] for f in ("policy_weight", "sampler_logprobs"))
        assert np.abs(sampler - batch.fields["old_logprobs"])[learned != 0].max() > 4e-4


@pytest.mark.parametrize("sampling", [{}, {"temperature": 1.3, "top_p": 0.8}])
@pytest.mark.parametrize("correction", ["none", "sequence_importance"])
def test_importance_of_second_attempts_is_the_trainers(
    tiny_context, moved_policy, state_of, monkeypatch, correction, sampling
):
    """Not the sampler's: the product over a sequence would be more than a thousandth off."""
    changes = {"rltf_sd__correction": correction, "rltf_sd__prompts_per_step": 8}
    changes |= {f"sampling__{k}": v for k, v in sampling.items()}
    context = tiny.changed(tiny_context, **changes)
    model = dataclasses.replace(context.model, dtype=jnp.dtype("bfloat16"))
    context = dataclasses.replace(context, model=model)
    method = make_method("rltf-sd", context)
    played = []
    more_rows = method.more_rows

    def kept(state, step, episodes):
        played.extend(episodes)
        return more_rows(state, step, episodes)

    monkeypatch.setattr(method, "more_rows", kept)
    rows = method.collect(state_of(method, moved_policy), 1).rows
    rows = [item for item in rows if "distill_weight" in item.fields]
    revised = [episode.turns[-1] for episode in played if len(episode.turns) > 1]
    truncated = context.sampling.truncates
    asked = [completion_row(turn, {}, truncated=truncated) for turn in revised]
    own = RowScorer.of(context)(moved_policy, asked, Need.LOGPROBS)
    assert len(rows) == len(revised) > 8
    sampled, used = [], []
    for item, turn, about in zip(rows, revised, own, strict=True):
        assert ("teacher_logprobs" in item.fields) == (correction != "none")
        teacher = item.fields.get("teacher_logprobs", item.fields["distill_weight"])
        teacher = teacher[item.fields["distill_weight"] != 0]
        own_logprobs = about["logprobs"][len(turn.prompt) :]
        sampled.append(np.expm1((own_logprobs - turn.completion.logprobs).sum()))
        used.append(np.expm1((own_logprobs - teacher).sum()))
    assert np.abs(sampled).max() > 1e-3
    if correction != "none":  # else nobody reads it
        np.testing.assert_allclose(used, 0, atol=1e-6)
