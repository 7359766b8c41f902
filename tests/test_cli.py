"""The `t2g` command: what it prints, which phase it calls, and how it fails."""

import errno
import os
import pathlib
import signal
import subprocess
import sys
import types

import pytest

from t2g_jax import cli, phases
from t2g_jax.commands import COMMANDS
from t2g_jax.config import METHODS, ConfigError, load_config
from t2g_jax.errors import T2GError
from t2g_jax.runtime import preemption


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text("name: small\nmethods: [grpo, text2grad]\n")
    return str(path)


@pytest.fixture
def phase(monkeypatch):
    """Puts a recording function in a phase's place: `calls = phase("sft")`."""

    def replace(name, raises=None):
        calls = []

        def run(*arguments):
            calls.append(arguments)
            if raises is not None:
                raise raises

        module = types.ModuleType(f"t2g_jax.phases.{name}")
        module.run = run
        monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setattr(phases, name, module, raising=False)
        return calls

    return replace


@pytest.mark.parametrize(
    ("command", "module"),
    [
        ("run", "pipeline"),
        ("sft", "sft"),
        ("annotate", "annotate"),
        ("train-rm", "reward_model"),
        ("evaluate", "evaluate"),
        ("report", "reporting"),
    ],
)
def test_command_calls_its_phase(phase, config, command, module):
    calls = phase(module)
    assert cli.main([command, config]) == 0
    ((given, workdir),) = calls
    assert given.name == "small"
    assert workdir == pathlib.Path("runs/small")


@pytest.mark.parametrize("method", METHODS)
def test_train_policy(phase, config, method):
    calls = phase("policy")
    assert cli.main(["train-policy", config, "--method", method]) == 0
    assert calls[0][2] == method


def test_train_policy_needs_a_method(phase, config, capsys):
    calls = phase("policy")
    assert cli.main(["train-policy", config]) == 2
    assert not calls
    assert f"--method: one of {', '.join(METHODS)}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], ("grpo", None)),
        (["--method", "sft", "--prompt", "0 1"], ("sft", "0 1")),
    ],
)
def test_generate(phase, config, options, expected):
    calls = phase("generate")
    assert cli.main(["generate", config, *options]) == 0
    assert calls[0][2:] == expected


