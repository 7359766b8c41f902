from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t2g_jax import kl, losses
from t2g_jax.spans.masks import span_mask

CORRECTIONS = ("none", "importance", "ppo", "cispo")


@pytest.fixture
def batch(rng):
    logprobs, old, teacher = -2 * rng.exponential(size=(3, 4, 6)).astype(np.float32)
    advantages = rng.normal(size=(4, 6)).astype(np.float32)
    return logprobs, advantages, {"old_logprobs": old, "teacher_logprobs": teacher}


def _loop(logprobs, advantages, sampled, correction, low=0.2, high=0.3):
    expected = np.zeros(logprobs.shape)
    for index in np.ndindex(*logprobs.shape):
        logprob, advantage = float(logprobs[index]), float(advantages[index])
        ratio = np.exp(logprob - float(sampled[index]))
        clipped = min(max(ratio, 1 - low), 1 + high)
        expected[index] = {
            "none": -advantage * logprob,
            "importance": -ratio * advantage * logprob,
            "ppo": max(-ratio * advantage, -clipped * advantage),
            "cispo": -clipped * advantage * logprob,
        }[correction]
    return expected


@pytest.mark.parametrize("correction", CORRECTIONS)
def test_matches_a_loop(batch, correction):
    logprobs, advantages, given = batch
    loss = losses.self_distillation(
        logprobs, advantages, correction=correction, epsilon_low=0.2, epsilon_high=0.3, **given
    )
    expected = _loop(logprobs, advantages, given["teacher_logprobs"], correction)
    np.testing.assert_allclose(loss, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("correction", CORRECTIONS[1:])
def test_the_ratio_falls_back_on_old_logprobs(batch, correction):
    logprobs, advantages, given = batch
    loss = losses.self_distillation(
        logprobs,
        advantages,
        correction=correction,
        old_logprobs=given["old_logprobs"],
        epsilon_high=0.3,
    )
    expected = _loop(logprobs, advantages, given["old_logprobs"], correction)
    np.testing.assert_allclose(loss, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("correction", CORRECTIONS[1:])
def test_a_ratio_needs_something_to_divide_by(batch, correction):
    logprobs, advantages, _ = batch
    with pytest.raises(ValueError, match="teacher_logprobs"):
        losses.self_distillation(logprobs, advantages, correction=correction)


def test_a_whole_sequence_is_weighed_by_the_ratio_of_all_its_tokens(batch, gradient_of):
    logprobs, advantages, given = batch
    segments, mask = np.array([[1, 1, 2, 2, 2, 0]] * 4), np.array([[1, 1, 1, 0, 1, 0]] * 4)

    def loss(logprobs):
        return losses.self_distillation(
            logprobs,
            advantages,
            correction="sequence_importance",
            mask=mask,
            segment_ids=segments,
            **given,
        )

    log_ratio = (logprobs - given["teacher_logprobs"]) * mask
    first, second = log_ratio[:, :2].sum(1), log_ratio[:, 2:5].sum(1)
    weight = np.exp(np.stack([first, first, second, second, second, 0 * first], 1)) * advantages
    np.testing.assert_allclose(loss(logprobs), -weight * logprobs, rtol=1e-4)
    np.testing.assert_allclose(gradient_of(loss)(logprobs), -weight, rtol=1e-4)


def test_a_whole_sequence_needs_its_mask(batch):
    logprobs, advantages, given = batch
    with pytest.raises(ValueError, match="needs mask"):
        losses.self_distillation(logprobs, advantages, correction="sequence_importance", **given)


@pytest.mark.parametrize("correction", ["none", "importance", "sequence_importance"])
def test_which_correction_is_unbiased(correction):
    """All sequences of two tokens of two words: the expected gradient, and that of E[A].

    Only the ratio of the whole sequence gives it back; each token's own is off by more than half.
    """
    rng = np.random.default_rng(3)
    student = {"": rng.normal(size=2), "0": rng.normal(size=2), "1": rng.normal(size=2)}
    teacher = {name: rng.normal(size=2) for name in student}
    reward = rng.normal(size=(2, 2))

    def logprobs(logits, y):
        first, second = (jax.nn.log_softmax(logits[name]) for name in ("", str(y[0])))
        return jnp.stack([first[y[0]], second[y[1]]])

    sequences = [(a, b) for a in range(2) for b in range(2)]

    def objective(logits):
        return sum(jnp.exp(logprobs(logits, y).sum()) * reward[y] for y in sequences)

    def surrogate(logits):
        """−E over the teacher's samples of what is minimized."""
        total = 0.0
        for y in sequences:
            sampled = logprobs(teacher, y)
            loss = losses.self_distillation(
                logprobs(logits, y)[None],
                jnp.full((1, 2), reward[y]),
                correction=correction,
                teacher_logprobs=sampled[None],
                mask=jnp.ones((1, 2)),
            )
            total -= jnp.exp(sampled.sum()) * loss.sum()
        return total

    truth, found = (
        np.concatenate(jax.tree.leaves(jax.grad(function)(student)))
        for function in (objective, surrogate)
    )
    error = np.linalg.norm(found - truth) / np.linalg.norm(truth)
    assert error < 1e-5 if correction == "sequence_importance" else error > 0.3


def test_unknown_correction(batch):
    logprobs, advantages, given = batch
    with pytest.raises(ValueError, match="'gspo'"):
        losses.self_distillation(logprobs, advantages, correction="gspo", **given)


@pytest.mark.parametrize("correction", CORRECTIONS)
def test_at_ratio_one_all_gradients_are_the_same(batch, correction, gradient_of):
    logprobs, advantages, _ = batch
    gradient = gradient_of(
        lambda x: losses.self_distillation(
            x, advantages, correction=correction, teacher_logprobs=logprobs
        )
    )(logprobs)
    np.testing.assert_allclose(gradient, -advantages, rtol=1e-5)


@pytest.mark.parametrize("correction", ["importance", "cispo"])
def test_the_ratio_is_a_weight_without_a_gradient(batch, correction, gradient_of):
    logprobs, advantages, given = batch
    gradient = gradient_of(
        lambda x: losses.self_distillation(x, advantages, correction=correction, **given)
    )(logprobs)
    ratio = np.exp(logprobs - given["teacher_logprobs"])
    weight = np.clip(ratio, 0.8, 1.2) if correction == "cispo" else ratio
    np.testing.assert_allclose(gradient, -weight * advantages, rtol=1e-4)


@pytest.mark.parametrize("correction", CORRECTIONS)
def test_no_gradient_to_anything_else(batch, correction, gradient_of):
    logprobs, advantages, given = batch
    weights = np.ones_like(logprobs)
    gradients = gradient_of(
        lambda advantages, given, weights: losses.self_distillation(
            logprobs, advantages, correction=correction, token_weights=weights, **given
        ),
        (0, 1, 2),
    )(advantages, given, weights)
    for gradient in jax.tree.leaves(gradients):
        np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize("correction", CORRECTIONS)
def test_the_floor_drops_tokens_by_their_old_logprob(batch, correction, gradient_of):
    logprobs, advantages, given = batch

    def loss(logprobs, **kwargs):
        return losses.self_distillation(
            logprobs, advantages, correction=correction, **given, **kwargs
        )

    kept = given["old_logprobs"] >= -1.5
    assert kept.any()
    assert not kept.all()
    np.testing.assert_allclose(
        loss(logprobs, logprob_floor=-1.5), np.where(kept, loss(logprobs), 0)
    )
    gradient = gradient_of(partial(loss, logprob_floor=-1.5))(logprobs)
    plain = gradient_of(loss)(logprobs)
    np.testing.assert_allclose(gradient, np.where(kept, plain, 0))


def test_without_old_logprobs_the_floor_looks_at_the_current_ones(batch):
    logprobs, advantages, _ = batch
    loss = losses.self_distillation(logprobs, advantages, logprob_floor=-1.5)
    expected = np.where(logprobs >= -1.5, -advantages * logprobs, 0)
    np.testing.assert_allclose(loss, expected, rtol=1e-6)


def test_the_floor_itself_is_kept_and_an_impossible_token_dropped(gradient_of):
    logprobs = jnp.array([-5.0, -5.1, -jnp.inf])
    loss = partial(losses.self_distillation, logprob_floor=-5.0)
    np.testing.assert_array_equal(loss(logprobs, jnp.ones(3)), [5.0, 0.0, 0.0])
    np.testing.assert_array_equal(gradient_of(loss)(logprobs, jnp.ones(3)), [-1.0, 0.0, 0.0])


def test_token_weights_multiply(batch, rng):
    logprobs, advantages, given = batch
    weights = rng.integers(0, 3, logprobs.shape).astype(np.float32)
    loss = losses.self_distillation(logprobs, advantages, correction="ppo", **given)
    weighted = losses.self_distillation(
        logprobs, advantages, correction="ppo", token_weights=weights, **given
    )
    np.testing.assert_allclose(weighted, weights * loss, rtol=1e-6)


def test_a_span_over_everything_is_no_weight(batch):
    logprobs, advantages, _ = batch
    rows, tokens = logprobs.shape
    whole = span_mask(np.zeros((rows, 1)), np.full((rows, 1), tokens), tokens)
    np.testing.assert_array_equal(
        losses.self_distillation(logprobs, advantages, token_weights=whole),
        losses.reinforce(logprobs, advantages),
    )


@pytest.mark.parametrize(
    "name", ["advantages", "old_logprobs", "teacher_logprobs", "token_weights"]
)
def test_shapes_must_agree(name):
    arrays = {"logprobs": jnp.ones((2, 3)), "advantages": jnp.ones((2, 3)), name: jnp.ones((2, 4))}
    with pytest.raises(ValueError, match=rf"logprobs .*{name} .*\(2, 3\).*\(2, 4\)"):
        losses.self_distillation(**arrays)


# ------------------------------------------------------------------ whole distributions


def _kl(p, q):
    return sum(p[v] * (np.log(p[v]) - np.log(q[v])) for v in range(len(p)) if p[v] > 0)


def _divergence(student, teacher, alpha):
    if alpha == 0:
        return _kl(teacher, student)
    if alpha == 1:
        return _kl(student, teacher)
    mixture = alpha * teacher + (1 - alpha) * student
    return alpha * _kl(teacher, mixture) + (1 - alpha) * _kl(student, mixture)


def _softmax(x):
    return np.exp(x) / np.sum(np.exp(x))


def _buckets(probs, top):
    return np.append(probs[top], 1 - probs[top].sum())


@pytest.fixture
def logits(rng):
    return 2 * rng.normal(size=(2, 3, 4, 11))


@pytest.mark.parametrize(("alpha", "top_k"), [(a, k) for a in (0, 0.3, 1) for k in (None, 1, 10)])
def test_logit_distillation_matches_a_loop(logits, alpha, top_k, precision):
    student_logits, teacher_logits = map(precision.cast, logits)
    expected = np.zeros(student_logits.shape[:-1], precision.dtype)
    for index in np.ndindex(*expected.shape):
        student, teacher = _softmax(logits[0][index]), _softmax(logits[1][index])
        if top_k is not None:
            top = np.argsort(-teacher)[:top_k]
            student, teacher = _buckets(student, top), _buckets(teacher, top)
        expected[index] = _divergence(student, teacher, alpha)
    distil = jax.jit(partial(losses.logit_distillation, alpha=alpha, top_k=top_k))
    precision.assert_close(distil(student_logits, teacher_logits), expected)


def test_top_k_of_the_whole_vocabulary_is_no_restriction(logits):
    distil = jax.jit(losses.logit_distillation, static_argnames="top_k")
    for top_k in (11, 50):
        np.testing.assert_array_equal(distil(*logits, top_k=top_k), distil(*logits))


def test_top_k_takes_the_first_of_equals():
    student, teacher = np.log([0.4, 0.3, 0.2, 0.1]), np.log([0.25, 0.25, 0.25, 0.25])
    loss = jax.jit(partial(losses.logit_distillation, alpha=0, top_k=2))(student, teacher)
    expected = _kl(np.array([0.25, 0.25, 0.5]), np.array([0.4, 0.3, 0.3]))
    np.testing.assert_allclose(loss, expected, rtol=1e-6)


def test_top_k_of_the_student(logits):
    distil = partial(losses.logit_distillation, alpha=1, top_k=3, top_k_of="student")
    loss = jax.jit(distil)(*logits)
    student, teacher = _softmax(logits[0][0, 0]), _softmax(logits[1][0, 0])
    top = np.argsort(-student)[:3]
    expected = _kl(_buckets(student, top), _buckets(teacher, top))
    np.testing.assert_allclose(loss[0, 0], expected, rtol=1e-5)


@pytest.mark.parametrize("top_k", [None, 3])
@pytest.mark.parametrize("alpha", [0, 0.5, 1])
def test_logit_distillation_is_zero_and_flat_at_the_teacher(logits, alpha, top_k):
    loss, gradient = jax.jit(
        jax.value_and_grad(
            lambda x: losses.logit_distillation(x, logits[1], alpha=alpha, top_k=top_k).sum()
        )
    )(logits[1])
    np.testing.assert_allclose(loss, 0, atol=1e-5)
    np.testing.assert_allclose(gradient, 0, atol=1e-5)


def test_the_ends_are_forward_and_reverse_kl():
    student, teacher = np.log([0.5, 0.5]), np.log([0.9, 0.1])
    forward = 0.9 * np.log(0.9 / 0.5) + 0.1 * np.log(0.1 / 0.5)
    reverse = 0.5 * np.log(0.5 / 0.9) + 0.5 * np.log(0.5 / 0.1)
    for alpha, expected in ((0, forward), (1, reverse)):
        loss = losses.logit_distillation(student, teacher, alpha=alpha)
        np.testing.assert_allclose(loss, expected, rtol=1e-5)


@pytest.mark.parametrize("alpha", [0.25, 0.5])
def test_jensen_shannon_is_bounded_and_mirrors(logits, alpha):
    student, teacher = 20 * logits
    loss = losses.logit_distillation(student, teacher, alpha=alpha)
    assert (np.asarray(loss) >= -1e-6).all()
    assert (np.asarray(loss) <= np.log(2) + 1e-6).all()
    mirrored = losses.logit_distillation(teacher, student, alpha=1 - alpha)
    np.testing.assert_allclose(loss, mirrored, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("alpha", "top_k"), [(0, None), (0.5, None), (0.5, 3), (1, 3)])
def test_excluded_vocabulary_and_undefined_rows(logits, alpha, top_k, gradient_of):
    student, teacher = (np.array(x, np.float32) for x in logits)
    distil = jax.jit(partial(losses.logit_distillation, alpha=alpha, top_k=top_k))
    full = distil(student[..., :9], teacher[..., :9])
    student[..., 9:] = teacher[..., 9:] = -np.inf
    student[0, 0, 1] = np.nan

    def loss(student):
        return distil(student, teacher)

    assert np.isnan(loss(student)[0, 0])
    np.testing.assert_allclose(loss(student)[1:], full[1:], rtol=1e-4, atol=1e-6)
    gradient = gradient_of(loss)(student)
    assert np.isfinite(gradient).all()
    np.testing.assert_array_equal(gradient[0, 0], 0)


def test_no_gradient_to_the_teacher(logits, gradient_of):
    for alpha in (0, 0.5, 1):
        distil = partial(losses.logit_distillation, alpha=alpha)
        np.testing.assert_array_equal(gradient_of(distil, 1)(*logits), 0)


def test_logit_distillation_refuses_nonsense():
    x = jnp.ones((2, 5))
    with pytest.raises(ValueError, match=r"student_logits .*teacher_logits .*\(2, 5\).*\(2, 6\)"):
        losses.logit_distillation(x, jnp.ones((2, 6)))
    with pytest.raises(ValueError, match=r"alpha.*1\.5"):
        losses.logit_distillation(x, x, alpha=1.5)
    with pytest.raises(ValueError, match=r"top_k.*0"):
        losses.logit_distillation(x, x, top_k=0)
    with pytest.raises(ValueError, match=r"top_k_of.*judge"):
        losses.logit_distillation(x, x, top_k=1, top_k_of="judge")
    with pytest.raises(ValueError, match=r"entry_clip must be positive, got 0"):
        losses.logit_distillation(x, x, entry_clip=0)
    with pytest.raises(ValueError, match=r"student_logits.*where.*\(2,\).*\(3,\)"):
        losses.logit_distillation(x, x, where=jnp.ones(3))


# ------------------------------------------------------------------ a limit for each entry


def _entries(student, teacher, alpha):
    def kl(p, q):
        return p * (np.log(p) - np.log(q))

    if alpha in (0, 1):
        return kl(teacher, student) if alpha == 0 else kl(student, teacher)
    mixture = alpha * teacher + (1 - alpha) * student
    return alpha * kl(teacher, mixture) + (1 - alpha) * kl(student, mixture)


@pytest.mark.parametrize(("alpha", "top_k"), [(a, k) for a in (0, 0.3, 1) for k in (None, 4)])
def test_clipped_entries_match_a_loop(logits, alpha, top_k, precision):
    student_logits, teacher_logits = map(precision.cast, logits)
    clip, clipped = 0.05, 0
    expected = np.zeros(student_logits.shape[:-1], precision.dtype)
    for index in np.ndindex(*expected.shape):
        student, teacher = _softmax(logits[0][index]), _softmax(logits[1][index])
        if top_k is not None:
            top = np.argsort(-teacher)[:top_k]
            student, teacher = _buckets(student, top), _buckets(teacher, top)
        entries = _entries(student, teacher, alpha)
        expected[index], clipped = np.minimum(entries, clip).sum(), clipped + (entries > clip).sum()
    assert clipped > 5
    distil = partial(losses.logit_distillation, alpha=alpha, top_k=top_k, entry_clip=clip)
    precision.assert_close(jax.jit(distil)(student_logits, teacher_logits), expected)


def test_a_clipped_entry_does_not_teach(gradient_of):
    """The student misses a token that the teacher is sure of; the entry is at its limit."""
    student, teacher = jnp.log(jnp.array([0.01, 0.99])), jnp.log(jnp.array([0.99, 0.01]))
    free, clipped = (
        gradient_of(partial(losses.logit_distillation, alpha=0, entry_clip=clip))(student, teacher)
        for clip in (None, 0.05)
    )
    assert free[0] < -0.9
    # Left is t log (t / s) of the other token, −t (1 − s) by its own logit.
    np.testing.assert_allclose(clipped, [0.01 * 0.01, -0.01 * 0.01], rtol=1e-3)


def test_a_high_limit_is_none(logits):
    for alpha in (0, 0.5, 1):
        np.testing.assert_array_equal(
            losses.logit_distillation(*logits, alpha=alpha, entry_clip=1e3),
            losses.logit_distillation(*logits, alpha=alpha),
        )


# ------------------------------------------------------------------ from tokens of the student


def test_sampled_reverse_kl_is_the_kl_on_average(rng):
    """Σ π(v) value(v) is KL(π ‖ teacher), and Σ π(v) gradient(v) is its gradient, exactly."""
    with jax.enable_x64(True):
        logits, teacher, other = rng.normal(size=(3, 7))
        teacher, other = (jax.nn.log_softmax(jnp.asarray(x)) for x in (teacher, other))

        def sampled(logits, of, **given):
            """Over all tokens, each as often as it is drawn from `of`."""
            loss = losses.sampled_reverse_kl(jax.nn.log_softmax(logits), teacher, **given)
            return jax.lax.stop_gradient(jnp.exp(of)) @ loss

        def exact(logits):
            return losses.logit_distillation(logits, teacher, alpha=1)

        expected = jax.value_and_grad(exact)(logits)
        for of, given in (
            (jax.nn.log_softmax(logits), {}),
            (other, {"sampled_logprobs": other}),
        ):
            found = jax.value_and_grad(partial(sampled, of=of, **given))(logits)
            jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-9), found, expected)


