import io
import itertools
import json
import subprocess
import sys

import pytest
import rich.console
import tiny

from t2g_jax import cli
from t2g_jax.errors import T2GError
from t2g_jax.phases import generate
from t2g_jax.run.context import Context
from t2g_jax.run.prompts import Prompts
from t2g_jax.tasks.base import JudgeError

PROMPT = "Distance to the nearest 0 for each cell:\n0 1 1\n0 0 1\n1 0 0\nAnswer in \\boxed{}."


@pytest.fixture
def said(tiny_run):
    """said(method, prompt): what is printed, without colors."""

    def said(
        method="text2grad", prompt=None, workdir=tiny_run.workdir, config=tiny_run.config, **options
    ):
        text = io.StringIO()
        console = rich.console.Console(file=text, width=200)
        generate.run(config, workdir, method, prompt, console, **options)
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


def test_span_rewards_are_in_color(tiny_run):
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
    overhead = len(tiny_context.prompts.render("0")) - 1
    with pytest.raises(T2GError, match=rf"--prompt has {room + 1} tokens, .* leaves {room}; short"):
        said(prompt="0" * (room + 1 - overhead))


def test_by_the_command_line(tiny_run, capsys):
    words = ["generate", str(tiny.CONFIG), "--workdir", str(tiny_run.workdir)]
    assert cli.main([*words, "--method", "sft", "--prompt", PROMPT]) == 0
    assert "Answer, marked by the reward model" in capsys.readouterr().out
    assert cli.main([*words, "--prompt", PROMPT, "--json", "--samples", "2"]) == 0
    assert [item["prompt"] for item in objects(capsys.readouterr().out)] == [PROMPT] * 2
    assert cli.main([*words, "--prompt", " "]) == 2
    assert capsys.readouterr().err.startswith("t2g: --prompt is empty")


def test_nothing_is_written(said, tiny_run, tmp_path):
    workdir, config = tiny_run.branch(tmp_path / "run", "sft")
    before = sorted(workdir.rglob("*"))
    said("sft", PROMPT, workdir, config)
    assert sorted(workdir.rglob("*")) == before


# --- Without a terminal, and for programs -----------------------------------------------------


def objects(text):
    return [json.loads(line) for line in text.splitlines()]


def test_tokens_are_marked_in_text(said):
    text = said("sft")
    assert "[+" in text or "[−" in text
    assert "\x1b" not in text


def test_json(tiny_run, said):
    found = objects(said(as_json=True))
    examples = Context.open(tiny_run.config, tiny_run.workdir).task.split("test")[:3]
    assert [item["prompt"] for item in found] == [example.prompt for example in examples]
    for item in found:
        assert len(item["tokens"]) == len(item["token_ids"]) == len(item["rewards"])
        assert "".join(item["tokens"]).startswith(item["completion"])
        assert all(-1 <= reward <= 1 for reward in item["rewards"])
        assert (type(item["correct"]), type(item["score"])) == (bool, float)
        assert item["critique"]


def test_json_of_a_prompt_without_a_reward_model(said, tiny_run, tmp_path):
    workdir, config = tiny_run.branch(tmp_path / "run", "sft")
    (found,) = objects(said("sft", PROMPT, workdir, config, as_json=True))
    assert set(found) == {"prompt", "completion", "tokens", "token_ids"}
    assert found["prompt"] == PROMPT


@pytest.mark.parametrize("prompt", [None, PROMPT])
def test_any_number_of_samples_is_drawn_a_few_at_a_time(
    said, tiny_context, monkeypatch, compiled_once, prompt
):
    monkeypatch.setattr(generate, "AT_ONCE", 4)
    named = None if prompt is None else [(prompt, tiny_context.prompts.render(prompt))]
    params = tiny_context.weights.load("sft")
    with compiled_once():
        drawn = generate.answers(tiny_context, params, None, named, samples=10**12)
        found = list(itertools.islice(drawn, 8))
    assert len({answer.sample.prompt for answer in found}) == 1
    assert [a.tokens for a in found[:4]] != [a.tokens for a in found[4:]]


def test_samples_and_a_file_of_prompts(said, tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text(f"0 1\r\n\n{json.dumps(PROMPT)}\n", "utf-8")
    found = objects(said(prompts_file=file, samples=2, as_json=True))
    first, second = "0 1", json.dumps(PROMPT)
    assert [item["prompt"] for item in found] == [first, first, second, second]
    assert found[0]["completion"] != found[1]["completion"]


def test_prompts_of_a_file(tmp_path):
    def read(content, name="prompts"):
        file = tmp_path / name
        file.write_bytes(content)
        return [prompt for _, prompt in generate.read_prompts(file)]

    assert read(b"a\nb c\n \nd") == ["a", "b c", "d"]
    assert read(b"\xef\xbb\xbfa\n") == ["a"]
    assert read(b'{"prompt": "a\\nb"}\n\n{"prompt": "c", "id": 7}\n') == ["a\nb", "c"]
    assert read(b"{a}\n{b}\n") == ["{a}", "{b}"]

    def error(content, name="prompts"):
        with pytest.raises(T2GError) as caught:
            read(content, name)
        return str(caught.value)

    for bad in (b'{"prompt": 3}', b"{}", b"[]", b"x", b"{", b'{"prompt": "\\ud800"}'):
        message = error(b'{"prompt": "a"}\n\n' + bad + b"\n", "bad.jsonl")
        assert message.startswith(f"{tmp_path / 'bad.jsonl'}, line 3: ")
    assert "line 2: not UTF-8 text" in error(b"a\n\xff\n")
    assert "holds no prompt" in error(b" \n\n")
    with pytest.raises(T2GError, match="cannot be read: No such file"):
        generate.read_prompts(tmp_path / "none")
    with pytest.raises(T2GError, match="cannot be read: Is a directory"):
        generate.read_prompts(tmp_path)


def test_a_prompt_of_a_file_that_is_too_long_is_named(said, tmp_path):
    file = tmp_path / "prompts"
    file.write_text("0\n" + "0" * 2000 + "\n")
    with pytest.raises(T2GError, match=r"prompts, line 2 has \d+ tokens, but"):
        said(prompts_file=file)
    with pytest.raises(T2GError, match="--prompt and --prompts-file are both given"):
        said(prompt="0", prompts_file=file)


def test_no_more_test_prompts_are_read_than_answered(tiny_context, monkeypatch):
    read = []

    def prompt(self, text):
        read.append(text)
        return [0]

    monkeypatch.setattr(Prompts, "render", prompt)
    assert len(generate._first_examples(tiny_context)) == 3
    assert len(read) == 3


def test_only_what_answers_need_is_imported(tiny_run):
    """What takes seconds to import, and only others need."""
    program = """
import sys
from t2g_jax import cli
from t2g_jax.config import load_config
from t2g_jax.phases import generate
from t2g_jax.run.context import Context
folder = sys.argv[1]
context = Context.open(load_config(folder + "/config.yaml"), folder, read_only=True)
assert context.task.split("test")[0].prompt
heavy = {"sympy", "matplotlib", "pandas", "grain", "scipy.special", "tensorflow", "torch"}
heavy |= {"tensorflow_datasets", "reasoning_gym"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
"""
    command = [sys.executable, "-c", program, str(tiny_run.workdir)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
