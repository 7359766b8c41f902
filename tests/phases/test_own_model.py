"""A Hugging Face folder as the policy: every phase, the export of each, and what cannot be used."""

import json
import pathlib
import re
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
import safetensors.numpy
import yaml

from t2g_jax import cli, losses
from t2g_jax.config import ConfigError, load_config
from t2g_jax.data.tokenizer import ChatTokenizer
from t2g_jax.models import heads
from t2g_jax.phases.export import HEADS_FILE, unweighted
from t2g_jax.run.context import Context
from t2g_jax.run.trainer import map_rows
from t2g_jax.run.workspace import REWARD_MODEL
from t2g_jax.training.forward import Need
from t2g_jax.training.sequences import TokenSequence
from t2g_jax.training.step import score

CONFIG = pathlib.Path(__file__).parent.parent / "configs" / "own_model.yaml"


@pytest.fixture(scope="module")
def folder(tmp_path_factory, root):
    """What the documented command makes."""
    folder = tmp_path_factory.mktemp("models") / "random"
    make = [sys.executable, "benchmarks/random_checkpoint.py", str(folder), "--family", "gemma3"]
    subprocess.run(make, check=True, cwd=root)
    return folder


@pytest.fixture(scope="module")
def own(folder, tmp_path_factory, compiled_once):
    """Config file and work folder of a run whose phases are complete."""
    home = tmp_path_factory.mktemp("own")
    settings = yaml.safe_load(CONFIG.read_text())
    settings["model"]["pretrained"] = str(folder)
    file = home / "own.yaml"
    file.write_text(yaml.safe_dump(settings))
    with compiled_once():
        assert cli.main(["run", str(file), "--workdir", str(home / "run")]) == 0
    return file, home / "run"


def test_every_phase_runs(own):
    _, workdir = own
    complete = {path.parent.name for path in workdir.glob("*/complete.json")}
    assert complete == {"sft", "annotate", "reward_model", "text2grad", "rltf_sd"}
    assert (workdir / "report.html").exists()
    assert not (workdir / "sft" / "checkpoints").exists()  # the weights stay where they are


def test_the_warm_start_is_the_pretrained_model_as_it_is(own, folder):
    from t2g_jax.models import families, huggingface

    file, workdir = own
    context = Context.open(load_config(file), workdir)
    expected = huggingface.load(folder, families.read_config(folder))
    for a, b in zip(
        jax.tree.leaves(context.weights.load()), jax.tree.leaves(expected), strict=True
    ):
        np.testing.assert_array_equal(a, b)
    assert context.tokenizer.vocab_size <= context.model.vocab_size


def export(own, *words):
    file, workdir = own
    return cli.main(["export", str(file), "--workdir", str(workdir), *map(str, words)])


def test_a_merged_policy_gives_the_same_logits_elsewhere(own, tmp_path):
    torch = pytest.importorskip("torch", reason="pip install torch, to compare")
    transformers = pytest.importorskip("transformers")
    assert export(own, "--method", "rltf-sd", "--to", tmp_path / "x", "--dtype", "float32") == 0
    names = {path.name for path in (tmp_path / "x").iterdir()}
    assert names >= {"config.json", "generation_config.json", "model.safetensors", "README.md"}
    assert names >= {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
    file, workdir = own
    context = Context.open(load_config(file), workdir)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "x")
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "0 1\n1 0"}], add_generation_prompt=True, return_dict=False
    )
    assert text == context.prompts.render("0 1\n1 0")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "x").eval()
    with torch.no_grad():
        theirs = model(torch.tensor([text])).logits[0].numpy()
    params, tokens = context.weights.load("rltf-sd"), np.array([text])
    hidden = heads.hidden_states(
        params, context.model, tokens, np.arange(len(text))[None], np.ones_like(tokens)
    )
    ours = heads.capped(hidden @ heads.lm_kernel(params), context.model)[0]
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


