"""The jitted steps: the same on any mesh, with any number of micro-batches."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import Case, pad, row

from t2g_jax import kl
from t2g_jax.models import heads, lora
from t2g_jax.parallel.sharding import batch_sharding, path_name, state_shardings
from t2g_jax.training.batch import micro_batches, pack
from t2g_jax.training.forward import CUTOFFS, Need
from t2g_jax.training.state import TrainState
from t2g_jax.training.step import make_update, score
from t2g_jax.training.terms import NLL

MESHES = {
    "1": (1, 1, 1, 1),
    "data": (8, 1, 1, 1),
    "fsdp": (1, 8, 1, 1),
    "all": (2, 2, 1, 2),
    "context": (1, 2, 4, 1),
    "context and all": (2, 1, 2, 2),
}


def close(actual, expected, rtol=1e-5, atol=1e-6):
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, e, rtol=rtol, atol=atol)


@pytest.fixture(scope="module")
def ready(compiled_update, fresh_state, batches, mesh_of):
    """ready(mesh, micro) → (the compiled update, a fresh state, the batches), all in place."""

    def ready(mesh, micro=1):
        mesh = mesh_of(*mesh)
        state = fresh_state()
        state = jax.device_put(state, state_shardings(state, mesh))
        sharding = batch_sharding(mesh, micro_batched=True)
        placed = [jax.device_put(micro_batches(batch, micro), sharding) for batch in batches]
        return compiled_update(mesh, micro), state, placed

    return ready


@pytest.fixture(scope="module")
def run(ready):
    """run(mesh, micro) → the metrics of each step, and the last state."""

    @functools.cache
    def run(mesh, micro=1):
        update, state, batches = ready(mesh, micro)
        reports = []
        for batch in batches:
            state, report = update(state, batch)
            reports.append(jax.device_get(report))
        return reports, jax.device_get(state)

    return run


# ------------------------------------------------------------------ update


@pytest.mark.parametrize(
    ("name", "micro"),
    [("data", 1), ("fsdp", 1), ("all", 2), ("context", 1), ("context and all", 2)],
)
def test_one_device_and_eight_give_the_same_run(run, name, micro):
    reports, state = run(MESHES["1"])
    others, other = run(MESHES[name], micro)
    for step, (report, theirs) in enumerate(zip(reports, others, strict=True)):
        assert report.keys() == theirs.keys()
        for metric, value in report.items():
            np.testing.assert_allclose(
                theirs[metric], value, rtol=1e-4, atol=1e-6, err_msg=f"{metric}, step {step}"
            )
    close(other.params, state.params, rtol=1e-3, atol=1e-5)
    assert other.step == state.step == 5


def test_what_an_update_reports(run):
    reports, _ = run(MESHES["1"])
    assert set(reports[0]) == {
        *("loss", "policy_loss", "value_loss", "distill_loss", "nll", "span_loss", "kl_loss"),
        *("ratio", "ratio_min", "ratio_max", "log_ratio", "log_ratio_min", "log_ratio_max"),
        *("clip_fraction", "kl_sampler_trainer", "entropy", "distill_logprob", "distill_dropped"),
        *("nll_loss", "value_clip_fraction", "distill_clip_fraction"),
        *("span_accuracy", "grad_norm", "skipped_updates", "skipped_in_row"),
    }
    assert all(np.shape(value) == () for value in reports[0].values())
    assert reports[0]["ratio_min"] < reports[0]["ratio"] < reports[0]["ratio_max"]


def test_an_update_follows_the_gradient(
    ready, params, batches, settings, optimizer, gradient_of_loss
):
    """One step equals the optimizer applied to the gradient of the whole batch."""
    update, state, placed = ready(MESHES["1"])
    state, report = update(state, placed[0])
    loss, gradients = gradient_of_loss(params, batches[0], settings)
    change, _ = jax.jit(optimizer.update)(gradients, optimizer.init(params), params)
    close(state.params, jax.tree.map(np.add, params, change), atol=1e-5)
    close(report["loss"], loss)
    squares = sum(np.sum(np.square(g)) for g in jax.tree.leaves(gradients))
    close(report["grad_norm"], np.sqrt(squares))
    assert state.step == 1


@pytest.mark.parametrize("overflow", ["params", "second moments"])
def test_what_would_be_kept_is_finite_too(model, params, batches, settings, mesh_of, overflow):
    """Loss and gradients are; the update, or what the optimizer notes for later, is not."""
    mesh = mesh_of(1, 1, 1, 1)
    huge = optax.scale(1e38) if overflow == "params" else optax.scale_by_rms(decay=0.9)
    optimizer = optax.chain(optax.scale(1e38), huge)
    state = TrainState.create(jax.tree.map(jnp.array, params), optimizer)
    before = jax.device_get((state.params, state.opt_state))
    update = make_update(model, settings, optimizer, mesh, state)
    batch = jax.device_put(micro_batches(batches[0], 1), batch_sharding(mesh, micro_batched=True))
    state = jax.device_put(state, state_shardings(state, mesh))
    state, report = update(state, batch)
    assert np.isfinite(report["loss"])
    assert np.isfinite(report["grad_norm"])
    assert (report["skipped_updates"], state.skipped, state.step) == (1, 1, 0)
    jax.tree.map(np.testing.assert_array_equal, before, (state.params, state.opt_state))


def test_the_state_is_donated(ready):
    update, state, batches = ready(MESHES["data"])
    new, _ = update(state, batches[0])
    donated = [leaf.is_deleted() for leaf in jax.tree.leaves((state.params, state.opt_state))]
    assert all(donated)
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves((new, batches[0])))


def test_the_state_stays_in_place(ready, mesh_of):
    update, state, batches = ready(MESHES["fsdp"])
    expected = state_shardings(state, mesh_of(*MESHES["fsdp"]))
    state, _ = update(state, batches[0])
    for leaf, sharding in zip(jax.tree.leaves(state), jax.tree.leaves(expected), strict=True):
        assert leaf.sharding.is_equivalent_to(sharding, leaf.ndim)


def test_activations_stay_in_rows(ready):
    """With parameters sharded over fsdp no device holds the activations of all rows."""
    text = ready(MESHES["fsdp"])[0].as_text()
    assert "[1,32," in text
    # Embeddings are looked up for all rows, by each device its part of their width.
    assert "[8,32,2]" in text
    assert "[8,32,16]" not in text


def test_activations_stay_in_stretches_of_rows(model, params, rows, optimizer, mesh_of):
    """With rows sharded over context no device holds a layer's activations of a whole row."""
    mesh = mesh_of(2, 1, 4, 1)
    wide = dataclasses.replace(model, mlp_width=40)  # a width that nothing else has
    params = jax.eval_shape(lambda: heads.init_params(wide, jax.random.key(0)))
    state = jax.eval_shape(lambda p: TrainState.create(p, optimizer), params)
    learned = [row((item.tokens[:1], {}), (item.tokens[1:], {"nll_weight": 1.0})) for item in rows]
    objective = Case().objective(NLL, truncated=False)
    batch = micro_batches(pad(learned, length=32, fields=objective.fields), 1)
    update = make_update(wide, objective, optimizer, mesh, state)
    text = update.lower(state, batch).compile().as_text()
    assert "[4,8,40]" in text
    assert not re.search(r"\[4,32,40\]|\[128,40\]|\[8,8,40\]|\[64,40\]", text)


