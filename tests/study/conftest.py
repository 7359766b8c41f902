import pathlib
import sys

import fake_t2g
import pytest
import yaml

from t2g_jax.study import runner


@pytest.fixture
def study_file(tmp_path):
    """Writes a study of two seeds and three arms, with some values changed; returns its path."""

    def write(**changes):
        values = {
            "name": "small",
            "seeds": [0, 1],
            "token_budget": 500,
            "note": "Chosen with care.",
            "results": str(tmp_path / "docs" / "results.md"),
            "base": {"sampling": {"max_new_tokens": 16}},
            "tasks": {"matrix": {"task": {"name": "binary_matrix"}}},
            "arms": {
                "grpo": {"method": "grpo"},
                "rltf-sd": {"method": "rltf-sd", "baseline": "grpo"},
                "spans": {"method": "text2grad", "baseline": "grpo", "text2grad": {"steps": 7}},
            },
        } | changes
        path = tmp_path / "small.yaml"
        path.write_text(yaml.safe_dump(values))
        return path

    return write


@pytest.fixture
def fake(monkeypatch):
    """Puts a program that does nothing in the place of `t2g`."""
    program = (sys.executable, str(pathlib.Path(fake_t2g.__file__)))
    monkeypatch.setattr(runner, "PROGRAM", program)
    return program
