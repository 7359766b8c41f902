"""Nothing that a model, a judge, data or a file says steers or styles a terminal."""

import ast
import dataclasses
import sys

import pytest

from t2g_jax import cli, printing
from t2g_jax.config import Config, ModelConfig
from t2g_jax.config.overrides import print_options
from t2g_jax.errors import T2GError
from t2g_jax.printing import one_line, visible
from t2g_jax.run.context import say

HOSTILE = {
    "\x1b[2J": "␛[2J",
    "\x07": "␇",
    "\r": "␍",
    "\x00": "␀",
    "\x7f": "<U+007F>",
    "\x9b2J": "<U+009B>2J",
    "\x85": "<U+0085>",
    "\u202e": "<U+202E>",
    "\u2066": "<U+2066>",
    "\u200f": "<U+200F>",
    "\u2028": "<U+2028>",
    "\u200b": "<U+200B>",
    "\ufeff": "<U+FEFF>",
    "\U000e0041": "<U+E0041>",
    "\ud83d": "<U+D83D>",
}
BAD = "".join(HOSTILE)


def no_control(text):
    return not any(character in text for character in BAD if not character.isprintable())


@pytest.mark.parametrize(("text", "shown"), HOSTILE.items())
def test_what_steers_a_terminal_is_shown(text, shown):
    assert visible(f"a{text}b") == one_line(f"a{text}b") == f"a{shown}b"


def test_ordinary_text_stays():
    for text in ("a\n\tb", "größer − 1 → 2", "👩\u200d🔬 👍🏽 क\u094dष", "[red]x[/]"):
        assert visible(text) == text


def test_one_line():
    assert one_line("done\nt2g: all is well\n") == "done␊t2g: all is well␊"
    assert one_line("x" * 50, limit=10) == "x" * 9 + "…"


def test_lines_and_errors_of_ours(capsys, tmp_path, monkeypatch):
    say(f"[red]{BAD}\nt2g: done")
    path = tmp_path / f"no\x1b[31m{chr(0x202E)}.yaml"
    assert cli.main(["sft", str(path)]) == 2
    error = capsys.readouterr().err
    assert "[red]␛[2J" in error
    assert "no␛[31m<U+202E>.yaml: cannot be read" in error
    assert no_control(error)
    assert not any(line.startswith("t2g: done") for line in error.splitlines())

    monkeypatch.setattr(cli, "_dispatch", _fail(T2GError(f"{BAD}\nt2g: done")))
    assert cli.main(["run", "x"]) == 2
    error = capsys.readouterr().err
    assert no_control(error)
    assert "\nt2g: done" not in error


def test_tracebacks(capsys, monkeypatch):
    monkeypatch.setattr(cli, "_dispatch", _fail(RuntimeError(BAD)))
    with pytest.raises(RuntimeError):
        cli.main(["run", "x"])
    assert sys.excepthook is printing.show_error
    try:
        raise RuntimeError(BAD)
    except RuntimeError:
        sys.excepthook(*sys.exc_info())
    error = capsys.readouterr().err
    assert "RuntimeError: ␛[2J" in error
    assert no_control(error)


def test_the_options_of_a_configuration(capsys):
    config = dataclasses.replace(Config(name="x"), model=ModelConfig(pretrained="a\x1b[2Jb"))
    print_options(config)
    assert "a␛[2Jb" in capsys.readouterr().out.replace("\n", "")


def _fail(error):
    def fail(*_):
        raise error

    return fail


SAFE = {
    *("visible", "one_line", "safe_text", "tell"),  # of printing, and what only hands it on
    "Segments",  # in print_table, whose calls are looked at
    *(
        "result_table",
        "class_score_table",
        "calibration_table",
        "token_line",
        "marked_line",
        "memory_table",
        "time_table",
        "options_of",
    ),
    *("dumps", "rule"),  # JSON escapes all that is not ASCII
}
"""Functions whose result may be printed."""


def printed(tree):
    """The arguments of all calls that write to a terminal."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            function = node.func
            name = function.attr if isinstance(function, ast.Attribute) else None
            if isinstance(function, ast.Name):
                name = function.id
            owner = ast.unparse(function.value) if isinstance(function, ast.Attribute) else ""
            if name == "print":
                yield from node.args
            if name == "print_table":
                yield from node.args[1:]
            if name == "write" and owner in ("sys.stdout", "sys.stderr"):
                yield from node.args
            if name in ("print_exc", "print_exception", "input"):
                yield node


def is_safe(node):
    """Whether all that varies in an expression goes through one of the safe functions."""
    if isinstance(node, ast.Constant):
        return True
    if isinstance(node, ast.Call):
        function = node.func
        name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
        return name in SAFE or (name == "Text" and all(map(is_safe, node.args)))
    if isinstance(node, ast.JoinedStr):
        return all(map(is_safe, node.values))
    if isinstance(node, ast.FormattedValue):
        numeric = isinstance(node.format_spec, ast.JoinedStr)
        return numeric or is_safe(node.value)
    return False


def test_whatever_is_printed_goes_through_one_function(root):
    places = []
    for path in sorted((root / "t2g_jax").rglob("*.py")):
        tree = ast.parse(path.read_text("utf-8"))
        for argument in printed(tree):
            if not is_safe(argument):
                places.append(f"{path.name}:{argument.lineno}: {ast.unparse(argument)}")
    assert not places
