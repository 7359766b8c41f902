"""Messages that ask for an extra name a command that works for this installation."""

import importlib.metadata
import pathlib
import re
import shlex
import tomllib

import pytest

from t2g_jax import installation

ROOT = pathlib.Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_an_installed_package_is_named(monkeypatch):
    monkeypatch.setattr(importlib.metadata, "distribution", lambda _: object())
    assert installation.pip_install("plan") == "pip install 't2g_jax[plan]'"


def test_a_checkout_on_the_path_is_named_by_its_folder(monkeypatch, tmp_path):
    def fail(_):
        raise importlib.metadata.PackageNotFoundError

    monkeypatch.setattr(importlib.metadata, "distribution", fail)
    pip, install, editable, what = shlex.split(installation.pip_install("plan"))
    assert (pip, install, editable) == ("pip", "install", "-e")
    assert what == f"{ROOT}[plan]"
    # Files alone, as when a folder was copied into another project.
    monkeypatch.setattr(installation, "_CHECKOUT", tmp_path)
    assert installation.pip_install("plan") == "pip install 't2g_jax[plan]'"


@pytest.mark.parametrize("path", sorted((ROOT / "t2g_jax").rglob("*.py")), ids=lambda p: p.name)
def test_no_message_has_a_command_of_its_own(path):
    if path.name != "installation.py":
        text = path.read_text(encoding="utf-8")
        assert "pip install" not in text
        for extra in re.findall(r"pip_install\([\"'](\w+)[\"']\)", text):
            assert extra in PROJECT["optional-dependencies"]
