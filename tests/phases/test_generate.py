import io

import pytest
import rich.console
import tiny

from t2g_jax import cli
from t2g_jax.errors import T2GError
from t2g_jax.judges.base import JudgeError
from t2g_jax.phases import generate

PROMPT = "Distance to the nearest 0 for each cell:\n0 1 1\n0 0 1\n1 0 0\nAnswer in \\boxed{}."


@pytest.fixture
def said(tiny_run):
    """said(method, prompt): what is printed, without colours."""

    def said(method="text2grad", prompt=None, workdir=tiny_run.workdir, config=tiny_run.config):
        text = io.StringIO()
        console = rich.console.Console(file=text, width=200)
        generate.run(config, workdir, method, prompt, console)
        return text.getvalue()

    return said


def titles(text):
    known = ("Prompt", "Answer", "Critique", "Reward")
    return [line for line in text.splitlines() if line.startswith(known) and "\\" not in line]


def test_a_prompt(said):
    text = said(prompt=PROMPT)
    assert PROMPT in text
    assert titles(text) == [
        "Prompt",
        "Answer, marked by the reward model",
        "Critique of the reward model",
    ]
    assert text == said(prompt=PROMPT)


def test_test_examples(said, tiny_context):
    text = said("rltf-sd")
    for example in tiny_context.task.split("test")[:3]:
        assert example.prompt in text
    assert titles(text) == 3 * [
        "Prompt",
        "Answer, marked by the judge",
        "Answer, marked by the reward model",
        "Critique of the judge",
        "Critique of the reward model",
        "Reward",
    ]


def test_without_a_reward_model(said, tiny_run, tmp_path):
    workdir, config = tiny_run.branch(tmp_path / "run", "sft")
    assert titles(said("sft", PROMPT, workdir, config)) == ["Prompt", "Answer"]
    assert titles(said("sft", None, workdir, config)) == 3 * [
        "Prompt",
        "Answer, marked by the judge",
        "Critique of the judge",
        "Reward",
    ]


def test_a_judge_that_fails_marks_nothing(said, tiny_context, monkeypatch):
    def fail(*_):
        raise JudgeError("no credit left")

    monkeypatch.setattr(type(tiny_context.judge), "critique", fail)
    text = said("sft")
    assert "marked by the judge" not in text
    assert text.count("(no critique: no credit left)") == 3


def test_span_rewards_are_in_colour(tiny_run):
    text = io.StringIO()
    console = rich.console.Console(file=text, force_terminal=True, color_system="truecolor")
    generate.run(tiny_run.config, tiny_run.workdir, "sft", None, console)
    assert "48;2;" in text.getvalue()  # a background


def test_text_cannot_steer_the_terminal(said):
    assert "\x1b" not in said(prompt="Hi \x1b[31m there")


@pytest.mark.parametrize("prompt", ["", " \n\t"])
def test_an_empty_prompt(said, prompt):
    with pytest.raises(T2GError, match="--prompt is empty; write what to answer"):
        said(prompt=prompt)


def test_a_prompt_that_is_too_long(said, tiny_context):
    room = 384 - 24
    overhead = len(tiny_context.prompt("0")) - 1
    with pytest.raises(T2GError, match=rf"--prompt has {room + 1} tokens, .* leaves {room}; short"):
        said(prompt="0" * (room + 1 - overhead))


def test_by_the_command_line(tiny_run, capsys):
    words = ["generate", str(tiny.CONFIG), "--workdir", str(tiny_run.workdir)]
    assert cli.main([*words, "--method", "sft", "--prompt", PROMPT]) == 0
    assert "Answer, marked by the reward model" in capsys.readouterr().out
    assert cli.main([*words, "--prompt", " "]) == 2
    assert capsys.readouterr().err.startswith("t2g: --prompt is empty")


def test_nothing_is_written(said, tiny_run, tmp_path):
    workdir, config = tiny_run.branch(tmp_path / "run", "sft")
    before = sorted(workdir.rglob("*"))
    said("sft", PROMPT, workdir, config)
    assert sorted(workdir.rglob("*")) == before
