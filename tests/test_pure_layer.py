"""What every function of the pure layer promises, checked for each of them.

Jit, vmap, scan and sharding change nothing; float32 comes out of bfloat16 and float64 out of
float64; padding does not matter; gradients are right; a wrong shape is an error that says so.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
from jax.test_util import check_grads

from t2g_jax import advantages, kl, logprobs, losses, reductions, spans
from t2g_jax.reductions import Reduction

ROWS, TOKENS, VOCABULARY = 8, 6, 5


class Case(NamedTuple):
    function: Callable
    arguments: tuple[str, ...]
    """The first is the one gradients flow to, if any do."""
    differentiable: bool = True
    by_row: bool = True
    """Rows do not see each other."""
    weighs_by_ratio: bool = False
    """Its gradient is not the derivative of its value: a ratio in it is a constant."""


PAIR = ("logprobs", "old_logprobs")
TRIPLE = (*PAIR, "advantages")
DISTILLED = ("logprobs", "advantages", "old_logprobs", "teacher_logprobs")
PACKED = {"": (), "_packed": ("segment_ids",)}
CASES = {
    "clipped_surrogate": Case(losses.clipped_surrogate, TRIPLE),
    "cispo": Case(
        partial(losses.cispo, epsilon_low=0.2, epsilon_high=0.3), TRIPLE, weighs_by_ratio=True
    ),
    **{
        f"gspo{packed}": Case(
            partial(losses.gspo, epsilon_low=0.2, epsilon_high=0.3),
            (*TRIPLE, "mask", *segments),
            weighs_by_ratio=True,
        )
        for packed, segments in PACKED.items()
    },
    "reinforce": Case(losses.reinforce, ("logprobs", "advantages")),
    "importance_ratio": Case(losses.importance_ratio, ("logprobs", "sampled_logprobs")),
    **{
        f"sequence_ratio{packed}": Case(
            losses.sequence_ratio, ("logprobs", "sampled_logprobs", "mask", *segments)
        )
        for packed, segments in PACKED.items()
    },
    "sequence_ratio_sum": Case(
        partial(losses.sequence_ratio, mean=False), ("logprobs", "sampled_logprobs", "mask")
    ),
    **{
        f"clip_acts_{surrogate}": Case(
            partial(losses.clip_acts, surrogate, epsilon_low=0.2, epsilon_high=0.3),
            ("ratio", "advantages"),
            differentiable=False,
        )
        for surrogate in ("ppo", "cispo")
    },
    "value_clip_acts": Case(
        losses.value_clip_acts, ("values", "old_values", "returns"), differentiable=False
    ),
    "clipped_value": Case(losses.clipped_value, ("values", "old_values", "returns")),
    "self_distillation_none": Case(
        partial(losses.self_distillation, logprob_floor=-3.0), ("logprobs", "advantages")
    ),
    **{
        f"self_distillation_{correction}": Case(
            partial(losses.self_distillation, correction=correction, logprob_floor=-3.0),
            DISTILLED,
            weighs_by_ratio=correction != "ppo",
        )
        for correction in ("importance", "ppo", "cispo")
    },
    "self_distillation_sequence_importance": Case(
        partial(losses.self_distillation, correction="sequence_importance", logprob_floor=-3.0),
        (*DISTILLED, "mask"),
        weighs_by_ratio=True,
    ),
    "self_distillation_weighted": Case(
        losses.self_distillation, ("logprobs", "advantages", "token_weights")
    ),
    "nll": Case(losses.nll, ("logprobs", "token_weights")),
    "sampled_reverse_kl": Case(
        losses.sampled_reverse_kl, ("logprobs", "teacher_logprobs"), weighs_by_ratio=True
    ),
    "sampled_reverse_kl_corrected": Case(
        losses.sampled_reverse_kl,
        ("logprobs", "teacher_logprobs", "sampled_logprobs", "token_weights"),
        weighs_by_ratio=True,
    ),
    **{
        f"{weights.__name__}_{level}": Case(
            partial(weights, level=level),
            ("logprobs", "sampled_logprobs", "mask"),
            differentiable=False,
        )
        for weights, level in (
            (losses.truncated_importance, "token"),
            (losses.truncated_importance, "sequence"),
            (losses.masked_importance, "token"),
            (losses.masked_importance, "geometric"),
        )
    },
    "logit_distillation": Case(losses.logit_distillation, ("student_logits", "teacher_logits")),
    "logit_distillation_top_k": Case(
        partial(losses.logit_distillation, alpha=0.0, top_k=2), ("student_logits", "teacher_logits")
    ),
    "logit_distillation_clipped": Case(
        partial(losses.logit_distillation, entry_clip=0.05), ("student_logits", "teacher_logits")
    ),
    "top_k_distillation": Case(
        partial(losses.top_k_distillation, alpha=0.3),
        ("student_logits", "token_ids", "top_logprobs"),
    ),
    "span_reward_cross_entropy": Case(
        partial(losses.span_reward_cross_entropy, class_weights=(2.0, 0.5, 1.0)),
        ("logits_of_3", "labels"),
    ),
    "span_reward_cross_entropy_severity": Case(
        losses.span_reward_cross_entropy, ("logits_of_3", "severities")
    ),
    "span_probabilities": Case(
        partial(losses.span_probabilities, class_weights=(2.0, 0.5, 1.0)), ("logits_of_3",)
    ),
    "gae": Case(advantages.gae, ("token_rewards", "values", "mask"), differentiable=False),
    "whiten": Case(advantages.whiten, ("x", "mask"), differentiable=False, by_row=False),
    "turn_returns": Case(
        partial(advantages.turn_returns, gamma=0.1), ("rewards", "turn_mask"), differentiable=False
    ),
    "group_centered": Case(
        partial(advantages.group_centered, scale_by_std=True),
        ("returns", "mask"),
        differentiable=False,
    ),
    "leave_one_out": Case(advantages.leave_one_out, ("returns", "mask"), differentiable=False),
    "first_turn": Case(
        advantages.first_turn, ("final_rewards", "first_rewards", "mask"), differentiable=False
    ),
    "k1": Case(kl.k1, ("logprobs", "ref_logprobs")),
    "k2": Case(kl.k2, ("logprobs", "ref_logprobs")),
    "k3": Case(kl.k3, ("logprobs", "ref_logprobs")),
    "absolute": Case(kl.absolute, ("logprobs", "ref_logprobs")),
    "full": Case(kl.full, ("log_probs", "ref_log_probs")),
    "masked_sum": Case(reductions.masked_sum, ("values", "mask"), by_row=False),
    "masked_mean": Case(reductions.masked_mean, ("values", "mask"), by_row=False),
    **{
        how.value + packed: Case(
            partial(reductions.reduce, how=how), ("values", "mask", *segments), by_row=False
        )
        for how in Reduction
        for packed, segments in PACKED.items()
    },
    **{
        f"sequence_sum{packed}": Case(reductions.sequence_sum, ("values", "mask", *segments))
        for packed, segments in PACKED.items()
    },
    "token_logprobs": Case(logprobs.token_logprobs, ("logits", "tokens")),
    "token_logprobs_from_logits": Case(
        partial(logprobs.token_logprobs_from_logits, temperature=0.7), ("logits", "tokens")
    ),
    "span_mask": Case(partial(spans.span_mask, length=9), ("starts", "ends"), differentiable=False),
    **{
        f"token_rewards_{overlap}": Case(
            partial(spans.token_rewards, length=9, overlap=overlap),
            ("starts", "ends", "rewards"),
            differentiable=False,
        )
        for overlap in ("poor", "sum", "mean", "last")
    },
}


NAMES = {
    "logits_of_3": "logits",
    "severities": "labels",
    "top_logprobs": "teacher_logprobs",
}
"""Arguments that functions know by another name."""


def _inputs(case: Case) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shape = (ROWS, TOKENS)
    makers = {
        "mask": lambda: rng.random(shape) < 0.7,
        "turn_mask": lambda: np.arange(TOKENS) < rng.integers(1, TOKENS + 1, (ROWS, 1)),
        "token_weights": lambda: rng.integers(0, 3, shape).astype(np.float64),
        "tokens": lambda: rng.integers(0, VOCABULARY, shape),
        "token_ids": lambda: np.argsort(rng.random((*shape, VOCABULARY)))[..., :3],
        "top_logprobs": lambda: np.log(0.9 * rng.dirichlet(np.ones(3), shape)),
        "labels": lambda: rng.integers(-1, 2, shape),
        "severities": lambda: rng.uniform(-1, 1, shape),
        "segment_ids": lambda: np.sort(rng.integers(0, 3, shape), axis=-1),
        "starts": lambda: rng.integers(0, 6, shape),
        "ends": lambda: rng.integers(3, 9, shape),
        "logits_of_3": lambda: rng.normal(size=(*shape, 3)),
    }

    def make(name):
        if name in makers:
            return makers[name]()
        if name.endswith("logprobs"):
            return -rng.exponential(size=shape)
        if name.endswith("log_probs"):
            logits = rng.normal(size=(*shape, VOCABULARY))
            return logits - np.log(np.sum(np.exp(logits), -1, keepdims=True))
        if name.endswith("logits"):
            return rng.normal(size=(*shape, VOCABULARY))
        return rng.normal(size=shape)

    return {name: make(name) for name in case.arguments}


def _cast(inputs, dtype):
    return {
        name: x.astype(dtype) if np.issubdtype(x.dtype, np.floating) else x
        for name, x in inputs.items()
    }


def _call(case: Case, inputs: dict):
    return case.function(**{NAMES.get(name, name): x for name, x in inputs.items()})


JITTED = {name: jax.jit(partial(_call, case)) for name, case in CASES.items()}
"""Compiled once for the tests that share shapes and types."""

each_case = pytest.mark.parametrize(
    ("case", "run"), [(CASES[name], JITTED[name]) for name in CASES], ids=CASES
)


def _assert_close(actual, desired, tolerance=1e-6):
    jax.tree.map(
        partial(np.testing.assert_allclose, rtol=tolerance, atol=tolerance), actual, desired
    )


def _over_tokens(mask, x):
    """The mask [B, T] with axes for what x has beyond them."""
    return mask.reshape(mask.shape + (1,) * (x.ndim - 2))


@each_case
def test_vmap_and_scan_change_nothing(case, run):
    inputs = _cast(_inputs(case), np.float32)
    flipped = jax.tree.map(lambda x: x[::-1], inputs)
    both = jax.tree.map(lambda *x: np.stack(x)[None], inputs, flipped)
    expected = jax.tree.map(lambda *x: np.stack(x)[None], run(inputs), run(flipped))
    mapped = jax.vmap(partial(_call, case))
    _assert_close(jax.lax.scan(lambda carry, x: (carry, mapped(x)), None, both)[1], expected)


@each_case
def test_rows_are_independent(case, run):
    if not case.by_row:
        return
    inputs = _cast(_inputs(case), np.float32)
    order = np.random.default_rng(1).permutation(ROWS)
    permuted = run(jax.tree.map(lambda x: x[order], inputs))
    _assert_close(permuted, jax.tree.map(lambda x: x[order], run(inputs)))


@each_case
def test_accumulates_in_float32_and_keeps_float64(case, run):
    inputs = _inputs(case)
    narrow = _cast(inputs, jnp.bfloat16)
    wide = {n: x.astype(np.float32) if x.dtype == jnp.bfloat16 else x for n, x in narrow.items()}
    result = run(narrow)
    assert all(x.dtype in (jnp.float32, jnp.bool_) for x in jax.tree.leaves(result))
    _assert_close(result, run(wide))
    with jax.enable_x64(True):
        result = jax.eval_shape(partial(_call, case), _cast(inputs, np.float64))
    assert all(x.dtype in (jnp.float64, jnp.bool_) for x in jax.tree.leaves(result))


@each_case
def test_sharded_over_the_batch_is_unsharded(case, run):
    inputs = _cast(_inputs(case), np.float32)
    first = case.arguments[0]

    def run_both_ways(inputs):
        if not case.differentiable:
            return _call(case, inputs)

        def total(x):
            result = _call(case, inputs | {first: x})
            return sum(jnp.sum(y) for y in jax.tree.leaves(result)), result

        return jax.grad(total, has_aux=True)(inputs[first])

    expected = jax.jit(run_both_ways)(inputs)
    for axis_type in (AxisType.Auto, AxisType.Explicit):
        mesh = jax.make_mesh((8,), ("data",), axis_types=(axis_type,))
        with jax.set_mesh(mesh):
            sharded = jax.jit(run_both_ways)(jax.device_put(inputs, P("data")))
        _assert_close(sharded, expected)
        if case.by_row:
            assert all(x.sharding.spec[0] == "data" for x in jax.tree.leaves(sharded))


@each_case
def test_gradients_numerically(case, run):
    if not case.differentiable or case.weighs_by_ratio:
        return
    with jax.enable_x64(True):
        inputs = _cast(_inputs(case), np.float64)
        first = case.arguments[0]
        check_grads(
            lambda x: run(inputs | {first: x}), (inputs[first],), order=1, modes=["rev"], eps=1e-6
        )


@each_case
def test_padding_has_no_effect(case, run):
    """Any floats behind a mask, in values and in gradients."""
    if case.arguments[0] == "starts" or "first_rewards" in case.arguments:
        return  # no mask; or one that every first reward counts in spite of
    inputs = _inputs(case)
    name = next((name for name in inputs if name.endswith("mask")), None)
    mask = inputs[name] if name else np.random.default_rng(2).random((ROWS, TOKENS)) < 0.7
    garbage = np.resize([np.nan, np.inf, 1e4, -np.inf, -1e4], mask.shape)
    dirty = {
        name: np.where(_over_tokens(mask, x), x, _over_tokens(garbage, x))
        if np.issubdtype(x.dtype, np.floating)
        else x
        for name, x in inputs.items()
    }
    first = case.arguments[0]

    @jax.jit
    @partial(jax.value_and_grad, argnums=0)
    def masked_total(x, inputs):
        leaves = jax.tree.leaves(_call(case, inputs | {first: x}))
        by_token = mask.shape
        return sum(
            reductions.masked_mean(y, jnp.broadcast_to(_over_tokens(mask, y), y.shape))
            if y.shape[:2] == by_token
            else y
            for y in leaves
        )

    dirty, clean = (
        masked_total(x[first], x) for x in (_cast(x, np.float32) for x in (dirty, inputs))
    )
    _assert_close(dirty[0], clean[0], 1e-5)
    _assert_close(dirty[1], np.where(_over_tokens(mask, clean[1]), clean[1], 0), 1e-5)


@each_case
def test_shape_mismatches_name_both_arguments(case, run):
    inputs = _cast(_inputs(case), np.float32)
    first, *others = case.arguments
    for name in others:
        wrong = inputs | {name: inputs[name][1:]}
        both = rf"(?=.*\b{NAMES.get(first, first)}\b)(?=.*\b{NAMES.get(name, name)}\b)"
        with pytest.raises(ValueError, match=both) as error:
            run(wrong)
        shapes = {str(x.shape) for x in wrong.values()}
        assert sum(shape in str(error.value) for shape in shapes) == 2