def test_sampled_reverse_kl_has_the_gradients_of_its_kin(rng, gradient_of):
    logprobs, teacher = -rng.exponential(size=(2, 3, 4)).astype(np.float32)
    gradient = gradient_of(losses.sampled_reverse_kl)(logprobs, teacher)
    np.testing.assert_allclose(gradient, gradient_of(kl.k2)(logprobs, teacher), rtol=1e-5)
    np.testing.assert_allclose(
        gradient, gradient_of(losses.reinforce)(logprobs, -kl.k1(logprobs, teacher)), rtol=1e-5
    )
    np.testing.assert_allclose(
        losses.sampled_reverse_kl(logprobs, teacher), kl.k1(logprobs, teacher), rtol=1e-6
    )
    np.testing.assert_array_equal(gradient_of(losses.sampled_reverse_kl, 1)(logprobs, teacher), 0)


# ------------------------------------------------------------------ from a teacher's k tokens


@pytest.mark.parametrize("alpha", [0, 0.3, 1])
def test_from_a_teachers_top_k_as_from_its_logits(logits, alpha, precision, gradient_of):
    student, teacher = map(precision.cast, logits)
    top, ids = jax.lax.top_k(jax.nn.log_softmax(teacher), 4)
    whole = partial(losses.logit_distillation, alpha=alpha, top_k=4)
    given = partial(losses.top_k_distillation, alpha=alpha)
    precision.assert_close(given(student, ids, top), whole(student, teacher))
    np.testing.assert_allclose(
        gradient_of(given)(student, ids, top),
        gradient_of(whole)(student, teacher),
        rtol=10 * precision.tolerance,
        atol=10 * precision.tolerance,
    )
    np.testing.assert_array_equal(gradient_of(given, 2)(student, ids, top), 0)


