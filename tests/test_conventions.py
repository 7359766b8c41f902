"""The conventions that all functions of the pure layer share, as optax and jax.numpy have them.

`where=` chooses what counts and `axis=` along what; an option is a string or a member of an enum;
what belongs to a sequence may be [B, 1]; `axis_name` sums over devices inside `jax.shard_map`.
"""

import enum
import inspect
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from t2g_jax import advantages, kl, losses, reductions, spans
from t2g_jax.reductions import Reduction

B, T, V = 4, 6, 5
EPSILONS = {"epsilon_low": 0.2, "epsilon_high": 0.3}


@pytest.fixture
def arrays(rng):
    logits = rng.normal(size=(3, B, T, V)).astype(np.float32)
    x = -rng.exponential(size=(4, B, T)).astype(np.float32)
    return {
        "logprobs": x[0],
        "old": x[1],
        "other": x[2],
        "advantages": rng.normal(size=(B, T)).astype(np.float32),
        "student": logits[0],
        "teacher": logits[1],
        "ids": np.argsort(logits[2], axis=-1)[..., :3],
        "labels": rng.integers(-1, 2, (B, T)),
        "where": (rng.random((B, T)) < 0.6) & (np.arange(B) != 2)[:, None],  # one row is empty
    }


def _by_token(a):
    """Every loss of one value for each token, as a function of what it is differentiated by."""
    self_distillation = partial(losses.self_distillation, advantages=a["advantages"])
    return {
        "clipped_surrogate": lambda x, **k: losses.clipped_surrogate(
            x, a["old"], a["advantages"], **k
        ),
        "cispo": lambda x, **k: losses.cispo(x, a["old"], a["advantages"], **EPSILONS, **k),
        "reinforce": lambda x, **k: losses.reinforce(x, a["advantages"], **k),
        "importance_ratio": lambda x, **k: losses.importance_ratio(x, a["old"], **k),
        "clipped_value": lambda x, **k: losses.clipped_value(x, a["old"], a["other"], **k),
        "self_distillation": self_distillation,
        "self_distillation_ppo": partial(
            self_distillation, correction="ppo", old_logprobs=a["old"]
        ),
        "sampled_reverse_kl": lambda x, **k: losses.sampled_reverse_kl(x, a["old"], **k),
        "nll": losses.nll,
        "k1": lambda x, **k: kl.k1(x, a["old"], **k),
        "k2": lambda x, **k: kl.k2(x, a["old"], **k),
        "k3": lambda x, **k: kl.k3(x, a["old"], **k),
        "absolute": lambda x, **k: kl.absolute(x, a["old"], **k),
    }


BY_TOKEN = sorted(_by_token(dict.fromkeys(["old", "advantages", "other"])))


@pytest.mark.parametrize("name", BY_TOKEN)
def test_where_leaves_what_counts_and_silences_the_rest(arrays, name, gradient_of):
    loss, where = _by_token(arrays)[name], arrays["where"]
    plain = loss(arrays["logprobs"])
    dirty = np.where(where, arrays["logprobs"], np.nan)
    np.testing.assert_array_equal(loss(dirty, where=where), np.where(where, plain, 0))
    np.testing.assert_array_equal(
        loss(arrays["logprobs"], where=where.astype(np.float32)), np.where(where, plain, 0)
    )
    gradient, free = (
        gradient_of(partial(loss, where=w))(x)
        for w, x in ((where, dirty), (None, arrays["logprobs"]))
    )
    np.testing.assert_array_equal(gradient, np.where(where, free, 0))
    nothing = loss(np.full((B, T), np.nan), where=np.zeros((B, T), bool))
    np.testing.assert_array_equal(nothing, 0)
    with pytest.raises(ValueError, match=r"where.*\(4, 6\).*\(4, 5\)"):
        loss(arrays["logprobs"], where=where[:, 1:])


