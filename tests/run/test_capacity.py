"""What no memory can hold is refused before it is made, with the keys that ask for it."""

import dataclasses
import json

import pytest
import tiny

from t2g_jax import cli
from t2g_jax.config import Config, ModelConfig, load_config
from t2g_jax.data.tokenizer import train_tokenizer
from t2g_jax.errors import T2GError
from t2g_jax.models.decoder import DecoderConfig
from t2g_jax.run import capacity

MOST = 2**31 - 1
CONFIG = load_config(tiny.CONFIG)


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"model__width": 10**9}, "model.layers, width"),
        ({"model__mlp_width": MOST, "model__layers": 1000}, "model.layers, width"),
        ({"model__layers": MOST, "model__width": 2**14}, "model.layers, width"),
        ({"lora__rank": MOST, "model__layers": 1000}, "lora.rank"),
        ({"tokenizer__vocabulary_size": MOST}, "tokenizer.vocabulary_size"),
        ({"tokenizer__texts": MOST, "task__train_size": MOST}, "tokenizer.texts"),
        ({"text2grad__prompts_per_step": MOST // 8 * 8}, "text2grad.prompts_per_step"),
        ({"rltf_sd__group_size": MOST // 8 * 8}, "rltf_sd.prompts_per_step and group_size"),
        ({"evaluate__samples_per_prompt": MOST}, "evaluate.samples_per_prompt"),
        ({"sft__batch_size": MOST // 8 * 8}, "sft.batch_size"),
    ],
)
def test_too_large_for_any_memory(values, key):
    with pytest.raises(T2GError) as caught:
        capacity.check(tiny.with_values(CONFIG, **values))
    assert key in str(caught.value)
    assert " GiB" in str(caught.value)


def test_what_runs_is_let_through():
    capacity.check(CONFIG)
    capacity.check(Config(name="default"))


def test_the_memory_of_a_container_counts():
    assert 2**28 < capacity.host_bytes() <= capacity.device_bytes()


def test_a_command_says_so_before_it_makes_anything(tmp_path, capsys):
    words = ["sft", str(tiny.CONFIG), "--workdir", str(tmp_path / "run")]
    assert cli.main([*words, "--model.width", "1000000000"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("t2g: model.layers, width")
    assert error.count("\n") == 1
    assert not (tmp_path / "run" / "tokenizer").exists()


MODEL = DecoderConfig(
    vocab_size=128_256, width=8192, layers=80, heads=64, kv_heads=8, head_width=128, mlp_width=28672
)


def test_a_pretrained_model_counts_as_it_is():
    config = Config(name="large", methods=("grpo",), model=ModelConfig(pretrained="models/large"))
    vast = dataclasses.replace(MODEL, layers=8000)
    with pytest.raises(T2GError, match=r"^models/large would need at least .* GiB, but"):
        capacity.check(config, vast)
    with pytest.raises(T2GError, match=r"^models/reads would need at least .* GiB as float32"):
        capacity.check_model(config, vast, "models/reads")
    experts = dataclasses.replace(MODEL, layers=1, mlp_width=64, experts=10**7)
    with pytest.raises(T2GError, match=r"^models/large would need"):
        capacity.check(config, experts)
    small = dataclasses.replace(MODEL, layers=1, width=64, mlp_width=64)
    capacity.check(config, small)
    with pytest.raises(T2GError, match=r"^grpo\.prompts_per_step"):
        capacity.check(tiny.with_values(config, grpo__prompts_per_step=2**27), small)


def test_what_is_not_trained_needs_no_memory_for_training():
    large = tiny.with_values(CONFIG, text2grad__prompts_per_step=2**27)
    capacity.check(large, learns=False)
    with pytest.raises(T2GError, match="evaluate"):
        capacity.check(tiny.with_values(large, evaluate__samples_per_prompt=MOST), learns=False)


def test_a_pretrained_model_is_refused_before_it_is_read(tmp_path, capsys):
    folder = tmp_path / "model"
    train_tokenizer(["a b c"], 300, folder)
    sizes = {
        "model_type": "llama", "vocab_size": 320, "hidden_size": 2**20, "num_hidden_layers": 9999,
        "num_attention_heads": 64, "intermediate_size": 2**22, "max_position_embeddings": 4096,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(sizes))
    given = tmp_path / "given.yaml"
    given.write_text(f"name: large\nmodel: {{pretrained: {folder}}}\n")
    for command in ("sft", "import"):
        assert cli.main([command, str(given), "--workdir", str(tmp_path / "run")]) == 2
        assert capsys.readouterr().err.startswith(f"t2g: {folder} would need at least ")
        assert not (tmp_path / "run").exists()


def test_annotations_are_counted(tmp_path):
    asked = {"annotate__prompts": MOST, "task__train_size": MOST}
    with pytest.raises(T2GError, match=r"^annotate\.prompts and samples_per_prompt would need"):
        capacity.check(tiny.with_values(CONFIG, **asked))
    with pytest.raises(T2GError, match=r"^annotate\.prompts and samples_per_prompt would need"):
        capacity.check(tiny.with_values(CONFIG, annotate__samples_per_prompt=MOST))


@pytest.mark.parametrize("command", ["train-policy", "run", "evaluate", "report", "export"])
def test_what_cannot_be_held_is_not_recorded(tiny_run, tmp_path, capsys, command):
    """Also of methods that the config does not name; then nobody would have been told."""
    workdir, _ = tiny_run.branch(tmp_path / "run", "sft", "grpo", methods=("rltf-sd",))
    given = workdir / "config.yaml"
    before = given.read_bytes()
    words = [command, str(workdir), "--accept-changes"]
    words += {"train-policy": ["--method", "ppo"], "export": ["--to", str(tmp_path / "x")]}.get(
        command, []
    )
    for value in (
        ["--grpo.prompts_per_step", "2000000000"],
        ["--rltf_sd.group_size", "2000000000"],
        ["--sft.batch_size", "2000000000"],
        ["--sampling.max_new_tokens", "383"],
        ["--lora.rank", "4", "--lora.pretrained", "nowhere", "--model.pretrained", "nowhere"],
    ):
        assert cli.main([*words, *value]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert "changed:" not in error
    assert given.read_bytes() == before
    assert not list(workdir.glob("config.*.yaml"))


def test_a_method_that_the_config_does_not_name_is_checked_too(tiny_run, tmp_path, capsys):
    large = {"grpo__prompts_per_step": 2_000_000_000, "methods": ("rltf-sd",)}
    workdir, _ = tiny_run.branch(tmp_path / "run", "sft", **large)
    words = [str(workdir), "--method"]
    assert cli.main(["train-policy", *words, "grpo"]) == 2
    assert capsys.readouterr().err.startswith("t2g: grpo.prompts_per_step")
    assert not (workdir / "grpo").exists()
    changed = ["--grpo.group_size", "4", "--accept-changes"]
    assert cli.main(["train-policy", *words, "grpo", *changed]) == 2
    assert "changed:" not in capsys.readouterr().err


@pytest.mark.parametrize("command", ["annotate", "train-rm"])
def test_annotations_are_for_text2grad_whether_or_not_the_config_names_it(
    tiny_run, tmp_path, capsys, command
):
    large = {"text2grad__prompts_per_step": 2_000_000_000, "methods": ("grpo",)}
    done = {"annotate": ("sft",), "train-rm": ("sft", "annotate")}[command]
    workdir, _ = tiny_run.branch(tmp_path / "run", *done, **large)
    assert cli.main([command, str(workdir)]) == 2
    assert capsys.readouterr().err.startswith("t2g: text2grad.prompts_per_step")
