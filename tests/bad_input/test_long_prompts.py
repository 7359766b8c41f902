"""Prompts that leave no room in the context: passed over and counted, or one clear error."""

import functools
import json
import re

import pytest

from t2g_jax.data.dataset import load_dataset
from t2g_jax.phases import generate
from t2g_jax.run.context import Context
from t2g_jax.training.metrics import read_metrics


def lengths(context, split):
    return [len(context.prompts.render(example.prompt)) for example in context.task.split(split)]


def room(config):
    return config.model.context_length - config.sampling.max_new_tokens


@pytest.fixture
def puzzles(tiny_run, tmp_path):
    """puzzles(fits): a branch of the tiny run with puzzles of two sizes; the context is what the
    lengths of all prompts make of it, by `fits`, and room for a completion."""

    def puzzles(fits, *phases, **values):
        values = {"task__settings": {"min_n": 3, "max_n": 4}, "task__test_size": 8} | values
        context = Context.open(*tiny_run.branch(tmp_path / "roomy", **values)[::-1])
        longest = fits(lengths(context, "train") + lengths(context, "test"))
        values["model__context_length"] = longest + context.sampling.max_new_tokens
        workdir, config = tiny_run.branch(tmp_path / "run", *phases, **values)
        for path in workdir.glob("*/evaluation.json"):
            path.unlink()
        return workdir, config

    return puzzles


@pytest.fixture
def tight(puzzles):
    """tight("sft"): the context is too short for the longest prompts."""
    return functools.partial(puzzles, lambda lengths: max(lengths) - 1)


@pytest.fixture
def hopeless(puzzles):
    """The context is too short for any prompt."""
    return functools.partial(puzzles, lambda lengths: min(lengths) - 1)


def counted(workdir, phase, name="prompts_too_long"):
    return sum(line[name] for line in read_metrics(workdir / phase))


def test_sft(t2g, tight):
    workdir, config = tight(sft__steps=2)
    assert t2g("sft", workdir, config).status == 0
    assert counted(workdir, "sft") > 0
    assert all(line["tokens_trained"] > 0 for line in read_metrics(workdir / "sft"))


def test_annotate(t2g, tight):
    workdir, config = tight("sft")
    assert t2g("annotate", workdir, config).status == 0
    summary = json.loads((workdir / "annotate" / "complete.json").read_text())
    assert summary["prompts_too_long"] > 0
    assert sum(summary["records"].values()) == 16
    for split in ("train", "held_out"):
        for record in load_dataset(workdir / "annotate" / "dataset", split):
            assert len(record.prompt_tokens) <= room(config)


@pytest.mark.parametrize("method", ["grpo", "rltf-sd"])
def test_train_policy(t2g, tight, method):
    workdir, config = tight("sft")
    assert t2g("train-policy", workdir, config, "--method", method).status == 0
    lines = read_metrics(workdir / method.replace("-", "_"))
    assert sum(line["prompts_too_long"] for line in lines) > 0
    assert all(line["rows"] >= 8 for line in lines)  # others take their places


def test_evaluate(t2g, tight):
    workdir, config = tight("sft")
    assert t2g("evaluate", workdir, config).status == 0
    found = json.loads((workdir / "sft" / "evaluation.json").read_text())
    tests = lengths(Context.open(config, workdir), "test")
    assert found["prompts_too_long"] == sum(length > room(config) for length in tests) > 0
    assert len(found["correct"]) == len(tests) - found["prompts_too_long"]


def test_generate(t2g, tight, monkeypatch):
    said = []
    monkeypatch.setattr(generate, "say", said.append)
    workdir, config = tight("sft")
    assert t2g("generate", workdir, config, "--method", "sft").status == 0
    (line,) = said
    assert line.endswith("test prompts leave no room for an answer and are passed over")


@pytest.mark.parametrize(
    ("words", "phases"),
    [
        ("sft", ()),
        ("annotate", ("sft",)),
        ("train-policy --method grpo", ("sft",)),
        ("evaluate", ("sft",)),
        ("generate --method sft", ("sft",)),
    ],
)
def test_nothing_fits(t2g, hopeless, words, phases):
    workdir, config = hopeless(*phases)
    command, *options = words.split()
    outcome = t2g(command, workdir, config, *options)
    assert outcome.status == 2
    assert outcome.error.startswith("even the shortest t")
    assert f"model.context_length ({config.model.context_length})" in outcome.error
    if command in ("evaluate", "generate"):  # the context is what the policy was trained with
        assert re.search(
            r"; shorten it, or lower sampling\.max_new_tokens to \d+ or less$", outcome.error
        )
    else:
        assert outcome.error.endswith("raise model.context_length")


def test_a_prompt_that_somebody_typed(t2g, tight):
    workdir, config = tight("sft")
    outcome = t2g("generate", workdir, config, "--method", "sft", "--prompt", "0 1 " * 500)
    assert outcome.status == 2
    assert outcome.error.startswith("--prompt has ")
    assert outcome.error.endswith("; shorten it")  # longer than the whole context


@pytest.mark.parametrize(("extra", "status"), [(1, 2), (40, 0)])
def test_demonstrations_longer_than_the_context(t2g, puzzles, extra, status):
    """Prompts fit, as completions are short; but none, or not all, of the demonstrations."""
    workdir, config = puzzles(
        lambda lengths: max(lengths) + extra - 1, sampling__max_new_tokens=1, sft__steps=2
    )
    outcome = t2g("sft", workdir, config)
    assert outcome.status == status
    if status:
        assert "rows are longer than model.context_length" in outcome.error
        assert not (workdir / "sft" / "complete.json").exists()


def test_a_critique_longer_than_the_context_teaches_nothing(t2g, tiny_run, tmp_path):
    """Much text, though less than a judge may say: every third row of the reward model goes."""
    workdir, config = tiny_run.branch(
        tmp_path / "run", "sft", judge__name="bad_judges:long_text", reward_model__batch_size=8
    )
    assert t2g("annotate", workdir, config).status == 0
    assert t2g("train-rm", workdir, config).status == 0
    assert counted(workdir, "reward_model", "rows_too_long") > 0
    assert t2g("train-policy", workdir, config, "--method", "rltf-fm").status == 0
    (line,) = read_metrics(workdir / "rltf_fm")
    assert 0 < line["critiques_learned"] < 8
