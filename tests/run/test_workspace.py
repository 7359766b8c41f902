import datetime
import json
import os
import shutil
import subprocess
import sys

import pytest
import tiny

from t2g_jax.config import METHODS, is_aside, load_config
from t2g_jax.config.base import values
from t2g_jax.errors import T2GError
from t2g_jax.run import provenance
from t2g_jax.run.context import once, say
from t2g_jax.run.workspace import (
    BEFORE_METHODS,
    Workspace,
    accept_changes,
    claimed,
    command,
    write_json,
    write_text,
)
from t2g_jax.runtime import checked, hosts


def test_asking_makes_no_folder(tiny_run, tmp_path):
    workspace = Workspace(tmp_path / "run", tiny_run.config)
    assert not workspace.is_complete("rltf-sd")
    assert workspace.phase("rltf-sd") == tmp_path / "run" / "rltf_sd"
    assert not (tmp_path / "run").exists()
    workspace.begin()
    written = sorted(path.name for path in (tmp_path / "run").iterdir())
    assert written == ["config.yaml", "folders.json"]
    assert load_config(tmp_path / "run" / "config.yaml") == tiny_run.config


def test_what_is_complete_is_remembered(tiny_run, tmp_path):
    workspace = Workspace(tmp_path, tiny_run.config)
    workspace.begin()
    summary = {"seconds": 2.0, "step": 1, "tokens_trained": 3, "tokens_generated": 4}
    given = workspace.complete("grpo", summary)
    assert Workspace(tmp_path, tiny_run.config).summary("grpo") == given
    assert given["phase"] == "grpo"


@pytest.mark.parametrize(
    ("phase", "expected"),
    [
        ("sft", "t2g sft"),
        ("annotate", "t2g annotate"),
        ("reward_model", "t2g train-rm"),
        ("grpo", "t2g train-policy --method grpo"),
    ],
)
def test_what_is_missing_is_named_with_its_command(tiny_run, tmp_path, phase, expected):
    assert command(phase) == expected
    with pytest.raises(T2GError, match=f"complete.json is missing: first run `{expected} CONFIG`"):
        Workspace(tmp_path, tiny_run.config).summary(phase)


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "new" / "file.json"
    write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"a": float("nan")})
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "half a pair: \ud800")
    assert json.loads(path.read_text()) == checked.sealed({"a": 1})


def test_only_the_first_process_writes_and_speaks(tmp_path, monkeypatch, capsys):
    say("first")
    monkeypatch.setattr(hosts, "is_primary", lambda: False)
    write_text(tmp_path / "file", "text")
    say("second")
    assert not (tmp_path / "file").exists()
    assert capsys.readouterr().err == "first\n"


def test_work_is_done_once(tiny_run, tmp_path, capsys):
    calls = []

    def work(context):
        calls.append(context.config)
        return {"seconds": 1.0, "step": 0, "tokens_trained": 0, "tokens_generated": 0}

    config = tiny.with_values(tiny_run.config, name="other")
    first = once("grpo", config, tmp_path, work)
    assert once("grpo", config, tmp_path, work) == first
    assert calls == [config]
    assert capsys.readouterr().err == "grpo: complete, skipped\n"


# --- Another config --------------------------------------------------------------------------


SUMMARY = {"seconds": 1.0, "step": 1, "tokens_trained": 3, "tokens_generated": 4}


def begun(root, config, *complete):
    """A work directory with these phases complete."""
    workspace = Workspace(root, config)
    workspace.begin()
    for phase in complete:
        workspace.complete(phase, SUMMARY)
    return workspace


def test_another_config_is_refused_with_what_differs_and_how_to_go_on(tiny_run, tmp_path):
    begun(tmp_path, tiny_run.config, "sft")
    other = tiny.with_values(tiny_run.config, sft__steps=40, model__width=64)
    with pytest.raises(T2GError) as error:
        Workspace(tmp_path, other)
    assert "model.width: 32 → 64, sft.steps: 30 → 40" in str(error.value)
    assert "--accept-changes" in str(error.value)
    assert "--workdir" in str(error.value)


def test_accepted_changes_are_recorded_beside_what_was_there(tiny_run, tmp_path):
    assert accept_changes(tmp_path / "none", tiny_run.config) == []
    begun(tmp_path, tiny_run.config, "sft")
    assert accept_changes(tmp_path, tiny_run.config) == []
    for number, steps in enumerate((40, 50), start=1):
        config = tiny.with_values(tiny_run.config, sft__steps=steps)
        assert len(accept_changes(tmp_path, config)) == 1
        assert Workspace(tmp_path, config).is_complete("sft")
        assert load_config(tmp_path / "config.yaml") == config
        kept = (tmp_path / f"config.{number}.yaml").read_text()
        assert f"#   sft.steps: {steps - 10} → {steps}" in kept
        assert kept.startswith(f"# Until {datetime.date.today().year}")
        assert load_config(tmp_path / f"config.{number}.yaml").sft.steps == steps - 10


