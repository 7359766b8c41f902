import json

import jax
import pytest
import tiny

from t2g_jax.errors import T2GError
from t2g_jax.phases.context import once, say
from t2g_jax.phases.workspace import Workspace, command, write_json, write_text


def test_asking_makes_no_folder(tiny_run, tmp_path):
    workspace = Workspace(tmp_path / "run", tiny_run.config)
    assert not workspace.is_complete("rltf-sd")
    assert workspace.phase("rltf-sd") == tmp_path / "run" / "rltf_sd"
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["config.yaml"]


def test_what_is_complete_is_remembered_with_its_config(tiny_run, tmp_path):
    workspace = Workspace(tmp_path, tiny_run.config)
    given = workspace.complete("grpo", {"seconds": 2.0})
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
    monkeypatch.setattr(jax, "process_index", lambda: 1)
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
