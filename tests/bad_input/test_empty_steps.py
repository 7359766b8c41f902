"""Steps with nothing to learn: no NaN, nothing moves, and the log says so."""

import dataclasses
import json
import math

import jax
import numpy as np
import pytest
import tiny

from t2g_jax.rollouts import engine
from t2g_jax.run.context import Context
from t2g_jax.sampling.generate import Completion
from t2g_jax.training.metrics import read_metrics

SMALL = {"steps": 2, "prompts_per_step": 4, "group_size": 2, "eval_every": 1}
METHODS = ("text2grad", "ppo", "rltf-sd", "rltf-fm", "grpo", "grpo-multiturn", "rejection-sampling")
"""All that are trained by `--method`."""


def branch(tiny_run, workdir, method, *phases, **values):
    section = method.replace("-", "_")
    values = {f"{section}__{name}": value for name, value in SMALL.items()} | values
    return tiny_run.branch(workdir, "sft", *phases, **values)


@pytest.fixture
def silent(monkeypatch, tiny_context):
    """Every policy ends its turn at once."""

    def ends_at_once(params, prompts, *_, **__):
        stop = np.array([tiny_context.tokenizer.stop_ids[0]], np.int32)
        number = np.full(1, -0.5, np.float32)
        return [Completion(stop, number, number - np.inf, True) for _ in prompts]

    monkeypatch.setattr(engine, "generate", ends_at_once)


def finite(line):
    return all(math.isfinite(v) for v in line.values() if isinstance(v, int | float))


@pytest.mark.parametrize("method", METHODS)
def test_empty_completions(t2g, tiny_run, tmp_path, silent, method):
    """All rewards of a group are equal too: there is nothing to compare."""
    phases = ("annotate", "reward_model") if method == "text2grad" else ()
    workdir, config = branch(tiny_run, tmp_path / "run", method, *phases)
    assert t2g("train-policy", workdir, config, "--method", method).status == 0
    lines = read_metrics(workdir / method.replace("-", "_"))
    assert len(lines) == 2
    assert all(finite(line) for line in lines)
    assert all(line["equal_groups"] == 1 for line in lines)
    assert all(line["completion_tokens"] == 1 for line in lines)
    assert all(line["accuracy"] == 0 for line in lines)


def test_empty_completions_can_be_annotated(t2g, tiny_run, tmp_path, silent):
    workdir, config = tiny_run.branch(tmp_path / "run", "sft")
    assert t2g("annotate", workdir, config).status == 0
    assert t2g("train-rm", workdir, config).status == 0
    assert t2g("generate", workdir, config, "--method", "sft").status == 0
    assert json.loads((workdir / "annotate/complete.json").read_text())["quotes"] == 0


def params(workdir, config, phase):
    return jax.device_get(Context.open(config, workdir).weights.load(phase))


def test_equal_rewards_leave_the_policy_where_it_is(t2g, tiny_run, tmp_path, silent):
    workdir, config = branch(tiny_run, tmp_path / "run", "grpo")
    assert t2g("train-policy", workdir, config, "--method", "grpo").status == 0
    assert all(line["grad_norm"] == 0 for line in read_metrics(workdir / "grpo"))
    jax.tree.map(
        np.testing.assert_array_equal,
        params(workdir, config, "sft"),
        params(workdir, config, "grpo"),
    )


def test_a_step_without_rows_changes_nothing(t2g, tiny_run, tmp_path, silent, capsys):
    """Rejection sampling that accepts nothing: even momentum and weight decay rest."""
    optimizer = tiny_run.config.rejection_sampling.optimizer
    optimizer = dataclasses.replace(optimizer, weight_decay=0.5)
    values = {"rejection_sampling__optimizer": optimizer}
    workdir, config = branch(tiny_run, tmp_path / "run", "rejection-sampling", **values)
    assert t2g("train-policy", workdir, config, "--method", "rejection-sampling").status == 0
    lines = read_metrics(workdir / "rejection_sampling")
    assert [(line["rows"], line["tokens_trained"]) for line in lines] == [(0, 0), (0, 0)]
    jax.tree.map(
        np.testing.assert_array_equal,
        params(workdir, config, "sft"),
        params(workdir, config, "rejection-sampling"),
    )
    assert t2g("evaluate", workdir, config).status == 0
    assert t2g("report", workdir, config).status == 0


def test_a_judge_that_never_answers_leaves_rltf_its_rewards(t2g, tiny_run, tmp_path):
    """No feedback in a step: no second turns, nothing distilled, and the rest is learned."""
    workdir, config = branch(
        tiny_run, tmp_path / "run", "rltf-sd", judge__name="bad_judges:always_raises"
    )
    config = tiny.with_values(config, judge__max_failures_in_a_row=1000)
    outcome = t2g("train-policy", workdir, config, "--method", "rltf-sd", "--accept-changes")
    assert outcome.status == 0
    lines = read_metrics(workdir / "rltf_sd")
    assert all(line["judge_failures"] >= 4 for line in lines)
    assert all(line["rows"] == 8 and finite(line) for line in lines)


def test_quotes_that_are_nowhere_leave_text2grad_without_signal(t2g, tiny_run, tmp_path):
    """Every span reward is 0: advantages are whitened from nothing."""
    workdir, config = branch(
        tiny_run,
        tmp_path / "run",
        "text2grad",
        text2grad__span_source="judge",
        text2grad__kl_coefficient=0.0,
        judge__name="bad_judges:only_invented_quotes",
    )
    assert t2g("train-policy", workdir, config, "--method", "text2grad").status == 0
    lines = read_metrics(workdir / "text2grad")
    assert all(line["unaligned_quotes"] == 8 for line in lines)
    assert all(line["span_reward"] == 0 and finite(line) for line in lines)