@pytest.mark.parametrize("alpha", [0, 0.5, 1])
def test_a_teacher_who_is_sure_leaves_the_student_a_tail(alpha, gradient_of):
    """All the teacher's mass is in the k: the student's tail is learned from, nothing is inf."""
    student = jnp.log(jnp.array([0.5, 0.3, 0.2]))
    given = partial(losses.top_k_distillation, alpha=alpha)
    arguments = student, jnp.array([0]), jnp.array([0.0])
    assert np.isfinite(given(*arguments))
    gradient = gradient_of(given)(*arguments)
    assert gradient[0] < 0 < gradient[2] < gradient[1]
    exact = given(*arguments, teacher_tail=jnp.float32(-50.0))
    assert exact >= given(*arguments)


def test_a_known_tail_and_padding(logits):
    student, teacher = (jnp.asarray(x, jnp.float32) for x in logits)
    log_probs = jax.nn.log_softmax(teacher)
    top, ids = jax.lax.top_k(log_probs, 3)
    rest = jnp.log(1 - jnp.exp(top).sum(-1))
    plain = losses.top_k_distillation(student, ids, top)
    known = losses.top_k_distillation(student, ids, top, teacher_tail=rest)
    np.testing.assert_allclose(known, plain, rtol=1e-4)
    wide = [(0, 0)] * 2 + [(0, 2)]
    for nobody in (-1, 11):
        padded = losses.top_k_distillation(
            student,
            jnp.pad(ids, wide, constant_values=nobody),
            jnp.pad(top, wide, constant_values=jnp.nan),
        )
        np.testing.assert_allclose(padded, plain, rtol=1e-6)