# ------------------------------------------------------------------ adapters


@pytest.fixture(scope="module")
def adapted(params):
    """Trained and frozen parameters; B is not zero, so that A learns from the first step on."""
    whole = lora.add_adapters(params, jax.random.key(0), rank=2)
    trained, frozen = jax.device_get(lora.split(whole))
    return jax.tree.map(lambda x: x if x.any() else x + np.float32(0.01), trained), frozen


@pytest.fixture(scope="module")
def ready_adapted(adapted, model, settings, optimizer, batches, mesh_of):
    """ready_adapted(mesh, micro) → (the update, a state, the batches, frozen parameters)."""

    @functools.cache
    def compiled(mesh, micro):
        trained, frozen = adapted
        state = jax.eval_shape(lambda: TrainState.create(trained, optimizer))
        update = make_update(model, settings, optimizer, mesh, state, frozen)
        return update.lower(state, micro_batches(batches[0], micro), frozen).compile()

    def ready_adapted(mesh, micro=1):
        mesh = mesh_of(*mesh)
        trained, frozen = adapted
        state = TrainState.create(jax.tree.map(jnp.array, trained), optimizer)
        state, frozen = (jax.device_put(x, state_shardings(x, mesh)) for x in (state, frozen))
        sharding = batch_sharding(mesh, micro_batched=True)
        placed = [jax.device_put(micro_batches(batch, micro), sharding) for batch in batches]
        return compiled(mesh, micro), state, placed, frozen

    return ready_adapted


