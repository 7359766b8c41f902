"""What a user meets: the command line, on a work directory of the tiny run."""

import dataclasses

import pytest

from t2g_jax import cli
from t2g_jax.config import to_yaml


@pytest.fixture(scope="module", autouse=True)
def _compiled_once(compiled_once):
    with compiled_once():
        yield


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The exit status, and the error without the lines before it that tell of progress."""

    status: int
    error: str


@pytest.fixture
def t2g(tmp_path, capsys):
    """t2g(command, workdir, config, *words): runs a command; a traceback fails the test."""

    def t2g(command, workdir, config, *words):
        path = tmp_path / "given.yaml"
        path.write_text(to_yaml(config))
        capsys.readouterr()
        status = cli.main([command, str(path), "--workdir", str(workdir), *words])
        _, _, error = capsys.readouterr().err.rpartition("t2g: ")
        return Outcome(status, error.strip() if status else "")

    return t2g