def test_what_is_written_beside_the_weights(folder, tmp_path, capsys):
    """Of the language model of one that sees, whose base ends texts, but not turns."""
    base = tmp_path / "base"
    shutil.copytree(folder, base)
    text = json.loads((base / "config.json").read_text())
    text.pop("dtype")
    whole = {"model_type": "gemma3", "torch_dtype": "bfloat16", "text_config": text}
    whole |= {"eos_token_id": [1, 2]}
    (base / "config.json").write_text(json.dumps(whole))
    (base / "generation_config.json").write_text('{"eos_token_id": 7, "top_k": 64}')
    (base / "tokenizer.model").write_bytes(b"as it was")
    template = (base / "chat_template.jinja").read_text()
    (base / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    (base / "chat_template.jinja").unlink()
    words = [str(CONFIG), "--workdir", str(tmp_path / "run"), "--model.pretrained", str(base)]
    assert cli.main(["sft", *words]) == 0
    out = tmp_path / "out"
    assert cli.main(["export", *words, "--method", "sft", "--to", str(out)]) == 0
    described = json.loads((out / "config.json").read_text())
    assert (described["model_type"], described["torch_dtype"]) == ("gemma3_text", "bfloat16")
    assert described["eos_token_id"] == [1, 2]
    assert described["hidden_size"] == text["hidden_size"]
    assert "text_config" not in described
    generation = json.loads((out / "generation_config.json").read_text())
    stop_ids = list(ChatTokenizer.load(base).stop_ids)
    assert generation == {"eos_token_id": stop_ids, "top_k": 64}
    assert len(stop_ids) == 2
    kept = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "chat_template.json")
    for name in kept:
        assert (out / name).read_bytes() == (base / name).read_bytes()
    # What was with the processor of images is where a tokenizer's template is looked for.
    assert (out / "chat_template.jinja").read_text() == template

    # A type that no weights are written in: that of the training, or a map by part of the model.
    for named in ("int8", {"text_config": "bfloat16"}):
        (base / "config.json").write_text(json.dumps(whole | {"torch_dtype": named}))
        again = str(tmp_path / "again")
        capsys.readouterr()
        assert cli.main(["export", *words, "--method", "sft", "--to", again]) == 2
        said = " ".join(capsys.readouterr().err.split())
        assert re.search(r"names .*(int8|text_config).*choose one with --dtype: float32, bf", said)
        assert not (tmp_path / "again").exists()


def test_adapters_alone(own, tmp_path):
    assert export(own, "--method", "text2grad", "--to", tmp_path / "x", "--adapters") == 0
    described = json.loads((tmp_path / "x" / "adapter_config.json").read_text())
    assert described["r"] == 2
    assert not (tmp_path / "x" / "model.safetensors").exists()


def test_the_model_card_says_how_to_use_the_span_head(own, tmp_path, monkeypatch):
    """Its code is run, and gives our span probabilities."""
    torch = pytest.importorskip("torch", reason="pip install torch, to run the model card's code")
    transformers = pytest.importorskip("transformers")
    chosen = ("--method", "reward-model", "--to", tmp_path / "x", "--dtype", "float32")
    assert export(own, *chosen) == 0
    file, workdir = own
    context = Context.open(load_config(file), workdir)
    params = context.weights.load(REWARD_MODEL, with_heads=("span_head",))
    found = safetensors.numpy.load_file(tmp_path / "x" / HEADS_FILE)
    kernel = params["span_head"]["out"]["kernel"]
    np.testing.assert_array_equal(found["span_head.out.kernel"], kernel)
    text = context.prompts.render("1 1\n0 1")
    settings = {"model": context.model, "mesh": context.mesh}
    (found_here,) = map_rows(
        lambda batch: score(params, batch, Need.SPAN_LOGITS, **settings),
        [TokenSequence(text)],
        context.mesh,
    )
    ours = found_here["span_probabilities"]
    code = re.search(r"```python\n(.*?)```", (tmp_path / "x" / "README.md").read_text(), re.S)[1]
    monkeypatch.chdir(tmp_path / "x")
    model = transformers.AutoModelForCausalLM.from_pretrained(".").eval()
    scope = {"model": model, "input_ids": torch.tensor([text])}
    with torch.no_grad():
        exec(code, scope)
    np.testing.assert_allclose(scope["span_reward"][0], ours @ [-1, 0, 1], atol=1e-4)


def test_class_weights_are_divided_out_of_the_exported_head(rng):
    """Whoever takes the softmax of its logits gets the probabilities of the data."""
    head = {"out": {"kernel": rng.normal(size=(4, 3)), "bias": rng.normal(size=3)}}
    hidden, weights = rng.normal(size=(5, 4)), (5.0, 1.0, 0.5)

    def logits(head):
        return hidden @ np.asarray(head["out"]["kernel"]) + np.asarray(head["out"]["bias"])

    exported = unweighted(head, weights)
    np.testing.assert_allclose(
        jax.nn.softmax(logits(exported)),
        losses.span_probabilities(logits(head), class_weights=weights),
        rtol=1e-5,
    )
    unchanged = unweighted(head, (1.0, 1.0, 1.0))
    np.testing.assert_allclose(unchanged["out"]["bias"], head["out"]["bias"], rtol=1e-6)