def test_overrides_and_workdir_in_any_order(phase, config):
    calls = phase("sft")
    words = "--seed 3 --workdir elsewhere/a --rltf_sd.logprob_floor -1e-3 --model.width=64"
    assert cli.main(["sft", config, *words.split()]) == 0
    ((given, workdir),) = calls
    assert (given.seed, given.model.width, given.rltf_sd.logprob_floor) == (3, 64, -1e-3)
    assert workdir == pathlib.Path("elsewhere/a")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["sft", "no.yaml"], "t2g: no.yaml: cannot be read: No such file or directory\n"),
        (["sft", "CONFIG", "--sft.stps", "3"], "did you mean `--sft.steps`?\n"),
        (
            ["sft", "CONFIG", "--sft.steps", "-3"],
            "`sft.steps` is -3; must be greater than or equal to 0\n",
        ),
        (["sft", "CONFIG", "--work", "x"], "unknown option `--work`"),
        (["sft", "CONFIG", "--", "x"], "`--` stands for nothing here"),
        (["sft", "CONFIG", "--workdir", "~no-such-user/a"], "there is no such home folder"),
        (["run", "STUDY"], "describes a study; use `t2g study "),
        (["plan", "STUDY"], "describes a study; use `t2g study "),
        (["sft", "STUDY", "--help"], "describes a study; use `t2g study "),
        (["study", "CONFIG"], "is the configuration of one run; use `t2g run "),
        (["sft", "--seed", "1", "CONFIG"], "1 is no file, and CONFIG comes too late: name it "),
        (["sft", "."], "t2g: . is no run: it has no config.yaml; name a configuration file, "),
        (["sft", "PHASE"], "/run; name that, and a policy by --method\n"),
    ],
)
def test_what_the_user_got_wrong_is_one_line(phase, config, tmp_path, capsys, words, expected):
    calls = phase("sft")
    study = tmp_path / "study.yaml"
    study.write_text("seeds: [0]\ntasks: {a: {}}\narms: {b: {method: grpo}}\n")
    (tmp_path / "run" / "sft").mkdir(parents=True)
    (tmp_path / "run" / "config.yaml").write_text("name: run\n")
    given = {"CONFIG": config, "STUDY": str(study), "PHASE": str(tmp_path / "run" / "sft")}
    assert cli.main([given.get(word, word) for word in words]) == 2
    assert not calls
    error = capsys.readouterr().err
    assert expected in error.replace(config, "CONFIG")
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        *(
            ([*command.split(), ""], "it is empty; name a file or folder")
            for command in (
                "sft",
                "sft CONFIG --workdir",
                "export CONFIG --to",
                "plan CONFIG --json",
                "generate CONFIG --prompts-file",
                "study FILE --workdir",
            )
        ),
        (["sft"], "name a configuration file, e.g. configs/quickstart.yaml"),
        (["train", "CONFIG"], "invalid choice: 'train'"),
        (["sft", "CONFIG", "--workdir"], "--workdir: expected one argument"),
        *(
            (f"{command} {option} a {option}=b".split(), f"{option}: given twice, as a and as b")
            for command, option in (
                ("sft CONFIG", "--workdir"),
                ("generate CONFIG", "--prompt"),
                ("export CONFIG", "--to"),
                ("plan CONFIG", "--topology"),
                ("study FILE", "--workdir"),
            )
        ),
        (
            "train-policy CONFIG --method ppo --method grpo".split(),
            "--method: given twice, as ppo and as grpo; leave one out",
        ),
    ],
)
def test_wrong_usage(config, capsys, words, expected):
    with pytest.raises(SystemExit) as caught:
        cli.main([config if word == "CONFIG" else word for word in words])
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("t2g: ")
    assert expected in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("train-policy CONFIG --method dpo", "invalid choice: 'dpo'; must be 'text2grad', 'ppo', "),
        ("train-policy CONFIG --method sft", "invalid choice: 'sft'; must be 'text2grad', 'ppo', "),
        ("generate CONFIG --method grop", "must be 'sft', 'text2grad', "),
        ("export CONFIG --to x --method rewad-model", "; did you mean 'reward-model'?"),
    ],
)
def test_a_method_is_one_of_the_configs(config, capsys, words, expected):
    assert cli.main([config if word == "CONFIG" else word for word in words.split()]) == 2
    error = capsys.readouterr().err
    assert error.startswith("t2g: --method: invalid choice: ")
    assert expected in error
    assert error.count("\n") == 1


def test_our_errors_keep_their_traceback_when_asked(phase, config, monkeypatch, capsys):
    phase("sft", raises=T2GError("the dataset has no rows"))
    assert cli.main(["sft", config]) == 2
    assert capsys.readouterr().err == "t2g: the dataset has no rows\n"
    monkeypatch.setenv("T2G_DEBUG", "1")
    with pytest.raises(T2GError):
        cli.main(["sft", config])


def test_other_errors_are_not_hidden(phase, config):
    phase("sft", raises=RuntimeError("a defect"))
    with pytest.raises(RuntimeError):
        cli.main(["sft", config])


@pytest.mark.parametrize("number", [errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG])
def test_a_path_that_cannot_be_is_one_line(phase, config, capsys, number):
    phase("sft", raises=OSError(number, os.strerror(number), "runs/small/sft"))
    assert cli.main(["sft", config]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"t2g: runs/small/sft: {os.strerror(number)}")
    assert error.count("\n") == 1


def test_the_home_folder_is_written_as_a_tilde(phase, config, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    calls = phase("sft")
    assert cli.main(["sft", "~/small.yaml", "--workdir=~/runs/a"]) == 0
    ((given, workdir),) = calls
    assert given.name == "small"
    assert workdir == tmp_path / "runs" / "a"


def test_interrupt(phase, config, capsys):
    phase("sft", raises=KeyboardInterrupt())
    assert cli.main(["sft", config]) == 130
    assert "goes on from here" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["plan", "report", "import", "export", "generate"])
