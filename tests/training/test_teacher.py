"""A term from outside, whose teacher reads another context: SDPO, by the ordinary batch and update.

Σ_t D(π(·|x, y_<t) ‖ sg π(·|x, f, y_<t)), arXiv 2601.20802, in thirty lines.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import pad

from t2g_jax import losses
from t2g_jax.models import heads
from t2g_jax.parallel.sharding import batch_sharding, state_shardings
from t2g_jax.reductions import Reduction
from t2g_jax.training.batch import micro_batches, pack
from t2g_jax.training.forward import Need, forward
from t2g_jax.training.objective import Objective
from t2g_jax.training.sequences import TokenSequence, Weight
from t2g_jax.training.state import TrainState
from t2g_jax.training.step import make_update
from t2g_jax.training.terms import NLL, NLL_WEIGHT, Term, TermOutput

STUDENT_WEIGHT = Weight("student_weight", sampled=True)
LENGTHS = {"length": 24, "teacher_length": 40}


@dataclasses.dataclass(frozen=True)
class LogitDistillation(Term):
    """The divergence from a teacher that has read more."""

    alpha: float = 0.5
    temperature: float = 1.0
    name = "sdpo_loss"
    weight = STUDENT_WEIGHT
    needs = Need.TEACHER

    def __call__(self, batch, outputs):
        divergence = outputs.head.distillation(
            outputs.hidden,
            outputs.teacher_hidden,
            alpha=self.alpha,
            temperature=self.temperature,
        )
        return TermOutput(divergence, {"sdpo_divergence": divergence})


@pytest.fixture(scope="module")
def rows():
    """Completions of 1 to 8 tokens, each with feedback that only the teacher reads; one without."""
    rng = np.random.default_rng(3)

    def tokens(count):
        return rng.integers(0, 16, count)

    found = []
    for n in (5, 8, 1, 3, 6, 2, 7):
        prompt, feedback = tokens(rng.integers(1, 5)), tokens(rng.integers(2, 9))
        row = TokenSequence.from_parts((prompt, {}), (tokens(n), {STUDENT_WEIGHT: 1.0}))
        found.append(row.with_teacher([*prompt, *feedback], slice(len(prompt), None)))
    supervised = TokenSequence.from_parts((tokens(2), {}), (tokens(4), {NLL_WEIGHT: 1.0}))
    return [*found, supervised]


@pytest.fixture(scope="module", params=[0.0, 0.5, 1.0], ids="alpha {}".format)
def objective(request):
    term = LogitDistillation(alpha=request.param, temperature=0.7)
    return Objective((term, NLL(0.1)), temperature=0.7)


@pytest.fixture(scope="module")
def learn(params, model, optimizer, mesh_of):
    """learn(objective, batch, mesh shape, micro, steps): metrics of updates, and the parameters."""

    def learn(objective, batch, shape=(1, 1, 1, 1), micro=1, steps=1):
        mesh = mesh_of(*shape)
        state = TrainState.create(jax.tree.map(jnp.array, params), optimizer)
        state = jax.device_put(state, state_shardings(state, mesh))
        update = make_update(model, objective, optimizer, mesh, state)
        placed = jax.device_put(
            micro_batches(batch, micro), batch_sharding(mesh, micro_batched=True)
        )
        reports = []
        for _ in range(steps):
            state, report = update(state, placed)
            reports.append(jax.device_get(report))
        return reports, jax.device_get(state.params)

    return learn


def close(a, b, atol=1e-5):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=atol), a, b)


def test_the_value_is_the_divergence_of_whole_distributions(params, rows, model, objective):
    """Each token's, from what student and teacher say on their own of whole sequences."""
    term, *_ = objective.terms

    def log_probs(tokens, where):
        arrays = np.array([tokens]), np.arange(len(tokens))[None], np.ones((1, len(tokens)), int)
        hidden = heads.hidden_states(params, model, *arrays)[0, where]
        return hidden @ heads.lm_kernel(params) / term.temperature

    expected = []
    for row in rows[:-1]:
        (asked,) = np.nonzero(row.teacher.index >= 0)
        student = log_probs(row.tokens, asked - 1)
        teacher = log_probs(row.teacher.tokens, row.teacher.index[asked] - 1)
        expected.append(losses.logit_distillation(student, teacher, alpha=term.alpha))
    batch = pack(rows, fields=objective.fields, **LENGTHS)
    _, metrics = objective(params, batch, objective.denominators(batch), model=model)
    found = metrics["sum"]["sdpo_divergence"]
    np.testing.assert_allclose(found, np.concatenate(expected).mean(), rtol=1e-4)
    assert found > 1e-3


def test_no_gradient_reaches_the_teacher(params, rows, model):
    """The gradient is that of a divergence from a constant."""
    objective = Objective((LogitDistillation(),))
    batch = pack(rows[:-1], fields=objective.fields, **LENGTHS)
    whole = objective.denominators(batch)
    constant = forward(params, batch, Need.TEACHER, model=model).teacher_hidden

    @jax.grad
    def expected(params):
        outputs = forward(params, batch, Need.NOTHING, model=model)
        outputs = dataclasses.replace(outputs, teacher_hidden=constant)
        values = objective.terms[0](batch, outputs).loss
        return jnp.sum(values * batch[STUDENT_WEIGHT]) / whole["shared"]

    found = jax.grad(lambda p: objective(p, batch, whole, model=model)[0])(params)
    assert np.abs(found["decoder"]["embed"]["embedding"]).max() > 1e-4
    close(found, expected(params), atol=1e-6)


def test_packed_rows_are_learned_as_unpacked_ones(learn, rows, objective):
    packed = pack(rows, fields=objective.fields, **LENGTHS)
    unpacked = pad(rows, fields=objective.fields, **LENGTHS)
    assert packed.tokens.shape[0] < unpacked.tokens.shape[0] == len(rows)
    assert (packed.teacher.segment_ids.max(-1) > 1).any()
    one, other = (learn(objective, batch) for batch in (packed, unpacked))
    close(one, other)
    (report,) = one[0]
    assert report["sdpo_loss"] > 0
    assert report["grad_norm"] > 0


@pytest.mark.parametrize(
    ("shape", "micro"), [((1, 1, 1, 1), 4), ((8, 1, 1, 1), 1), ((2, 1, 4, 1), 2)]
)
def test_micro_batches_and_meshes_learn_the_same(learn, rows, shape, micro):
    objective = Objective(
        (LogitDistillation(), NLL(0.1)), reduction=Reduction.SEQUENCE_MEAN_TOKEN_MEAN
    )
    batch = pad(rows, fields=objective.fields, **LENGTHS)
    close(learn(objective, batch, shape, micro), learn(objective, batch))


def test_it_learns_what_the_teacher_says(learn, rows):
    """By the ordinary update, from which the divergence falls at each of five steps."""
    objective = Objective((LogitDistillation(alpha=0.0),))
    batch = pack(rows[:-1], fields=objective.fields, **LENGTHS)
    reports, _ = learn(objective, batch, steps=5)
    divergences = [report["sdpo_divergence"] for report in reports]
    assert divergences == sorted(divergences, reverse=True)
    assert divergences[-1] < 0.9 * divergences[0]


def test_a_batch_without_teachers_is_refused(params, rows, model):
    objective = Objective((LogitDistillation(),))
    batch = pack([rows[0].only([STUDENT_WEIGHT])], length=24, fields=objective.fields)
    with pytest.raises(ValueError, match="a teacher is asked for, but the batch has none"):
        objective(params, batch, objective.denominators(batch), model=model)