def test_all_tokens_leave_no_tail(logits):
    student, teacher = logits
    ids = np.broadcast_to(np.arange(11), teacher.shape)
    found = losses.top_k_distillation(student, ids, jax.nn.log_softmax(teacher), alpha=1)
    expected = losses.logit_distillation(student, teacher, alpha=1)
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_a_teachers_nan_is_seen_and_not_learned(logits, gradient_of):
    student, teacher = logits
    top, ids = jax.lax.top_k(jax.nn.log_softmax(teacher), 3)
    top = top.at[0, 0, 1].set(jnp.nan)
    loss = losses.top_k_distillation(student, ids, top)
    assert np.isnan(loss[0, 0])
    assert np.isfinite(np.delete(np.ravel(loss), 0)).all()
    gradient = gradient_of(losses.top_k_distillation)(student, ids, top)
    assert np.isfinite(gradient).all()
    np.testing.assert_array_equal(gradient[0, 0], 0)


def test_top_k_distillation_refuses_nonsense():
    logits, ids, top = jnp.zeros((2, 5)), jnp.zeros((2, 3), int), jnp.zeros((2, 3))
    with pytest.raises(ValueError, match=r"token_ids and teacher_logprobs .*\(2, 3\).*\(2, 4\)"):
        losses.top_k_distillation(logits, ids, jnp.zeros((2, 4)))
    with pytest.raises(ValueError, match=r"student_logits and token_ids .*\(2, 5\).*\(1, 3\)"):
        losses.top_k_distillation(logits, ids[:1], top[:1])
    with pytest.raises(ValueError, match=r"token_ids must be integers, got float32"):
        losses.top_k_distillation(logits, top, top)
    with pytest.raises(ValueError, match=r"teacher_tail .*token_ids .*\(3,\).*\(2, 3\)"):
        losses.top_k_distillation(logits, ids, top, teacher_tail=jnp.zeros(3))