@pytest.mark.parametrize("stop", [KeyboardInterrupt, preemption.Preempted])
def test_what_does_not_go_on_does_not_say_so(name, stop, config, monkeypatch, capsys):
    def action(*_):
        raise stop

    monkeypatch.setitem(COMMANDS, name, COMMANDS[name]._replace(action=action))
    assert cli.main([name, config]) in (130, 75)
    assert capsys.readouterr().err.endswith("the same command begins anew\n")


def test_sigterm_where_nothing_is_under_way(config, monkeypatch, capsys):
    """Status 75: launchers run the same command again."""

    def run(*arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        pytest.fail("it went on")

    module = types.SimpleNamespace(run=run)
    monkeypatch.setitem(sys.modules, "t2g_jax.phases.sft", module)
    monkeypatch.setattr(phases, "sft", module, raising=False)
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    assert cli.main(["sft", config]) == preemption.EXIT_PREEMPTED == 75
    assert "SIGTERM; the same command goes on from here" in capsys.readouterr().err
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_disk_that_cannot_be_written_to_is_one_line(phase, config, capsys, number):
    phase("sft", raises=OSError(number, os.strerror(number), "runs/small/sft/metrics.jsonl"))
    assert cli.main(["sft", config]) == 2
    error = capsys.readouterr().err
    assert f"runs/small/sft/metrics.jsonl: {os.strerror(number)}; make room there" in error
    assert error.count("\n") == 1


def test_accepted_changes_are_recorded_before_the_phase_begins(phase, config, tmp_path, capsys):
    phase("sft")
    workdir = ["--workdir", str(tmp_path / "run")]
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(pathlib.Path(config).read_text())
    (tmp_path / "run" / "run.lock").touch()
    assert cli.main(["sft", config, *workdir, "--seed", "3", "--accept-changes"]) == 0
    assert capsys.readouterr().err == "changed: seed: 0 → 3\n"
    assert load_config(tmp_path / "run" / "config.yaml").seed == 3
    assert (tmp_path / "run" / "config.1.yaml").exists()


def test_config_error_is_one_of_ours():
    assert issubclass(ConfigError, T2GError)
    assert issubclass(T2GError, ValueError)


def test_nothing_and_help_say_the_same(capsys):
    assert cli.main([]) == 0
    text = capsys.readouterr().out
    with pytest.raises(SystemExit) as caught:
        cli.main(["--help"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == text
    assert "t2g run configs/quickstart.yaml" in text


def test_help_lists_commands_in_the_order_they_run(capsys):
    cli.main([])
    text = capsys.readouterr().out
    positions = [text.index(f"\n    {name}") for name in ("run", "sft", "annotate", "train-rm")]
    assert positions == sorted(positions)


@pytest.mark.parametrize("command", list(COMMANDS))
def test_command_help(command, config, capsys):
    assert cli.main([command, "--help"]) == 0
    text = capsys.readouterr().out
    assert "reads" in text
    assert "writes" in text
    assert "--workdir DIR" in text
    assert f"t2g {command} configs/quickstart.yaml --workdir runs/wide" in text
    assert "--text2grad.kl" not in text


def test_help_with_a_config_lists_its_options(config, capsys):
    assert cli.main(["train-policy", config, "--seed", "41", "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "(default: 41)" in text
    assert "--text2grad.kl {None,k1,k2,k3,abs,full}" in text


def test_version(capsys):
    from t2g_jax import __version__

    with pytest.raises(SystemExit) as caught:
        cli.main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"t2g_jax {__version__}\n"


def test_module_runs_without_loading_models():
    """`python -m t2g_jax --help` must not wait for libraries that only phases need."""
    code = """
import sys
from t2g_jax import cli
assert cli.main([]) == 0
for command in ("run", "generate", "report", "evaluate", "plan", "study"):
    assert cli.main([command, "--help"]) == 0
heavy = {"flax", "orbax", "grain", "transformers", "tensorflow_datasets", "reasoning_gym"}
heavy |= {"scipy", "sympy", "matplotlib", "optax"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_help_into_a_closed_pipe_is_quiet(config):
    command = f'"{sys.executable}" -m t2g_jax run "{config}" --help | head -n 1'
    done = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert done.stdout.startswith("usage: t2g run")
    assert done.stderr == ""
