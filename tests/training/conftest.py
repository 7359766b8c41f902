"""A tiny policy with all heads, rows of every kind, and functions that are compiled only once."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import FIELDS, Case, pad, row

from t2g_jax.config import MeshConfig, OptimizerConfig
from t2g_jax.models import heads
from t2g_jax.models.decoder import DecoderConfig
from t2g_jax.parallel.sharding import make_mesh
from t2g_jax.training.batch import Batch, micro_batches
from t2g_jax.training.objective import Objective
from t2g_jax.training.sequences import Field
from t2g_jax.training.state import TrainState, make_optimizer
from t2g_jax.training.step import make_update

LENGTH = 32
DEFAULT = Case().objective()
MODEL = DecoderConfig(
    vocab_size=16, width=16, layers=2, heads=4, kv_heads=2, head_width=4, mlp_width=24
)


@pytest.fixture(scope="session")
def model() -> DecoderConfig:
    return MODEL


@pytest.fixture(scope="session")
def params():
    """With heads that are not at zero, and token probabilities far from uniform."""
    rng = np.random.default_rng(0)
    params = heads.init_params(MODEL, jax.random.key(0), heads=("value_head", "span_head"))
    params = jax.device_get(params)
    params["decoder"]["embed"]["embedding"] = np.float32(rng.normal(0, 0.3, (16, 16)))
    params["value_head"]["out"]["kernel"] = np.float32(rng.normal(0, 0.2, (16, 1)))
    return params


@pytest.fixture(scope="session")
def fields() -> tuple[Field, ...]:
    return FIELDS


@pytest.fixture(scope="session")
def rows():
    """Policy rows (one of two turns), distillation rows, and rows to model; 3 to 12 tokens."""
    rng = np.random.default_rng(1)

    def tokens(count):
        return rng.integers(0, 16, count)

    def sampled(count, **fields):
        cutoffs = np.where(rng.random(count) < 0.5, -np.inf, rng.uniform(-4, -2, count))
        return tokens(count), fields | {
            "policy_weight": rng.choice([0.5, 1.0, 2.0], count),
            "advantages": rng.normal(size=count),
            "old_logprobs": rng.uniform(-3.5, -1.5, count),
            "sampler_logprobs": np.linspace(-3.0, -1.0, count),
            "cutoffs": cutoffs,
            "ref_logprobs": rng.uniform(-4, -1, count),
            "kl_weight": rng.uniform(0.1, 0.5, count),
            "returns": rng.normal(size=count),
            "old_values": rng.normal(0, 0.3, count),
        }

    def distilled(count):
        return tokens(count), {
            "distill_weight": 1.0,
            "advantages": rng.normal(),
            "teacher_logprobs": rng.uniform(-3, -1, count),
            "old_logprobs": rng.uniform(-6, -1, count),
        }

    def marked(count):
        return tokens(count), {"span_weight": 1.0, "span_labels": rng.integers(-1, 2, count)}

    return [
        row((tokens(3), {}), sampled(6)),
        row((tokens(2), {}), sampled(1)),
        row((tokens(2), {}), sampled(3), (tokens(2), {}), sampled(4)),
        row((tokens(4), {}), distilled(5)),
        row((tokens(1), {}), distilled(2)),
        row((tokens(3), {}), (tokens(4), {"nll_weight": 1.0})),
        row((tokens(3), {}), marked(5), (tokens(2), {"nll_weight": rng.uniform(size=2)})),
        row((tokens(2), {}), (tokens(1), {"nll_weight": 0.3}), marked(2)),
    ]


@pytest.fixture(scope="session")
def hidden_of():
    """hidden_of(params, batch) → [B, T, D]."""

    @jax.jit
    def hidden_of(params, batch):
        return heads.hidden_states(params, MODEL, batch.tokens, batch.positions, batch.segment_ids)

    return hidden_of


@pytest.fixture(scope="session")
def loss_of():
    """loss_of(params, batch, objective) → (loss, metrics)."""

    @functools.partial(jax.jit, static_argnames="objective")
    def compiled(params, batch, denominators, objective):
        return objective(params, batch, denominators, model=MODEL)

    def loss_of(params, batch, objective=DEFAULT):
        found = compiled(params, batch, objective.denominators(batch), objective)
        loss, metrics = jax.device_get(found)
        return loss, metrics["sum"] | metrics["max"] | metrics["min"]

    return loss_of


@pytest.fixture(scope="session")
def gradient_of_loss():
    """gradient_of_loss(params, batch, objective, denominators=…) → (loss, gradients)."""

    @functools.partial(jax.jit, static_argnames="objective")
    def compiled(params, batch, denominators, objective):
        def loss(params):
            return objective(params, batch, denominators, model=MODEL)[0]

        return jax.value_and_grad(loss)(params)

    def gradient_of_loss(params, batch, objective=DEFAULT, denominators=None):
        if denominators is None:
            denominators = objective.denominators(batch)
        return jax.device_get(compiled(params, batch, denominators, objective))

    return gradient_of_loss


@pytest.fixture(scope="session")
def mesh_of():
    """mesh_of(data, fsdp, context, tensor), over the first devices."""

    def mesh_of(*shape):
        return make_mesh(MeshConfig(*shape), jax.devices()[: np.prod(shape)])

    return mesh_of


@pytest.fixture(scope="session")
def settings() -> Objective:
    """An objective in which every field of a batch counts."""
    case = Case(temperature=0.7, divergence=("abs", "loss"), correction="ppo", logprob_floor=-5.0)
    return case.objective()


@pytest.fixture(scope="session")
def batches(rows, fields) -> list[Batch]:
    """A batch for each of five steps, the rows in another order each time, one to a batch row."""
    rng = np.random.default_rng(0)
    orders = [rng.permutation(len(rows)) for _ in range(5)]
    return [pad([rows[i] for i in order], length=LENGTH, fields=fields) for order in orders]


@pytest.fixture(scope="session")
def optimizer() -> optax.GradientTransformation:
    config = OptimizerConfig(learning_rate=3e-3, schedule="cosine", weight_decay=0.1, clip_norm=0.5)
    return make_optimizer(config, 5)


@pytest.fixture(scope="session")
def fresh_state(params, optimizer):
    """fresh_state() → a train state of its own."""

    def fresh_state():
        carry = {"kl_coefficient": jnp.float32(0.2)}
        return TrainState.create(jax.tree.map(jnp.array, params), optimizer, carry)

    return fresh_state


@pytest.fixture(scope="session")
def compiled_update(settings, optimizer, fresh_state, batches):
    """compiled_update(mesh, micro) → the update for micro-batches of `batches`, compiled once."""

    @functools.cache
    def compiled_update(mesh, micro):
        state = jax.eval_shape(fresh_state)
        update = make_update(MODEL, settings, optimizer, mesh, state)
        return update.lower(state, micro_batches(batches[0], micro)).compile()

    return compiled_update
