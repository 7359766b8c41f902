import datetime
import json
import os
import subprocess
import sys

import pytest
import tiny

from t2g_jax import hosts
from t2g_jax.config import load_config
from t2g_jax.errors import T2GError
from t2g_jax.phases.context import once, say
from t2g_jax.phases.workspace import (
    Workspace,
    accept_changes,
    claimed,
    command,
    write_json,
    write_text,
)


def test_asking_makes_no_folder(tiny_run, tmp_path):
    workspace = Workspace(tmp_path / "run", tiny_run.config)
    assert not workspace.is_complete("rltf-sd")
    assert workspace.phase("rltf-sd") == tmp_path / "run" / "rltf_sd"
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["config.yaml"]


def test_what_is_complete_is_remembered_with_its_config(tiny_run, tmp_path):
    workspace = Workspace(tmp_path, tiny_run.config)
    given = workspace.complete("grpo", {"seconds": 2.0, "tokens_trained": 3, "tokens_generated": 4})
    assert Workspace(tmp_path, tiny_run.config).summary("grpo") == given
    assert given["phase"] == "grpo"
    assert len(given["config"]) == 16


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
    assert json.loads(path.read_text()) == {"a": 1}


def test_only_the_first_process_writes_and_speaks(tmp_path, monkeypatch, capsys):
    say("first")
    monkeypatch.setattr(hosts, "is_first", lambda: False)
    write_text(tmp_path / "file", "text")
    say("second")
    assert not (tmp_path / "file").exists()
    assert capsys.readouterr().err == "first\n"


def test_work_is_done_once(tiny_run, tmp_path, capsys):
    calls = []

    def work(context):
        calls.append(context.config)
        return {"seconds": 1.0}

    config = tiny.with_values(tiny_run.config, name="other")
    first = once("grpo", config, tmp_path, work)
    assert once("grpo", config, tmp_path, work) == first
    assert calls == [config]
    assert capsys.readouterr().err == "grpo: complete, skipped\n"


# --- Another config --------------------------------------------------------------------------


def test_another_config_is_refused_with_what_differs_and_how_to_go_on(tiny_run, tmp_path):
    Workspace(tmp_path, tiny_run.config)
    other = tiny.with_values(tiny_run.config, sft__steps=40, model__width=64)
    with pytest.raises(T2GError) as error:
        Workspace(tmp_path, other)
    assert "model.width: 32 → 64, sft.steps: 30 → 40" in str(error.value)
    assert "--accept-changes" in str(error.value)
    assert "--workdir" in str(error.value)


def test_accepted_changes_are_recorded_beside_what_was_there(tiny_run, tmp_path):
    assert accept_changes(tmp_path / "none", tiny_run.config) == []
    Workspace(tmp_path, tiny_run.config).complete("sft", {"seconds": 1.0})
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


# --- Who writes ------------------------------------------------------------------------------

HOLDER = """
import sys
from t2g_jax.phases.workspace import claimed
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
    for use in (lambda: Workspace(root, tiny_run.config), lambda: claimed(root).__enter__()):
        with pytest.raises(
            T2GError, match=f"cannot write to the work directory {root}: .*--workdir"
        ):
            use()