def test_a_small_model_of_ours_is_exported_as_a_llama(tiny_run, tmp_path):
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch", reason="pip install torch, to compare")
    words = ["export", str(tiny_run.workdir / "config.yaml"), "--workdir", str(tiny_run.workdir)]
    assert cli.main([*words, "--method", "sft", "--to", str(tmp_path / "x")]) == 0
    context = Context.open(tiny_run.config, tiny_run.workdir)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "x").eval()
    text = context.prompts.render("0 1\n1 0")
    with torch.no_grad():
        theirs = model(torch.tensor([text])).logits[0].numpy()
    params, tokens = context.weights.load(), np.array([text])
    hidden = heads.hidden_states(
        params, context.model, tokens, np.arange(len(text))[None], np.ones_like(tokens)
    )
    np.testing.assert_allclose(hidden[0] @ heads.lm_kernel(params), theirs, rtol=1e-4, atol=1e-4)
    assert model.generation_config.eos_token_id == list(context.tokenizer.stop_ids)


def test_import_says_what_the_model_is(own, tmp_path, capsys):
    file, _ = own
    assert cli.main(["import", str(file), "--workdir", str(tmp_path)]) == 0
    assert re.search(r"gemma3_text, [\d,]+ parameters", capsys.readouterr().err)


# ------------------------------------------------------------------ what cannot be used


def test_folders_are_not_overwritten(own, tmp_path, capsys):
    (tmp_path / "mine").write_text("")
    assert export(own, "--to", tmp_path) == 2
    assert "is there already and no empty folder" in capsys.readouterr().err
    assert export(own) == 2
    assert "export needs --to" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_adapters_that_nothing_has(own, tmp_path, capsys):
    assert export(own, "--method", "sft", "--to", tmp_path / "x", "--adapters") == 2
    assert "nothing has adapters" in capsys.readouterr().err


def test_exported_adapters_are_begun_with(own, tmp_path):
    """What a method trained and exported, the next run starts from; its reference does not."""
    assert export(own, "--method", "rltf-sd", "--to", tmp_path / "x", "--adapters") == 0
    file, workdir = own
    trained = Context.open(load_config(file), workdir).weights.load("rltf-sd")
    config = load_config(file, ["--lora.pretrained", str(tmp_path / "x")])
    context = Context.open(config, tmp_path / "run")
    params = context.weights.with_adapters(context.weights.initial(), "grpo")
    for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(trained), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lora: {pretrained: x}", "pretrained is x, but rank is 0"),
        ("lora: {pretrained: x, rank: 2}", "are adapters of a model: set model.pretrained"),
        ("model: {pretrained: x, layers: 2}", "brings its own layers; leave them out"),
        ("model: {pretrained: x}\ntokenizer: {texts: 5}", "brings its own tokenizer"),
        ("sft: {steps: 0}", "there is no model.pretrained to begin with"),
    ],
)
def test_what_a_pretrained_model_brings_is_not_set(tmp_path, text, message):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_config(tmp_path / "c.yaml")


def test_a_tokenizer_of_another_model_is_found_at_once(folder, tmp_path, capsys):
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"vocab_size": 64}))
    words = ["import", str(CONFIG), "--workdir", str(tmp_path / "run")]
    assert cli.main([*words, "--model.pretrained", str(tmp_path)]) == 2
    assert "use the tokenizer that belongs to the model" in capsys.readouterr().err


def test_a_changed_model_must_have_the_tokenizer_that_is_there(own, folder, tmp_path, capsys):
    file, workdir = own
    run, moved, other = (tmp_path / name for name in ("run", "moved", "other"))
    shutil.copytree(workdir, run)
    shutil.copytree(folder, moved)
    shutil.copytree(folder, other)
    words = ["sft", str(file), "--workdir", str(run), "--accept-changes", "--model.pretrained"]
    assert cli.main([*words, str(moved)]) == 0
    assert f'changed: model.pretrained: "{folder}" → "{moved}"' in capsys.readouterr().err
    template = (other / "chat_template.jinja").read_text()
    (other / "chat_template.jinja").write_text("Hello! " + template)
    before = (run / "config.yaml").read_bytes()
    assert cli.main([*words, str(other)]) == 2
    error = capsys.readouterr().err
    assert f"{run / 'tokenizer'} is not the tokenizer of model.pretrained: {other}" in error
    assert (run / "config.yaml").read_bytes() == before


def test_a_model_without_a_tokenizer(folder, tmp_path, capsys):
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    words = ["import", str(CONFIG), "--workdir", str(tmp_path / "run")]
    assert cli.main([*words, "--model.pretrained", str(tmp_path)]) == 2
    assert "has no tokenizer.json" in capsys.readouterr().err