@pytest.mark.parametrize(
    "loss",
    [
        lambda a, **k: losses.logit_distillation(a["student"], a["teacher"], **k),
        lambda a, **k: losses.top_k_distillation(
            a["student"], a["ids"], -1 - np.abs(np.take_along_axis(a["teacher"], a["ids"], -1)), **k
        ),
        lambda a, **k: losses.span_reward_cross_entropy(a["student"][..., :3], a["labels"], **k),
        lambda a, **k: kl.full(a["student"], a["teacher"], **k),
    ],
    ids=["logit_distillation", "top_k_distillation", "span_reward_cross_entropy", "full"],
)
def test_where_counts_tokens_of_whole_distributions(arrays, loss, gradient_of):
    where = arrays["where"]
    plain = loss(arrays)
    dirty = arrays | {"student": np.where(where[..., None], arrays["student"], np.nan)}
    np.testing.assert_array_equal(loss(dirty, where=where), np.where(where, plain, 0))
    gradient = gradient_of(lambda x: loss(dirty | {"student": x}, where=where))(dirty["student"])
    assert np.isfinite(gradient).all()
    np.testing.assert_array_equal(gradient[~where], 0)
    with pytest.raises(ValueError, match=r"where.*\(4, 6\).*\(4, 5\)"):
        loss(arrays, where=where[:, 1:])


MASKED = {
    "masked_sum": reductions.masked_sum,
    "masked_mean": reductions.masked_mean,
    "reduce": partial(reductions.reduce, how=Reduction.SEQUENCE_MEAN_TOKEN_MEAN),
    "sequence_sum": reductions.sequence_sum,
    "whiten": advantages.whiten,
    "group_centered": advantages.group_centered,
    "leave_one_out": advantages.leave_one_out,
    "turn_returns": partial(advantages.turn_returns, gamma=0.5),
    "gae": lambda x, *mask, **k: advantages.gae(x, x[::-1], *mask, **k),
    "first_turn": lambda x, *mask, **k: advantages.first_turn(x, x[::-1], *mask, **k),
    "gspo": lambda x, *mask, **k: losses.gspo(x, x[::-1], x, *mask, **k),
    "sequence_ratio": lambda x, *mask, **k: losses.sequence_ratio(x, x[::-1], *mask, **k),
    "truncated": lambda x, *mask, **k: losses.truncated_importance(x, x[::-1], *mask, **k),
    "masked": lambda x, *mask, **k: losses.masked_importance(x, x[::-1], *mask, **k),
}


@pytest.mark.parametrize("name", MASKED)
def test_where_is_the_mask_and_without_either_everything_counts(arrays, name):
    function, x, where = MASKED[name], arrays["logprobs"], arrays["where"]

    def same(a, b, chosen=True):
        for one, other in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
            np.testing.assert_array_equal(
                np.where(chosen, one, 0), np.where(chosen, other, 0) if np.ndim(other) else other
            )

    same(function(x, where=where), function(x, where), where if name == "gspo" else True)
    same(function(x), function(x, np.ones((B, T))))
    rows = np.array([[1], [0], [1], [1]])
    same(function(x, where=rows), function(x, where=np.broadcast_to(rows, (B, T))))
    with pytest.raises(ValueError, match=r"mask and where .*one of them"):
        function(x, where, where=where)
    with pytest.raises(ValueError, match=r"where.*\(4, 6\).*\(4, 5\)"):
        function(x, where=where[:, 1:])


@pytest.mark.parametrize(
    ("function", "usual"),
    [
        (lambda x, m, **k: advantages.gae(x, 0.5 * x + 1, m, **k)[1], -1),
        (lambda x, m, **k: advantages.turn_returns(x, m, gamma=0.5, **k), -1),
        (advantages.group_centered, 1),
        (partial(advantages.group_centered, scale_by_std=True), 1),
        (advantages.leave_one_out, 1),
        (lambda x, m, **k: advantages.first_turn(x, 2 * x, m, **k), 1),
    ],
    ids=["gae", "turn_returns", "group_centered", "scaled", "leave_one_out", "first_turn"],
)
def test_axis_is_where_the_usual_one_has_gone(rng, function, usual):
    x, mask = rng.normal(size=(3, 4, 5)).astype(np.float32), rng.random((3, 4, 5)) < 0.7
    expected = function(x, mask)
    for axis in (0, 1, 2, -2):
        moved = (np.moveaxis(y, usual, axis) for y in (x, mask))
        found = np.moveaxis(function(*moved, axis=axis), axis, usual)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_whiten_along_an_axis_is_whiten_of_each(rng):
    x, mask = rng.normal(size=(3, 8)).astype(np.float32), rng.random((3, 8)) < 0.7
    for shift_mean in (True, False):
        whiten = partial(advantages.whiten, shift_mean=shift_mean)
        rows = np.stack([whiten(*row) for row in zip(x, mask, strict=True)])
        np.testing.assert_allclose(whiten(x, mask, axis=-1), rows, rtol=1e-5)
        np.testing.assert_allclose(whiten(x.T, mask.T, axis=0).T, rows, rtol=1e-5)
    np.testing.assert_array_equal(
        advantages.whiten(x, mask, axis=1), advantages.group_centered(x, mask, scale_by_std=True)
    )


