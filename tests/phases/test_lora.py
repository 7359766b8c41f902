"""A run with adapters: what is trained, saved and loaded, and that it resumes exactly."""

import dataclasses
import functools
import io
import shutil

import jax
import numpy as np
import pytest
import rich.console
import tiny

from t2g_jax.errors import T2GError
from t2g_jax.models import lora
from t2g_jax.phases import evaluate, generate, policy, reward_model
from t2g_jax.rollouts.engine import Rollouts
from t2g_jax.run.context import Context
from t2g_jax.run.pretrained import decoder_config
from t2g_jax.run.trainer import map_rows
from t2g_jax.training.checkpoint import Checkpoints
from t2g_jax.training.forward import Need
from t2g_jax.training.metrics import read_metrics
from t2g_jax.training.sequences import TokenSequence
from t2g_jax.training.step import score

HEADS = {"reward_model": "span_head", "text2grad": "value_head"}
RATES = {f"{section}__optimizer__learning_rate": 1e-2 for section in ("reward_model", "text2grad")}


@pytest.fixture(scope="module")
def run(tiny_run, tmp_path_factory):
    """The tiny run's warm start and annotations; reward model and Text2Grad with adapters."""
    folder = tmp_path_factory.mktemp("lora") / "run"
    workdir, config = tiny_run.branch(folder, "sft", "annotate", lora__rank=4, **RATES)
    reward_model.run(config, workdir)
    policy.run(config, workdir, "text2grad")
    return tiny.Run(workdir, config, set())


@pytest.fixture(scope="module")
def context(run):
    return Context.open(run.config, run.workdir)


def shapes(params):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params)


@pytest.mark.parametrize("phase", HEADS)
def test_a_phase_is_the_warm_start_and_what_it_trained(context, phase):
    trained, frozen = lora.split(context.weights.load(phase, with_heads=(HEADS[phase],)))
    assert set(trained) == {"decoder", HEADS[phase]}
    adapters = jax.tree.leaves(trained["decoder"])
    assert len(adapters) == 2 * 7
    assert all(leaf.any() for leaf in adapters)
    same = jax.tree.map(lambda mine, theirs: mine is theirs, frozen, context.weights.load())
    assert all(jax.tree.leaves(same)), "one copy of the warm start"


@pytest.mark.parametrize("phase", HEADS)
def test_checkpoints_hold_what_was_trained_and_no_more(context, phase):
    directory = context.workspace.checkpoints(phase)
    trained, frozen = lora.split(context.weights.load(phase, with_heads=(HEADS[phase],)))
    with Checkpoints(directory, read_only=True) as checkpoints:
        saved, _ = checkpoints.restore_params(shapes(trained))
        jax.tree.map(np.testing.assert_array_equal, saved, trained)
        for part in ("embed", "layers"):
            with pytest.raises(T2GError, match="found nothing"):
                checkpoints.restore_params({"decoder": {part: shapes(frozen["decoder"][part])}})


def test_the_policy_starts_as_its_reference_and_moves(run):
    first, *_, last = read_metrics(run.workdir / "text2grad")
    assert first["kl"] == pytest.approx(0, abs=1e-6)
    assert first["kl_sampler_trainer"] == pytest.approx(0, abs=1e-6)
    assert last["kl"] > 1e-3


def test_the_reward_model_learns(run, tiny_run):
    ours, full = (read_metrics(r.workdir / "reward_model") for r in (run, tiny_run))
    assert ours[0]["nll"] == pytest.approx(full[0]["nll"], rel=1e-4)
    assert ours[-1]["nll"] < ours[0]["nll"]


def test_the_sampler_reports_what_the_trainer_computes(context):
    policy = context.weights.load("text2grad")
    prompts = [context.prompts.render(example.prompt) for example in context.task.split("test")]
    rollouts = Rollouts.of(context)
    completed = rollouts.engine.complete(
        policy, prompts, jax.random.key(0), sampling=rollouts.sampling, batch_size=4
    )
    rows = [
        TokenSequence.from_parts((prompt, {}), (completion.tokens, {}))
        for prompt, completion in zip(prompts, completed, strict=True)
    ]
    settings = {"model": context.model, "mesh": context.mesh}

    def logprobs(params):
        compute = functools.partial(score, params, needs=Need.LOGPROBS, **settings)
        return [about["logprobs"] for about in map_rows(compute, rows, context.mesh)]

    found = zip(prompts, completed, logprobs(policy), logprobs(context.weights.load()), strict=True)
    for prompt, completion, ours, reference in found:
        of = slice(len(prompt), len(prompt) + len(completion.tokens))
        np.testing.assert_allclose(np.exp(ours[of] - completion.logprobs), 1, rtol=1e-4)
        assert np.abs(ours[of] - reference[of]).max() > 1e-3


def test_evaluated_and_asked(run):
    scores = evaluate.run(run.config, run.workdir)
    assert set(scores) == {"sft", "text2grad"}
    text = io.StringIO()
    console = rich.console.Console(file=text, width=200)
    generate.run(run.config, run.workdir, "text2grad", "Distance?", console)
    assert "Answer, marked by the reward model" in text.getvalue()


def test_stopped_and_started_again(run, context, tmp_path, monkeypatch):
    """From the checkpoint of step 2 of 3."""
    workdir, config = run.branch(tmp_path / "run", "sft", "annotate", "reward_model", "text2grad")
    shutil.rmtree(workdir / "text2grad" / "checkpoints" / "3")
    (workdir / "text2grad" / "complete.json").unlink()
    policy.run(config, workdir, "text2grad")
    heads = (HEADS["text2grad"],)
    again = Context.open(config, workdir).weights.load("text2grad", with_heads=heads)
    jax.tree.map(
        np.testing.assert_array_equal, again, context.weights.load("text2grad", with_heads=heads)
    )
    ours, theirs = (
        tiny.lines(root / "text2grad" / "metrics.jsonl") for root in (workdir, run.workdir)
    )
    assert ours == theirs


@pytest.mark.parametrize("rank", [0, 8])
def test_another_rank_is_named(context, rank):
    other = tiny.changed(context, lora__rank=rank)
    with pytest.raises(
        T2GError, match=rf"text2grad was trained with lora\.rank 4, the .* has {rank}"
    ):
        other.weights.load("text2grad")


def test_adapters_for_a_phase_trained_without(run, tiny_context):
    config = tiny.with_values(tiny_context.config, lora__rank=4)
    other = dataclasses.replace(tiny_context, config=config)
    with pytest.raises(T2GError, match=r"grpo was trained with lora\.rank 0, the config has 4"):
        other.weights.load("grpo")
    assert lora.rank(other.weights.load()) == 0, "the warm start has none"


def test_alpha_reaches_the_decoder(run):
    config = tiny.with_values(run.config, lora__alpha=7.0)
    assert decoder_config(run.config, 64).lora_alpha == 32
    assert decoder_config(config, 64).lora_alpha == 7