def test_a_kept_config_is_never_written_over(tiny_run, tmp_path):
    begun(tmp_path, tiny_run.config, "sft")
    for name in ("config.2.yaml", "config.7.yaml", "config.mine.yaml"):
        (tmp_path / name).write_text("mine")
    accept_changes(tmp_path, tiny.with_values(tiny_run.config, seed=1))
    accept_changes(tmp_path, tiny.with_values(tiny_run.config, seed=2))
    for name in ("config.2.yaml", "config.7.yaml", "config.mine.yaml"):
        assert (tmp_path / name).read_text() == "mine"
    assert [load_config(tmp_path / f"config.{n}.yaml").seed for n in (8, 9)] == [0, 1]


ASIDE = {
    "name": "another",
    "methods": ("grpo",),
    "task__test_size": 3,
    "judge__timeout_seconds": 1.0,
    "judge__max_failures_in_a_row": 1,
    "judge__workers": 2,
    "judge__batch_size": 2,
    "grpo__rows_at_once": 2,
    "grpo__eval_every": 1,
    "evaluate__samples_per_prompt": 7,
    "evaluate__batch_size": 2,
    "evaluate__second_turn": False,
    "evaluate__checkpoint": "best",
    "checkpoint__every_steps": 1,
    "checkpoint__keep_last": 5,
    "checkpoint__keep_best": "accuracy",
    "checkpoint__best_is": "min",
    "training__max_skipped_updates": 1,
    "training__watchdog_minutes": 0.0,
    "tracking__tensorboard": True,
    "tracking__wandb": "offline",
    "tracking__project": "mine",
}
"""Another value for each field that is no part of what a run is."""


def test_what_changes_nothing_that_is_learned_may_differ(tiny_run, tmp_path):
    begun(tmp_path, tiny_run.config, "sft")
    config = tiny.with_values(tiny_run.config, **ASIDE)
    Workspace(tmp_path, config).begin()
    assert load_config(tmp_path / "config.yaml") == tiny_run.config  # of this command alone
    aside = {key for key in values(config) if is_aside(key)}
    given = {path.replace("__", ".") for path in ASIDE}
    looked_at = ("rows_at_once", "eval_every", "log_kl")
    of_methods = {key for key in aside if key.endswith(tuple(f".{name}" for name in looked_at))}
    assert aside == given | of_methods
    assert {key.rpartition(".")[2] for key in of_methods} == set(looked_at)


def test_all_else_is_what_a_run_is(tiny_run, tmp_path):
    """Each field is either aside, or an input of some phase, and then it is refused; `plugins` of
    the methods that they bring, which are none here, see test_plugins.py."""
    config, read = tiny_run.config, {"plugins"}
    for phase in (*BEFORE_METHODS, *METHODS):
        read |= set(provenance.inputs(phase, config))
    for key in values(config):
        assert is_aside(key) != (key in read), key


# --- A folder without work -------------------------------------------------------------------


def test_a_folder_without_any_work_is_taken_over(tiny_run, tmp_path):
    begun(tmp_path, tiny_run.config)
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "sft" / "checkpoints").mkdir(parents=True)
    (tmp_path / "sft" / "metrics.jsonl").write_text("{}")
    other = tiny.with_values(tiny_run.config, sft__steps=40)
    workspace = Workspace(tmp_path, other)
    assert load_config(tmp_path / "config.yaml") == tiny_run.config
    workspace.begin()
    assert load_config(tmp_path / "config.yaml") == other
    assert not (tmp_path / "tokenizer").exists()  # it was the other run's


def test_a_config_that_somebody_wrote_is_kept(tiny_run, tmp_path):
    """A folder with nothing but a config of one's own is a run's from its first start on."""
    mine = "# Of Tuesday.\nname: tiny\nseed: 5\n"
    (tmp_path / "config.yaml").write_text(mine)
    for seed in (6, 7):
        Workspace(tmp_path, tiny.with_values(tiny_run.config, seed=seed)).begin()
        assert load_config(tmp_path / "config.yaml").seed == seed
    written = sorted(path.name for path in tmp_path.iterdir())
    assert written == ["config.1.yaml", "config.yaml", "folders.json"]
    assert (tmp_path / "config.1.yaml").read_text() == mine


@pytest.mark.parametrize("key", ["vocabulary_size", "texts"])
def test_what_the_tokenizer_was_trained_with_cannot_change(tiny_run, tmp_path, key):
    begun(tmp_path, tiny_run.config, "sft")
    with pytest.raises(T2GError, match=rf"tokenizer was trained already, .*tokenizer\.{key}"):
        accept_changes(tmp_path, tiny.with_values(tiny_run.config, **{f"tokenizer__{key}": 310}))
    assert load_config(tmp_path / "config.yaml") == tiny_run.config


def test_a_tokenizer_of_accepted_changes_is_made_anew_where_nothing_needs_it(tiny_run, tmp_path):
    for name, complete in (("dead", ()), ("alive", ("sft",))):
        begun(tmp_path / name, tiny_run.config, *complete)
        (tmp_path / name / "tokenizer").mkdir()
        accept_changes(tmp_path / name, tiny.with_values(tiny_run.config, seed=1))
        assert (tmp_path / name / "tokenizer").exists() == bool(complete)


