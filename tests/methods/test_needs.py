"""Before a round is learned from, only what somebody reads is computed; and `t2g plan` says so."""

import numpy as np
import pytest
import tiny

from t2g_jax.methods import make_method, scores
from t2g_jax.parallel.sharding import make_mesh
from t2g_jax.plan import programs
from t2g_jax.training.forward import Need

POLICY, REFERENCE = "policy", "reference"


@pytest.fixture
def passes(tiny_context, state_of, monkeypatch):
    """passes(name, **values): what a round asks of which parameters, and what it collects."""

    def passes(name, **values):
        section = name.replace("-", "_")
        context = tiny.changed(tiny_context, **{f"{section}__{k}": v for k, v in values.items()})
        method = make_method(name, context)
        state, asked, score = state_of(method), [], scores.score

        def seen(params, batch, needs, **options):
            whose = POLICY if params is state.params else REFERENCE
            assert (options["reference"] is None) == (Need.REFERENCE_KL not in needs)
            asked.append((whose, needs))
            return score(params, batch, needs, **options)

        with monkeypatch.context() as patch:
            patch.setattr(scores, "score", seen)
            found = method.collect(state, 0)
        return method, asked, found

    return passes


CASES = {
    # One update compares with its own pass, and nobody asks for a divergence that costs nothing.
    "grpo": ("grpo", {}, []),
    "grpo-multiturn": ("grpo-multiturn", {"kl_in": None, "kl_coefficient": 0.0}, []),
    "rltf-sd": ("rltf-sd", {}, []),
    "rltf-fm": ("rltf-fm", {}, []),
    "rejection-sampling": ("rejection-sampling", {}, []),
    "for the log": ("grpo", {"log_kl": True}, [(REFERENCE, Need.UNTRUNCATED)]),
    "in the loss": ("grpo", {"kl_coefficient": 0.1}, [(REFERENCE, Need.UNTRUNCATED)]),
    "several updates": ("grpo", {"minibatches": 2}, [(POLICY, Need.LOGPROBS)]),
    "in the reward": (
        "grpo",
        {"kl": "k1", "kl_coefficient": 0.1},
        [(POLICY, Need.UNTRUNCATED), (REFERENCE, Need.UNTRUNCATED)],
    ),
    # A critic's values come with all else that is asked of the policy.
    "text2grad": (
        "text2grad",
        {"minibatches": 2},
        [
            (POLICY, Need.VALUES | Need.LOGPROBS | Need.UNTRUNCATED),
            (REFERENCE, Need.UNTRUNCATED),
        ],
    ),
    "the full divergence": (
        "ppo",
        {"kl": "full", "minibatches": 2},
        [(POLICY, Need.VALUES | Need.LOGPROBS | Need.REFERENCE_KL)],
    ),
    "values alone": (
        "ppo",
        {"kl_coefficient": 0.0, "epochs": 1, "minibatches": 1},
        [(POLICY, Need.VALUES)],
    ),
    "corrected": ("rltf-sd", {"correction": "importance"}, [(POLICY, Need.LOGPROBS)]),
    "a floor and several updates": (
        "rltf-sd",
        {"minibatches": 2},
        [(POLICY, Need.LOGPROBS)] * 2,
    ),
    "no floor and several updates": (
        "rltf-sd",
        {"minibatches": 2, "logprob_floor": None},
        [(POLICY, Need.LOGPROBS)],
    ),
}


@pytest.mark.parametrize(("name", "values", "expected"), CASES.values(), ids=CASES)
def test_what_a_round_computes_and_keeps(passes, tiny_context, name, values, expected):
    method, asked, found = passes(name, **values)
    assert asked == expected
    uses_reference = any(
        whose == REFERENCE or Need.REFERENCE_KL in needs for whose, needs in expected
    )
    assert (method.reference is not None) == uses_reference
    for metric in ("kl", "kl_per_sequence", "kl_coefficient"):
        assert (metric in found.metrics) == uses_reference
    assert set(found.metrics).isdisjoint({"kl"}) or "kl" in method.config.measures
    section = name.replace("-", "_")
    config = tiny.with_values(
        tiny_context.config, **{f"{section}__{k}": v for k, v in values.items()}
    )
    planned = list(programs.programs(config, make_mesh(config.mesh), name))
    scored = sorted(p.name for p in planned if p.name.startswith("score"))
    of_reference = ["score (reference)"] * sum(whose == REFERENCE for whose, _ in asked)
    assert scored == sorted([*method.scores, *of_reference])
    assert sorted(method.scores.values(), key=lambda n: n.value) == sorted(
        (needs for whose, needs in asked if whose == POLICY), key=lambda n: n.value
    )
    if not uses_reference and name != "text2grad":  # whose reward model is kept
        update = next(p for p in planned if p.name == "update")
        assert update.resident == {}


def test_what_is_only_logged_changes_nothing_that_is_learned(passes):
    """So it may be switched on and off at any time: neither rows nor what is carried know of it."""
    method, _, without = passes("grpo")
    watched, _, logged = passes("grpo", log_kl=True)
    for one, other in zip(without.rows, logged.rows, strict=True):
        assert one.values.keys() == other.values.keys()
        np.testing.assert_array_equal(one.tokens, other.tokens)
        for field, values in one.values.items():
            np.testing.assert_array_equal(values, other.values[field])
    assert method.plan.carry == watched.plan.carry == {}
    assert without.carry is logged.carry is None
    assert logged.metrics["kl"] == pytest.approx(0, abs=1e-5)
