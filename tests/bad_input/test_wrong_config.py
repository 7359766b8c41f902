"""Configurations that cannot be: file, key and fix are named, and no work directory is made."""

import pytest

from t2g_jax import cli


@pytest.mark.parametrize("command", ["run", "sft", "annotate", "report"])
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("sft: {stps: 3}", "unknown key `sft.stps`; did you mean `sft.steps`?"),
        ("jugde: {level: what}", "unknown key `jugde`; did you mean `judge`?"),
        ("judge: {timeout: 3}", "did you mean `judge.timeout_seconds`?"),
        ("sft: {steps: '3'}", '`sft.steps` is "3"; must be a valid integer'),
        ("judge: {workers: 0}", "`judge.workers` is 0; must be greater than 0"),
        ("judge: {timeout_seconds: soon}", '`judge.timeout_seconds` is "soon"; must be a'),
        ("judge: {name: my judge}", "in `judge`: name is 'my judge'; must be 'task', 'policy', or"),
        ("mesh: {data: 3, fsdp: 0}", "must be a positive number of devices, or -1"),
    ],
)
def test_wrong_values(tmp_path, capsys, command, text, expected):
    given = tmp_path / "mine.yaml"
    given.write_text(text)
    assert cli.main([command, str(given), "--workdir", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"t2g: {given}: ")
    assert expected in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("axes", "expected"),
    [
        ({"data": 3, "fsdp": 1, "tensor": 1}, "data=3, fsdp=1, context=1, tensor=1 needs 3"),
        (
            {"data": -1, "fsdp": 5},
            "data=-1, fsdp=5, context=1, tensor=1 needs a multiple of 5",
        ),
        ({"data": 16}, "data=16, fsdp=1, context=1, tensor=1 needs 16"),
    ],
)
def test_impossible_mesh(t2g, tiny_run, tmp_path, axes, expected):
    values = {f"mesh__{axis}": size for axis, size in axes.items()}
    workdir, config = tiny_run.branch(tmp_path / "run", "sft", **values)
    outcome = t2g("annotate", workdir, config)
    assert outcome.status == 2
    message = f"mesh {expected} devices, there are 8: set mesh.data, mesh.fsdp,"
    assert outcome.error.startswith(message)


def test_a_mesh_that_was_wrong_at_first_can_be_mended(t2g, tiny_run, tmp_path):
    words = ["sft", tmp_path / "run", tiny_run.config, "--sft.steps", "2"]
    assert t2g(*words, "--mesh.data", "3").status == 2
    assert not (tmp_path / "run").exists()  # a start that fails leaves nothing in its way
    assert t2g(*words).status == 0