def test_the_vocabulary_may_be_any_axis(arrays):
    student, teacher = arrays["student"], arrays["teacher"]
    for top_k in (None, 3):
        distil = partial(losses.logit_distillation, top_k=top_k)
        np.testing.assert_allclose(
            distil(np.moveaxis(student, -1, 0), np.moveaxis(teacher, -1, 0), axis=0),
            distil(student, teacher),
            rtol=1e-6,
        )
    ids, known = arrays["ids"], -1 - np.abs(np.take_along_axis(teacher, arrays["ids"], -1))
    for axis in (0, 1, -1):
        np.testing.assert_allclose(
            losses.top_k_distillation(
                *(np.moveaxis(x, -1, axis) for x in (student, ids, known)), axis=axis
            ),
            losses.top_k_distillation(student, ids, known),
            rtol=1e-6,
        )
    for axis in (3, (0, 1)):
        with pytest.raises(ValueError, match=r"axis must be one axis of student_logits"):
            losses.logit_distillation(student, teacher, axis=axis)
        with pytest.raises(ValueError, match=r"axis must be one axis of student_logits"):
            losses.top_k_distillation(student, ids, known, axis=axis)
        with pytest.raises(ValueError, match=r"axis must be one axis of log_probs"):
            kl.full(student, teacher, axis=axis)
    log_probs = [jax.nn.log_softmax(x) for x in (student, teacher)]
    moved = [jnp.moveaxis(x, -1, 1) for x in log_probs]
    np.testing.assert_allclose(kl.full(*moved, axis=1), kl.full(*log_probs), rtol=1e-6)


# ------------------------------------------------------------------ options


def _enum_of(*values):
    return enum.Enum("Mine", {value.upper(): value for value in values})


@pytest.mark.parametrize("how", list(Reduction))
def test_a_reduction_or_its_string(arrays, how):
    given = arrays["logprobs"], arrays["where"]
    expected = reductions.reduce(*given, how)
    mine = _enum_of(how.value)
    for spelled in (how.value, how.name, next(iter(mine))):
        assert reductions.reduce(*given, spelled) == expected
        assert reductions.reduce(*given, how=spelled) == expected
        assert reductions.count(arrays["where"], spelled) == reductions.count(arrays["where"], how)
    with pytest.raises(ValueError, match=r"how must be 'token_mean', .*, not 'mean'"):
        reductions.reduce(*given, "mean")


def test_every_option_may_be_a_member_of_an_enum(arrays):
    a = arrays
    for options, call in {
        ("poor", "sum", "mean", "last"): lambda o: spans.token_rewards(
            [0, 1], [2, 3], [1.0, -1.0], 4, overlap=o
        ),
        ("none", "importance", "sequence_importance", "ppo", "cispo"): lambda o: (
            losses.self_distillation(
                a["logprobs"], a["advantages"], correction=o, old_logprobs=a["old"], mask=a["where"]
            )
        ),
        ("ppo", "cispo", "reinforce", "gspo"): lambda o: losses.clip_acts(
            o, -a["logprobs"], a["advantages"], **EPSILONS
        ),
        ("teacher", "student"): lambda o: losses.logit_distillation(
            a["student"], a["teacher"], top_k=2, top_k_of=o
        ),
        ("token", "sequence", "geometric"): lambda o: losses.truncated_importance(
            a["logprobs"], a["old"], level=o
        ),
    }.items():
        found = []
        for member in _enum_of(*options):
            found.append(np.asarray(call(member)))
            np.testing.assert_array_equal(found[-1], call(member.value))
        assert len({x.tobytes() for x in found}) >= min(len(options), 3) - 1
        with pytest.raises(ValueError, match=r"must be '.*' or '.*', not 'nonsense'"):
            call("nonsense")