@pytest.mark.parametrize(
    "work", ["sft/complete.json", "sft/checkpoints/3/state", "annotate/journal.jsonl"]
)
def test_any_work_keeps_a_folder(tiny_run, tmp_path, work):
    begun(tmp_path, tiny_run.config)
    path = tmp_path / work
    path.parent.mkdir(parents=True)
    path.write_text("work")
    with pytest.raises(T2GError, match="another config"):
        Workspace(tmp_path, tiny.with_values(tiny_run.config, sft__steps=40))


@pytest.mark.parametrize("name", ["tokenizer", "sft", "rltf_sd", "report.html"])
def test_a_missing_config_is_not_any_config(tiny_run, tmp_path, name):
    begun(tmp_path, tiny_run.config)
    (tmp_path / name).mkdir()
    (tmp_path / "config.yaml").unlink()
    with pytest.raises(T2GError, match=f"holds {name}, but no config.yaml.*put that back"):
        Workspace(tmp_path, tiny_run.config)


def test_a_foreign_config_is_left_alone(tiny_run, tmp_path):
    (tmp_path / "config.yaml").write_text("volumes: [a, b]\n")
    with pytest.raises(T2GError, match=r"config.yaml: unknown key `volumes`"):
        Workspace(tmp_path, tiny_run.config).begin()
    assert (tmp_path / "config.yaml").read_text() == "volumes: [a, b]\n"


@pytest.mark.parametrize("root", ["gs://bucket/run", "s3://a", "file:///tmp/x"])
def test_a_url_is_no_folder(tiny_run, tmp_path, monkeypatch, root):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(T2GError, match="is a URL; a work directory is a folder"):
        Workspace(root, tiny_run.config)
    assert list(tmp_path.iterdir()) == []


# --- Who writes ------------------------------------------------------------------------------

HOLDER = """
import sys
from t2g_jax.run.workspace import claimed
with claimed(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_another_process_is_kept_out_and_named(tiny_run, tmp_path):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=environment, **pipes) as holder:
        assert holder.stdout.readline() == "held\n"
        with (
            pytest.raises(T2GError, match=f"is in use by process {holder.pid} on "),
            claimed(tmp_path),
        ):
            pass
        Workspace(tmp_path, tiny_run.config)  # reading is free
        (tmp_path / "run.lock").unlink()  # which keeps nobody from it
        with pytest.raises(T2GError, match="is in use by another process"), claimed(tmp_path):
            pass
        assert not (tmp_path / "run.lock").exists()
        holder.kill()
    with claimed(tmp_path):  # the claim ended with the process
        pass


def test_a_process_may_claim_again_what_it_has(tmp_path):
    with claimed(tmp_path), claimed(tmp_path / "." / ""):
        pass
    with claimed(tmp_path):
        (left := tmp_path / "tokenizer.0123abcd.partial").mkdir()
    with claimed(tmp_path):
        assert not left.exists()  # by a process that was killed


@pytest.mark.parametrize("root", ["/proc/nowhere/run", "FILE/run"])
def test_a_folder_that_cannot_be_written_to(tiny_run, tmp_path, root):
    (tmp_path / "file").touch()
    root = root.replace("FILE", str(tmp_path / "file"))
    for use in (Workspace(root, tiny_run.config).begin, lambda: claimed(root).__enter__()):
        with pytest.raises(
            T2GError, match=f"cannot write to the work directory {root}: .*--workdir"
        ):
            use()


def test_a_claim_that_came_to_nothing_leaves_nothing(tmp_path):
    with claimed(tmp_path / "new" / "run"):
        assert (tmp_path / "new" / "run" / "run.lock").exists()
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "empty").mkdir()
    with claimed(tmp_path / "empty"):
        pass
    assert list((tmp_path / "empty").iterdir()) == []
    with claimed(tmp_path / "used"):
        write_text(tmp_path / "used" / "file", "text")
    assert sorted(path.name for path in (tmp_path / "used").iterdir()) == ["file", "run.lock"]


@pytest.mark.parametrize("how", ["moved", "deleted", "replaced"])
def test_a_folder_that_goes_away_ends_the_run_and_is_not_made_again(tmp_path, how):
    root, other = tmp_path / "run", tmp_path / "other"
    with claimed(root):
        write_text(root / "sft" / "file", "text")
        shutil.rmtree(root) if how == "deleted" else root.rename(other)
        if how == "replaced":
            root.mkdir()
        found = rf" \(it is now {other}\)" if how != "deleted" else ""
        for write in (
            lambda: write_text(root / "sft" / "file", "again"),
            lambda: claimed(root).__enter__(),
        ):
            with pytest.raises(
                T2GError, match=rf"{root} was moved, deleted or replaced .*{found};"
            ):
                write()
    assert [path.name for path in root.rglob("*")] == []
    assert root.exists() == (how == "replaced")


def test_a_deleted_lock_file_is_made_again(tmp_path):
    with claimed(tmp_path):
        write_text(tmp_path / "file", "text")
        (tmp_path / "run.lock").unlink()
        write_text(tmp_path / "file", "text")
        assert f"process {os.getpid()} " in (tmp_path / "run.lock").read_text()
