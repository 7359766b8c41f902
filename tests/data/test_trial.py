"""Tokenizers that never end, or take all memory, are refused by name; this process goes on."""

import json

import pytest

from t2g_jax.data import trial
from t2g_jax.data.tokenizer import CHAT_TEMPLATE, train_tokenizer
from t2g_jax.errors import T2GError
from t2g_jax.run import pretrained


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "tokenizer"
    train_tokenizer(["a b c"], 300, folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    return folder


@pytest.fixture
def limits(monkeypatch):
    """The program with bounds that tests can wait for."""
    program = trial._PROGRAM.replace(str(trial.MEMORY_BYTES), str(3 * 2**30))
    program = program.replace(f"RLIMIT_CPU, {trial.CPU_SECONDS}", "RLIMIT_CPU, 15")
    monkeypatch.setattr(trial, "_PROGRAM", program)


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "end"),
        ("{{ 'x' * 10 ** 11 }}", "takes more than"),
    ],
    ids=["loop", "memory"],
)
def test_a_template_without_an_end(folder, limits, template, expected):
    (folder / "chat_template.jinja").write_text(template + CHAT_TEMPLATE)
    with pytest.raises(T2GError, match=f"tokenizer in {folder} .*{expected}"):
        pretrained.tokenizer(str(folder))


def test_one_that_ends_is_tried_once(folder, monkeypatch):
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    assert pretrained.tokenizer(str(folder)).vocab_size > 256

    def again(*_, **__):
        pytest.fail("it was tried again")

    monkeypatch.setattr(trial.subprocess, "run", again)
    pretrained.tokenizer(str(folder))


def test_the_template_is_tried_with_its_options(folder, limits):
    endless = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    template = f"{{%- if deep -%}}{endless}{{%- endif -%}}{CHAT_TEMPLATE}"
    (folder / "chat_template.jinja").write_text(template)
    assert pretrained.tokenizer(str(folder), {"deep": False}).vocab_size > 256
    with pytest.raises(T2GError, match=f"tokenizer in {folder} .*does not end"):
        pretrained.tokenizer(str(folder), {"deep": True})


def test_a_template_that_only_its_options_make_bounded_is_let_through(folder, limits):
    endless = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    template = f"{{%- if deep is not defined -%}}{endless}{{%- endif -%}}{CHAT_TEMPLATE}"
    (folder / "chat_template.jinja").write_text(template)
    assert pretrained.tokenizer(str(folder), {"deep": False}).vocab_size > 256