@pytest.fixture(scope="module")
def run_adapted(ready_adapted):
    """run_adapted(mesh, micro) → the metrics of each step, and the last state."""

    @functools.cache
    def run_adapted(mesh, micro=1):
        update, state, batches, frozen = ready_adapted(mesh, micro)
        reports = []
        for batch in batches:
            state, report = update(state, batch, frozen)
            reports.append(jax.device_get(report))
        return reports, jax.device_get(state)

    return run_adapted


@pytest.mark.parametrize("name", ["all", "context and all"])
def test_adapters_on_one_device_and_on_eight(run_adapted, adapted, name):
    reports, state = run_adapted(MESHES["1"])
    others, other = run_adapted(MESHES[name], 2)
    for report, theirs in zip(reports, others, strict=True):
        for metric, value in report.items():
            np.testing.assert_allclose(theirs[metric], value, rtol=1e-4, atol=1e-6, err_msg=metric)
    close(other.params, state.params, rtol=1e-3, atol=1e-5)
    moved = jax.tree.map(lambda new, old: (new != old).any(), state.params, adapted[0])
    assert all(jax.tree.leaves(moved))


def test_an_update_of_adapters_follows_their_gradient(
    ready_adapted, adapted, batches, model, settings, optimizer
):
    trained, frozen = adapted

    @jax.jit
    @jax.value_and_grad
    def gradient(trained):
        whole = lora.join(trained, frozen)
        batch = batches[0]
        return settings(whole, batch, settings.denominators(batch), model=model)[0]

    loss, gradients = gradient(trained)
    change, _ = jax.jit(optimizer.update)(gradients, optimizer.init(trained), trained)
    update, state, placed, theirs = ready_adapted(MESHES["1"])
    state, report = update(state, placed[0], theirs)
    close(report["loss"], loss)
    close(state.params, jax.tree.map(np.add, trained, change), atol=1e-5)
    squares = sum(np.sum(np.square(g)) for g in jax.tree.leaves(gradients))
    close(report["grad_norm"], np.sqrt(squares))


def test_what_is_frozen_stays(ready_adapted, adapted):
    """Neither changed nor donated, and no part of the state."""
    update, state, batches, frozen = ready_adapted(MESHES["all"], 2)
    held = {
        path_name(path) for path, _ in jax.tree.leaves_with_path((state.params, state.opt_state))
    }
    assert not any("embed" in path or path.endswith("layers/mlp/up/kernel") for path in held)
    new, _ = update(state, batches[0], frozen)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves((state.params, state.opt_state)))
    assert jax.tree.structure(new.params) == jax.tree.structure(adapted[0])
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(frozen), adapted[1])


def test_frozen_parameters_get_no_gradient(ready_adapted, ready):
    """No product of the shape of an MLP's kernel is computed."""
    product = re.compile(r"f32\[(16,24|24,16)\]\S* dot\(")
    assert product.search(ready(MESHES["1"])[0].as_text())
    assert not product.search(ready_adapted(MESHES["1"])[0].as_text())


