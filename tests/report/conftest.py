"""The sample report, loaded by path because test folders are not packages."""

import pathlib
import runpy

import pytest

_SAMPLE = runpy.run_path(str(pathlib.Path(__file__).with_name("sample_report.py")))


@pytest.fixture(scope="session")
def sample_report():
    return _SAMPLE["report"]


@pytest.fixture(scope="session")
def hostile_text():
    return _SAMPLE["HOSTILE"]
