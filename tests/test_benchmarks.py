"""The benchmarks run, on sizes that measure nothing; a page keeps what is not measured again."""

import importlib
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module", autouse=True)
def found():
    sys.path.insert(0, str(ROOT))
    yield
    sys.path.remove(str(ROOT))


@pytest.mark.parametrize(
    "name",
    [
        *("decode", "labels", "update", "vocabulary", "rltf_step", "flat", "installation"),
        *("quotes", "gpu"),
    ],
)
def test_a_benchmark_runs(name, compiled_once):
    if name not in ("vocabulary", "flat", "installation", "quotes"):
        pytest.importorskip("torch")
    with compiled_once():
        section = importlib.import_module(f"benchmarks.{name}").measure(small=True)
    assert section.text.strip()
    assert all(len(row) == len(section.header) for row in section.rows)
    assert "nan" not in section.markdown()


def test_the_quickstart_in_processes_of_its_own(monkeypatch, one_device):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
    monkeypatch.setenv("XLA_FLAGS", one_device)
    section = importlib.import_module("benchmarks.quickstart").measure(small=True)
    phases = [row[0] for row in section.rows]
    assert phases[1:] == ["sft", "rejection-sampling", "evaluate", "report", "**all**"]


def test_without_a_gpu_it_says_so():
    pytest.importorskip("torch")
    section = importlib.import_module("benchmarks.gpu").measure()
    assert "no GPU" in section.markdown()


def test_a_section_is_replaced_and_others_stay():
    measure = importlib.import_module("benchmarks.measure")
    page = measure.replaced("# Page\n\nWords.\n", "a", "## A\n\nold")
    page = measure.replaced(page, "b", "## B")
    page = measure.replaced(page, "a", "## A\n\nnew \\1")
    assert page.startswith("# Page\n\nWords.\n")
    assert page.count("## A") == page.count("## B") == 1
    assert "old" not in page
    assert "new \\1" in page


def test_ratios_are_those_of_turns():
    measure = importlib.import_module("benchmarks.measure")
    row = measure.Turns([1.0, 2.0, 4.0], [3.0, 4.0, 4.0]).row(
        "x", "≥ 2 ×", work=10, unit="tokens/s"
    )
    assert row == ["x", "5 tokens/s", "2 tokens/s", "**2.00 ×** (1.00–3.00)", "≥ 2 ×"]


def test_the_command_names_what_there_is():
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "nothing"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "there is no nothing; there are decode" in done.stderr