# ------------------------------------------------------------------ scores


@pytest.fixture(scope="module", params=["all", "context", "context and all"])
def placed(request, params, batches, mesh_of):
    """Parameters, batch and mesh, on all eight devices."""
    mesh = mesh_of(*MESHES[request.param])
    return (
        jax.device_put(params, state_shardings(params, mesh)),
        jax.device_put(batches[0], batch_sharding(mesh)),
        mesh,
    )


@pytest.fixture(scope="module")
def log_probs(params, batches, hidden_of):
    """log_probs(temperature, params) → [B, T, V], whole."""

    def log_probs(temperature, params=params):
        logits = hidden_of(params, batches[0]) @ heads.lm_kernel(params)
        return np.asarray(jax.nn.log_softmax(logits / temperature))

    return log_probs


@pytest.fixture(scope="module")
def plain(batches):
    """The batch without fields: as rows are scored that a sampler did not truncate."""
    return batches[0].replace(fields={})


OF_TARGETS = Need.LOGPROBS | Need.ENTROPY | Need.VALUES


def test_scores(params, model, plain, placed, log_probs):
    scored = score(params, plain, OF_TARGETS, model=model, temperature=0.7)
    assert set(scored) == {"logprobs", "entropy", "values"}
    expected = log_probs(0.7)
    own = np.take_along_axis(expected, plain.targets[..., None], -1)[..., 0]
    close(scored["logprobs"], own, atol=1e-5)
    close(scored["entropy"], -(np.exp(expected) * expected).sum(-1), atol=1e-5)

    sharded_params, sharded, mesh = placed
    options = {"model": model, "temperature": 0.7, "mesh": mesh}
    sharded = score(sharded_params, sharded.replace(fields={}), OF_TARGETS, **options)
    close(sharded, scored, atol=1e-5)


def test_truncated_scores_and_what_they_were_before(params, model, batches, log_probs):
    batch = batches[0].replace(fields={CUTOFFS.name: batches[0][CUTOFFS]})
    found = score(params, batch, Need.LOGPROBS | Need.UNTRUNCATED, model=model, temperature=0.7)
    whole = log_probs(0.7)
    mine = np.arange(whole.shape[-1]) == batch.targets[..., None]
    kept = np.where(mine | (whole >= batch[CUTOFFS][..., None]), whole, -np.inf)
    expected = whole[mine] - np.log(np.exp(kept).sum(-1)).ravel()
    close(np.ravel(found["logprobs"]), expected, atol=1e-5)
    close(np.ravel(found["untruncated"]), whole[mine], atol=1e-5)
    assert (np.ravel(found["logprobs"]) - whole[mine]).max() > 0.1


@pytest.mark.parametrize(
    ("needs", "names", "products"),
    [
        (Need.LOGPROBS, {"logprobs"}, 1),
        (Need.UNTRUNCATED, {"untruncated"}, 1),
        (Need.LOGPROBS | Need.UNTRUNCATED, {"logprobs", "untruncated"}, 1),
        (Need.VALUES, {"values"}, 0),
        (Need.SPAN_LOGITS, {"span_probabilities"}, 0),
        (Need.VALUES | Need.LOGPROBS, {"values", "logprobs"}, 1),
    ],
)
def test_only_what_is_asked_for_is_computed(params, model, plain, needs, names, products):
    """One pass of the decoder, and of the LM head as often as it has to be."""
    wide = dataclasses.replace(model, vocab_size=48)  # a width that nothing else has
    shapes = jax.eval_shape(
        lambda key: heads.init_params(wide, key, heads=("value_head", "span_head")),
        jax.random.key(0),
    )
    lowered = score.lower(shapes, plain, needs, model=wide)
    assert set(lowered.out_info) == names
    text = lowered.as_text()
    assert text.count("-> tensor<256x48xf32>") == products
    assert text.count("stablehlo.while") == 1


