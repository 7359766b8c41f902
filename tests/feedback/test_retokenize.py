"""A reward model with a model and a tokenizer of its own."""

import dataclasses
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from family_tokenizers import FAMILIES, qwq_with_a_switch
from tiny import with_values
from transformers import AutoTokenizer

from t2g_jax.data.dataset import load_dataset
from t2g_jax.errors import T2GError
from t2g_jax.feedback.retokenize import retokenize, reward_model_context
from t2g_jax.feedback.reward_model import RewardModel
from t2g_jax.models.heads import SPAN_CLASSES
from t2g_jax.phases import policy, reward_model
from t2g_jax.phases.export import run as export
from t2g_jax.phases.reward_model import labels_of, training_row
from t2g_jax.run import pretrained
from t2g_jax.run.context import Context
from t2g_jax.training.metrics import read_metrics


@pytest.fixture(scope="module")
def folder(tmp_path_factory, root):
    """A model of another family, with a tokenizer like Gemma's."""
    folder = tmp_path_factory.mktemp("models") / "gemma"
    make = [sys.executable, "benchmarks/random_checkpoint.py", str(folder), "--family", "qwen3"]
    subprocess.run(make, check=True, cwd=root)
    tokenizer = FAMILIES["gemma2"].make()
    tokenizer.save(folder)
    # As many rows of weights as it has tokens.
    about = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(about | {"vocab_size": 448}))
    for file in folder.glob("*.safetensors*"):
        file.unlink()
    again = "import pathlib, sys; from benchmarks.random_checkpoint import _weights\n"
    again += "_weights(pathlib.Path(sys.argv[1]), 0)"
    subprocess.run([sys.executable, "-c", again, str(folder)], check=True, cwd=root)
    return folder


@pytest.fixture(scope="module")
def trained(tiny_run, folder, tmp_path_factory, compiled_once):
    """A run whose reward model has been trained, and the policy with it."""
    workdir, config = tiny_run.branch(
        tmp_path_factory.mktemp("reading") / "run",
        "sft",
        "annotate",
        reward_model__pretrained=str(folder),
        model__context_length=2048,
        text2grad__steps=1,
        text2grad__eval_every=0,
    )
    with compiled_once():
        reward_model.run(config, workdir)
        policy.run(config, workdir, "text2grad")
    return Context.open(config, workdir)


@pytest.fixture(scope="module")
def records(trained):
    return list(load_dataset(trained.workspace.dataset, "train"))


def test_without_a_model_of_its_own_it_reads_as_the_policy(tiny_context):
    assert reward_model_context(tiny_context) is tiny_context


def test_its_model_and_tokenizer_are_its_own(trained, folder):
    rm_context = reward_model_context(trained)
    assert rm_context.model.layers == 4 != trained.model.layers
    assert rm_context.tokenizer.hugging_face.bos_token == "<bos>"
    assert rm_context.tokenizer.vocab_size <= rm_context.model.vocab_size
    assert trained.tokenizer.hugging_face.bos_token is None
    # It starts from the model as it is, not from the policy's warm start.
    start = rm_context.weights.load()["decoder"]
    assert start["embed"]["embedding"].shape[0] == rm_context.model.vocab_size


def test_answers_are_encoded_anew_and_labels_cross_by_characters(trained, records):
    rm_context = reward_model_context(trained)
    seen = set()
    for record in records:
        answer = (record.prompt_tokens, record.completion_tokens)
        (prompt, completion), offsets = retokenize(trained.prompts, rm_context.prompts, answer)
        assert prompt == rm_context.prompts.render(record.prompt)
        text = trained.tokenizer.decode(record.completion_tokens)
        assert rm_context.tokenizer.decode(completion) == text
        ended = record.completion_tokens[-1] in trained.tokenizer.stop_ids
        assert (completion[-1:] == [rm_context.tokenizer.end_id]) == ended

        row = training_row(trained, record, rm_context)
        marked = row.fields["span_weight"] > 0
        assert row.tokens[marked].tolist() == completion
        critique = row.tokens[row.fields["nll_weight"] > 0].tolist()
        assert rm_context.tokenizer.decode(critique) == record.critique
        # A character that has a label in the policy's tokens has it here, blanks apart.
        labels, mine = labels_of(record), trained.tokenizer.offsets(record.completion_tokens)
        given = dict.fromkeys(range(len(text)))
        for label, (start, end) in zip(row.fields["span_labels"][marked], offsets, strict=True):
            given |= dict.fromkeys(range(start, end), label)
        for label, (start, end) in zip(labels, mine, strict=True):
            words = [c for c in range(start, end) if not text[c].isspace()]
            if label < 0:
                assert all(given[c] < 0 for c in words)
                seen.add("poor")
    assert seen == {"poor"}