def test_divergences_are_chosen_by_python_numbers(logits):
    student, _ = logits
    ids, teacher = np.zeros((*student.shape[:-1], 1), int), np.full((*student.shape[:-1], 1), -1.0)
    for loss in (
        partial(losses.logit_distillation, student, student),
        partial(losses.top_k_distillation, student, ids, teacher),
    ):
        for name in ("alpha", "entry_clip"):
            with pytest.raises(TypeError, match=rf"{name} must be a Python number, .*static_argn"):
                jax.jit(lambda value, name=name, loss=loss: loss(**{name: value}))(0.5)
            with pytest.raises(ValueError, match=rf"{name} must be .*, got nan"):
                loss(**{name: np.nan})
            np.testing.assert_array_equal(loss(**{name: np.float32(0.5)}), loss(**{name: 0.5}))
    with pytest.raises(TypeError, match=r"top_k must be an integer, got 2\.0"):
        losses.logit_distillation(student, student, top_k=2.0)


def test_a_teacher_of_more_than_one_is_taken_as_it_is():
    """Its tail is next to nothing, as `teacher_logprobs` says."""
    student, teacher = jnp.log(jnp.array([0.5, 0.25, 0.25])), jnp.log(jnp.array([0.75, 0.5]))
    found = losses.top_k_distillation(student, [0, 1], teacher, alpha=0.0)
    expected = 0.75 * np.log(0.75 / 0.5) + 0.5 * np.log(0.5 / 0.25)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_an_undefined_tail_is_seen_and_not_learned(logits, gradient_of):
    student, _ = logits
    ids, teacher = np.zeros((*student.shape[:-1], 1), int), np.full((*student.shape[:-1], 1), -1.0)
    tail = np.where(np.arange(len(student)) == 0, np.nan, -1.0)
    tail = np.broadcast_to(tail.reshape(-1, *[1] * (student.ndim - 2)), student.shape[:-1])

    def loss(student):
        return losses.top_k_distillation(student, ids, teacher, teacher_tail=tail)

    np.testing.assert_array_equal(np.isnan(loss(student)), np.isnan(tail))
    gradient = gradient_of(loss)(student)
    assert np.isfinite(gradient).all()
    np.testing.assert_array_equal(gradient[0], 0)