# ------------------------------------------------------------------ one value for each sequence


def test_advantages_and_weights_of_sequences(arrays):
    a = arrays
    rows = a["advantages"][:, :1]
    wide = np.broadcast_to(rows, (B, T))
    for loss in (
        lambda r: losses.clipped_surrogate(a["logprobs"], a["old"], r),
        lambda r: losses.cispo(a["logprobs"], a["old"], r, **EPSILONS),
        lambda r: losses.gspo(a["logprobs"], a["old"], r),
        lambda r: losses.reinforce(a["logprobs"], r),
        lambda r: losses.self_distillation(a["logprobs"], r),
        lambda r: losses.self_distillation(
            a["logprobs"], r, correction="cispo", old_logprobs=a["old"]
        ),
        lambda r: losses.clip_acts("ppo", -a["logprobs"], r, **EPSILONS),
        lambda r: losses.nll(a["logprobs"], token_weights=r),
        lambda r: losses.sampled_reverse_kl(a["logprobs"], a["old"], token_weights=r),
        lambda r: losses.self_distillation(a["logprobs"], a["advantages"], token_weights=r),
    ):
        np.testing.assert_array_equal(loss(rows), loss(wide))
        for wrong in (rows[:, 0], rows[:2], wide[:1], np.ones(())):
            with pytest.raises(ValueError, match=r"must have the same shape.*\(4, 6\)"):
                loss(wrong)


def test_a_groups_advantages_are_those_of_its_sequences(arrays):
    """The way from [P, G] rewards to a loss, as `group_centered` says."""
    rewards = np.array([[0.0, 1.0], [1.0, 1.0]])
    per_sequence = advantages.group_centered(rewards).reshape(-1, 1)
    loss = losses.reinforce(arrays["logprobs"], per_sequence)
    np.testing.assert_allclose(loss[0], 0.5 * arrays["logprobs"][0])
    np.testing.assert_array_equal(loss[2:], 0)


# ------------------------------------------------------------------ inside shard_map


@pytest.fixture
def mesh():
    return jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:4])


def _on_devices(mesh, function, out_specs, **axis_name):
    return jax.jit(
        jax.shard_map(
            partial(function, **axis_name), mesh=mesh, in_specs=P("data"), out_specs=out_specs
        )
    )


@pytest.mark.parametrize(
    ("function", "out_specs"),
    [
        (reductions.masked_sum, P()),
        (reductions.masked_mean, P()),
        *((partial(reductions.reduce, how=how), P()) for how in Reduction),
        (advantages.whiten, P("data")),
        (partial(advantages.whiten, shift_mean=False), P("data")),
        (partial(advantages.group_centered, axis=0), P("data")),
        (partial(advantages.group_centered, axis=0, scale_by_std=True), P("data")),
        (partial(advantages.leave_one_out, axis=0), P("data")),
        (lambda x, m, **k: advantages.first_turn(x, 2 * x, m, axis=0, **k), P("data")),
    ],
    ids=[
        *("masked_sum", "masked_mean", *(how.value for how in Reduction)),
        *("whiten", "whiten_kept_mean", "group_centered", "group_scaled", "leave_one_out"),
        "first_turn",
    ],
)
def test_with_axis_name_devices_make_one_batch(mesh, arrays, function, out_specs):
    """Whose rows are spread over them, one of them empty."""
    given = arrays["logprobs"], arrays["where"]
    found = _on_devices(mesh, function, out_specs, axis_name="data")(*given)
    np.testing.assert_allclose(found, function(*given), rtol=1e-5, atol=1e-6)


