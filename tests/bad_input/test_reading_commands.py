"""Commands that only read, and starts that fail: they make nothing in a folder."""

import importlib
import json
import shutil

import pytest
import tiny

from t2g_jax import cli
from t2g_jax.config import load_config, to_yaml
from t2g_jax.run.workspace import Workspace


def snapshot(folder):
    """Every file and folder below, with contents."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


READING = {
    "evaluate": (),
    "generate": ("--method", "sft"),
    "generate --prompt": ("--method", "grpo", "--prompt", "0 1"),
    "report": (),
    "export": ("--method", "sft", "--to", "{here}/exported"),
    "import": (),
    "annotate": (),
    "train-rm": (),
    "train-policy": ("--method", "text2grad"),
    "sft": ("--judge.name", "bad_judges:nobody"),
    "run": ("--judge.name", "no_such_module:judge"),
    "run mesh": ("--mesh.data", "5"),
    "run tracker": ("--tracking.tensorboard", "true"),
    "evaluate accepted": ("--accept-changes",),
    "generate accepted": ("--method", "sft", "--accept-changes"),
    "report accepted": ("--accept-changes",),
    "sft accepted": ("--accept-changes", "--judge.name", "bad_judges:nobody"),
}


FOREIGN = [
    {"notes.txt": "mine"},
    {"config.yaml": "a: foreign\n"},
    {"config.yaml": "name: theirs\n"},
]


@pytest.mark.parametrize("held", [None, {}, *FOREIGN])
@pytest.mark.parametrize("words", READING)
def test_nothing_is_made(t2g, tiny_run, tmp_path, monkeypatch, words, held):
    if "tracker" in words:
        real = importlib.import_module

        def missing(name, package=None):
            if name.partition(".")[0] == "tensorboard":
                raise ModuleNotFoundError("No module named 'tensorboard'", name="tensorboard")
            return real(name, package)

        monkeypatch.setattr(importlib, "import_module", missing)
    workdir = tmp_path / "new" / "run"
    if held is not None:
        workdir.mkdir(parents=True)
        for name, text in held.items():
            (workdir / name).write_text(text)
    before = snapshot(tmp_path)
    options = [word.format(here=tmp_path) for word in READING[words]]
    outcome = t2g(words.split()[0], workdir, tiny_run.config, *options)
    (tmp_path / "given.yaml").unlink()
    assert outcome.status == 2
    assert snapshot(tmp_path) == before


def test_what_is_not_of_a_run_is_left_alone(t2g, tiny_run, tmp_path):
    """A tokenizer that nobody knows whose it is, and phases whose config was deleted."""
    for name in ("tokenizer", "sft"):
        workdir = tmp_path / name
        shutil.copytree(tiny_run.workdir / name, workdir / name)
        before = snapshot(workdir)
        for command in ("sft", "run", "evaluate", "report"):
            outcome = t2g(command, workdir, tiny_run.config)
            assert outcome.status == 2
            assert f"{workdir} holds {name}, but no config.yaml" in outcome.error
        assert snapshot(workdir) == before


def test_a_run_that_died_before_its_first_step_does_not_block_its_folder(t2g, tiny_run, tmp_path):
    workdir = tmp_path / "run"
    dead = tiny.with_values(tiny_run.config, tokenizer__vocabulary_size=300, sft__steps=7)
    Workspace(workdir, dead).begin()
    shutil.copytree(tiny_run.workdir / "tokenizer", workdir / "tokenizer")
    (workdir / "tokenizer" / "tokenizer.json").write_text("half")
    (workdir / "sft" / "checkpoints").mkdir(parents=True)
    (workdir / "sft" / "metrics.jsonl").write_text('{"step": 1, "seconds": 1.0}\n')
    (workdir / "run.lock").touch()
    config = tiny.with_values(tiny_run.config, sft__steps=2)
    assert t2g("sft", workdir, config).status == 0
    assert load_config(workdir / "config.yaml") == config
    assert json.loads((workdir / "sft" / "complete.json").read_text())["step"] == 2
    # Now there is work in it.
    outcome = t2g("sft", workdir, tiny_run.config)
    assert "holds a run with another config (sft.steps: 2 → 30)" in outcome.error


# --- A folder is a run -----------------------------------------------------------------------


@pytest.fixture
def run(tiny_run, tmp_path):
    """A work directory whose name is not that of the run, and the config of another one."""
    workdir, config = tiny_run.branch(tmp_path / "elsewhere", "sft", "grpo", methods=("grpo",))
    (tmp_path / "other.yaml").write_text(to_yaml(tiny.with_values(config, seed=9)))
    return workdir


@pytest.mark.parametrize("how", ["{}", "{}/", "{}/config.yaml"])
def test_a_work_folder_stands_for_its_run(run, tmp_path, monkeypatch, capsys, how):
    monkeypatch.chdir(tmp_path)
    named = how.format("elsewhere")
    before = set(snapshot(run))
    for words in (
        ["evaluate", named],
        ["report", named],
        ["generate", named, "--method", "grpo"],
        ["generate", named, "--method", "sft", "--sampling.temperature", "0.5", "--seed", "3"],
        ["export", named, "--method", "grpo", "--to", f"exported{len(how)}"],
        ["train-policy", named, "--method", "grpo"],
        ["run", named],
        ["run", named, "--evaluate.batch_size", "2", "--training.watchdog_minutes", "1"],
    ):
        assert cli.main(words) == 0, capsys.readouterr().err
    assert set(snapshot(run)) - before <= {"run.lock", "report.html"}
    assert not (tmp_path / "runs").exists()
    assert cli.main(["run", named, "--seed", "3"]) == 2
    assert "elsewhere holds a run with another config (seed: 0 → 3)" in capsys.readouterr().err
    assert cli.main(["run", named, "--help"]) == 0


def test_a_folder_that_is_no_run(tmp_path, capsys):
    (tmp_path / "config.yml").write_text("seed: 0\n")
    for command in ("evaluate", "generate", "report", "export", "run", "plan"):
        assert cli.main([command, str(tmp_path)]) == 2
        error = capsys.readouterr().err
        assert f"{tmp_path} is no run: it has no config.yaml; name a configuration file" in error


def test_a_file_named_config_yaml_need_not_be_in_a_run(tiny_run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_text(to_yaml(tiny.with_values(tiny_run.config, name="mine")))
    assert cli.main(["evaluate", "config.yaml"]) == 2
    assert "runs/mine/sft/complete.json is missing" in capsys.readouterr().err