def test_rewards_are_of_the_policys_tokens(trained, records):
    model = RewardModel.load(trained)
    answers = [(record.prompt_tokens, record.completion_tokens) for record in records[:3]]
    for answer, p in zip(answers, model.probabilities(answers), strict=True):
        assert p.shape == (len(answer[1]), 3)
        np.testing.assert_allclose(p.sum(-1), 1, rtol=1e-5)
        # The mean over characters is that of the reward model's own tokens.
        read, theirs = retokenize(trained.prompts, model.prompts, answer)
        in_its_own = dataclasses.replace(model, policy_prompts=model.prompts)
        (own,) = in_its_own.probabilities([read])
        mine = trained.tokenizer.offsets(answer[1])
        whole = [
            sum(x * (b - a) for x, (a, b) in zip(v @ SPAN_CLASSES, o, strict=True))
            for v, o in ((p, mine), (own, theirs))
        ]
        np.testing.assert_allclose(whole[0], whole[1], atol=1e-4)
        (rewards,) = model.rewards([answer])
        np.testing.assert_allclose(rewards, p[:, 2] - p[:, 0], atol=1e-6)
    (critique,) = model.critiques(answers[:1])
    assert critique[-1] == model.tokenizer.end_id != trained.tokenizer.end_id


def test_the_policy_learned_with_it(trained):
    (line,) = read_metrics(trained.workspace.phase("text2grad"))
    assert line["no_room"] == 0
    assert abs(line["span_reward"]) > 0
    assert line["policy_loss"] != 0


def test_it_is_exported_with_its_own_tokenizer(trained, tmp_path):
    export(trained.config, trained.workspace.root, "reward_model", tmp_path / "out")
    assert AutoTokenizer.from_pretrained(tmp_path / "out").bos_token == "<bos>"


def test_the_options_of_its_template_are_its_own(tiny_run, tiny_context, folder, tmp_path):
    own = tmp_path / "thinks"
    shutil.copytree(folder, own)
    for file in own.glob("*token*"):
        file.unlink()
    (own / "chat_template.jinja").unlink(missing_ok=True)
    qwq_with_a_switch().save(own)
    config = with_values(
        tiny_run.config, reward_model__pretrained=str(own), model__context_length=256
    )
    with pytest.raises(
        T2GError, match=r"set reward_model\.template_options \(enable_thinking: fal"
    ):
        pretrained.check(config)
    quick = with_values(config, reward_model__template_options={"enable_thinking": False})
    pretrained.check(quick)
    for settings, opens in ((config, True), (quick, False)):
        rm_context = reward_model_context(dataclasses.replace(tiny_context, config=settings))
        text = rm_context.tokenizer.decode(rm_context.prompts.render("1 0"), skip_special=False)
        assert text.endswith("assistant\n<think>\n" if opens else "assistant\n")


def test_a_conversation_is_no_single_question(trained, records):
    record = records[0]
    turn = trained.tokenizer.next_turn("Wrong.", ended=True)
    prompt = [*record.prompt_tokens, *record.completion_tokens, *turn]
    theirs = reward_model_context(trained).prompts
    for other in (prompt, prompt[3:], prompt[:2]):
        with pytest.raises(T2GError, match="reads answers to one question"):
            retokenize(trained.prompts, theirs, (other, [1]))


def test_a_model_that_is_not_there_is_named(tiny_run, tmp_path):
    workdir, config = tiny_run.branch(
        tmp_path / "run", "sft", "annotate", reward_model__pretrained=str(tmp_path / "nowhere")
    )
    with pytest.raises(T2GError, match="nowhere"):
        reward_model.run(config, workdir)