def test_without_axis_name_each_device_sees_its_own(mesh, arrays):
    given = arrays["logprobs"], arrays["where"]
    found = _on_devices(mesh, advantages.whiten, P("data"))(*given)
    rows = [advantages.whiten(x[None], m[None])[0] for x, m in zip(*given, strict=True)]
    np.testing.assert_allclose(found, rows, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("how", list(Reduction))
def test_gradients_of_a_reduction_over_devices(mesh, arrays, how):
    """Parameters that all devices share get the gradient of the whole batch's loss."""

    def loss(scale, logprobs, where, **axis_name):
        per_token = losses.reinforce(scale * logprobs, [[1.0]] * len(logprobs))
        return reductions.reduce(per_token, where, how, **axis_name)

    given = jnp.float32(1.5), arrays["logprobs"], arrays["where"]
    spread = jax.shard_map(
        jax.value_and_grad(partial(loss, axis_name="data")),
        mesh=mesh,
        in_specs=(P(), P("data"), P("data")),
        out_specs=P(),
    )
    found, expected = jax.jit(spread)(*given), jax.value_and_grad(loss)(*given)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5), found, expected)


def test_a_batch_whose_rows_are_equal_everywhere_deviates_by_nothing(mesh):
    x = jnp.full((4, 3), 0.1, jnp.float32)
    found = _on_devices(mesh, advantages.whiten, P("data"), axis_name="data")(x)
    np.testing.assert_array_equal(found, 0)


# ------------------------------------------------------------------ what equals what


def test_the_relations_that_docstrings_state(arrays, gradient_of):
    a = arrays
    x, ones = a["logprobs"], np.ones((B, T), np.float32)
    close = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
    # On policy every policy gradient is that of reinforce.
    expected = gradient_of(losses.reinforce)(x, a["advantages"])
    for loss in (
        losses.clipped_surrogate,
        partial(losses.cispo, **EPSILONS),
        losses.gspo,
    ):
        close(gradient_of(loss)(x, x, a["advantages"]), expected)
    close(losses.reinforce(x, ones), losses.nll(x))
    close(losses.self_distillation(x, a["advantages"]), losses.reinforce(x, a["advantages"]))
    # gae without values is the returns of turns that are tokens.
    whole = advantages.gae(x, 0 * x, gamma=0.5, gae_lambda=1.0)[0]
    close(whole, advantages.turn_returns(x, gamma=0.5))
    returns = advantages.gae(x, a["old"], gamma=0.5, gae_lambda=1.0)[1]
    close(returns, whole)  # whatever the values
    close(advantages.leave_one_out(x), T / (T - 1) * advantages.group_centered(x))
    close(advantages.first_turn(x, x), advantages.group_centered(x))
    # KL to the reference is distillation from it, and the loss of a head is nll.
    student, teacher = (jax.nn.log_softmax(y) for y in (a["student"], a["teacher"]))
    close(losses.logit_distillation(student, teacher, alpha=1), kl.full(student, teacher))
    three = jax.nn.log_softmax(a["student"][..., :3])
    label = np.take_along_axis(np.asarray(three), a["labels"][..., None] + 1, -1)[..., 0]
    close(losses.span_reward_cross_entropy(three, a["labels"]), losses.nll(label))
    # On average over what the policy says, k1 and k3 are the full KL.
    for estimator in (kl.k1, kl.k3):
        mean = jnp.sum(jnp.exp(student) * estimator(student, teacher), axis=-1)
        close(mean, kl.full(student, teacher))


# ------------------------------------------------------------------ signatures


def test_hyperparameters_are_keywords():
    """Arrays first, at most four of them by position; options by name, with a type each."""
    free = {"k", "length", "how", "axis", "weights", "surrogate", "vocabulary"}
    for module in (losses, advantages, kl, reductions, spans):
        for name in getattr(module, "__all__", vars(module)):
            function = getattr(module, name)
            ours = inspect.isfunction(function) and function.__module__.startswith(module.__name__)
            if name.startswith("_") or not ours:
                continue
            by_position = [
                p
                for p in inspect.signature(function).parameters.values()
                if p.kind is p.POSITIONAL_OR_KEYWORD and p.name not in free
            ]
            assert len(by_position) <= 4, name
            for parameter in inspect.signature(function).parameters.values():
                assert parameter.annotation is not parameter.empty, (name, parameter)