def test_scores_of_packed_rows(params, model, rows, mesh_of):
    """Several to a batch row, each batch row over four devices."""
    mesh = mesh_of(2, 1, 4, 1)
    batch = pack([item.only([]) for item in rows], length=32, multiple=2)
    assert len(batch.tokens) < len(rows)
    scored = score(params, batch, OF_TARGETS, model=model, temperature=0.7)
    sharded = score(
        jax.device_put(params, state_shardings(params, mesh)),
        jax.device_put(batch, batch_sharding(mesh)),
        OF_TARGETS,
        model=model,
        temperature=0.7,
        mesh=mesh,
    )
    assert sharded["logprobs"].sharding.shard_shape(batch.tokens.shape)[1] == 8
    close(sharded, scored, atol=1e-5)


def test_full_kl(params, model, plain, placed, log_probs):
    """With what else is asked of the policy, in the same pass."""
    reference = jax.tree.map(lambda x: 0.8 * x, params)
    needs, options = Need.REFERENCE_KL | Need.VALUES, {"model": model, "temperature": 0.7}
    scored = score(params, plain, needs, reference=reference, **options)
    assert set(scored) == {"reference_kl", "values"}
    divergence = scored["reference_kl"]
    close(divergence, kl.full(log_probs(0.7), log_probs(0.7, reference)), atol=1e-5)
    assert np.asarray(divergence)[plain.segment_ids > 0].min() > 1e-4

    sharded_params, batch, mesh = placed
    reference = jax.device_put(reference, state_shardings(reference, mesh))
    options |= {"mesh": mesh, "reference": reference}
    sharded = score(sharded_params, batch.replace(fields={}), needs, **options)
    close(sharded, scored, atol=1e-5)
    with pytest.raises(ValueError, match="no reference is given"):
        score(params, plain, needs, model=model)


def test_span_probabilities(params, model, plain, placed, hidden_of):
    found = score(params, plain, Need.SPAN_LOGITS, model=model)
    logits = heads.span_logits(params, hidden_of(params, plain))
    close(found["span_probabilities"], jax.nn.softmax(logits), atol=1e-5)
    weights = (2.0, 0.5, 1.5)
    divided = score(params, plain, Need.SPAN_LOGITS, model=model, class_weights=weights)
    close(divided["span_probabilities"], jax.nn.softmax(logits - np.log(weights)), atol=1e-5)
    sharded_params, sharded, mesh = placed
    options = {"model": model, "mesh": mesh}
    close(score(sharded_params, sharded.replace(fields={}), Need.SPAN_LOGITS, **options), found)


def test_the_embedding_and_the_lm_head_are_never_whole(
    model, settings, batches, optimizer, mesh_of
):
    """A vocabulary larger than a chunk, over fsdp and tensor; in an update, and when scoring."""
    large = dataclasses.replace(model, vocab_size=2 * 4608, tie_embeddings=False)
    mesh = mesh_of(1, 2, 1, 2)
    state = jax.eval_shape(
        lambda: TrainState.create(
            heads.init_params(large, jax.random.key(0), heads=("value_head", "span_head")),
            optimizer,
        )
    )
    shardings = state_shardings(state, mesh)
    state = jax.tree.map(lambda x, s: x.update(sharding=s), state, shardings)
    update = make_update(large, settings, optimizer, mesh, state)
    batch = pad([row(([1, 2, 3], {}))] * 4, length=32)
    for compiled in (
        update.lower(state, micro_batches(batches[0], 2)).compile(),
        score.lower(
            state.params, batch, Need.LOGPROBS | Need.ENTROPY, model=large, mesh=mesh
        ).compile(),
    ):
        text = compiled.as_text()
        assert "[8,4608]" in text  # the head as it lies
        assert "[16,4096]" in text  # a chunk of it, gathered over fsdp
        assert not re.search(r"\[16,(4608|9216)\]|\[(4608|9216),16\]", text)
