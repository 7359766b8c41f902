"""Code that a config names: where it is looked for, and how its errors are told."""

import sys

import pytest

from t2g_jax import user_code
from t2g_jax.errors import T2GError


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """The folder of a config, and the one that a command is started in."""
    config, here = tmp_path / "config", tmp_path / "here"
    config.mkdir()
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setattr(sys, "path", list(filter(None, sys.path)))
    monkeypatch.setattr(user_code, "_folders", [])
    before = set(sys.modules)
    yield config, here
    for name in set(sys.modules) - before:
        del sys.modules[name]


def load(name):
    return user_code.load(name, key="task.name", takes="(**settings)")


def test_a_module_beside_the_config_or_where_the_command_is_started(folders):
    config, here = folders
    (config / "beside_config.py").write_text("def make(): return 'beside'")
    (here / "beside_command.py").write_text("class A:\n    @staticmethod\n    def make(): return 1")
    with pytest.raises(T2GError, match=r"task.name: there is no module 'beside_config'"):
        load("beside_config:make")
    user_code.look_in(config)
    assert load("beside_config:make")() == "beside"
    assert load("beside_command:A.make")() == 1


def test_files_are_found_in_the_same_places(folders):
    config, here = folders
    (config / "a.jsonl").write_text("1")
    assert user_code.find_path("a.jsonl") == "a.jsonl"  # not there, as it is
    user_code.look_in(config)
    assert user_code.find_path("a.jsonl") == str(config / "a.jsonl")
    (here / "a.jsonl").write_text("2")
    assert user_code.find_path("a.jsonl") == "a.jsonl"


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import no_such_library", "ModuleNotFoundError: No module named 'no_such_library'"),
        ("x = 1\n1/0", "ZeroDivisionError: division by zero (FILE, line 2)"),
        ("def make(:", "SyntaxError"),
        ("import sys\nsys.exit('bye')", "SystemExit: bye (FILE, line 2)"),
        ("make = 3", "name a function of (**settings)"),
        ("def mak(): pass", "has no 'make'; did you mean 'mak'?"),
    ],
)
def test_what_is_wrong_with_a_module_is_one_line(folders, code, said):
    path = folders[1] / "broken_module.py"
    path.write_text(code)
    with pytest.raises(T2GError) as caught:
        load("broken_module:make")
    assert said.replace("FILE", str(path)) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_failure_names_the_users_own_line(folders):
    path = folders[1] / "calls_library.py"
    path.write_text("import json\n\ndef make(text):\n    return json.loads(text)\n")
    with pytest.raises(T2GError) as caught:
        user_code.call("make failed", load("calls_library:make"), "{")
    assert "make failed: JSONDecodeError: " in str(caught.value)
    assert f"({path}, line 4)" in str(caught.value)


def test_errors_of_ours_and_an_interrupt_pass():
    def ours():
        raise T2GError("as it is")

    def interrupted():
        raise KeyboardInterrupt

    with pytest.raises(T2GError, match=r"^as it is$"):
        user_code.call("x", ours)
    with pytest.raises(KeyboardInterrupt):
        user_code.call("x", interrupted)


def test_an_async_function_is_awaited_even_within_a_loop():
    import asyncio

    async def function(x):
        await asyncio.sleep(0)
        return x + 1

    async def within():
        return user_code.call("x", function, 1)

    assert user_code.call("x", function, 1) == 2
    assert asyncio.run(within()) == 2


@pytest.mark.parametrize("name", ["a", "a:", ":b", "a.b", "a:b c", "a/b:c", "", 3, None])
def test_what_is_no_name(name):
    assert not user_code.is_name(name)
    assert user_code.is_name("a.b:c.d")
