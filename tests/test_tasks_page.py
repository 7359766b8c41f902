"""docs/tasks.md as a stranger follows it: its files, its command, and what there is in the end."""

import json
import os
import re
import subprocess
import sys

import pytest

SHORT = (
    *("--sft.steps", "4", "--sft.batch_size", "8", "--tokenizer.texts", "200"),
    *("--rltf_sd.steps", "2", "--rltf_sd.prompts_per_step", "2"),
    *("--text2grad.steps", "2", "--text2grad.prompts_per_step", "4"),
    *("--rltf_sd.eval_every", "0", "--text2grad.eval_every", "0"),
    *("--evaluate.samples_per_prompt", "1"),
)
"""Enough to see that everything is in its place."""


@pytest.fixture(scope="module")
def folder(root, tmp_path_factory):
    """What the page has its reader write."""
    folder = tmp_path_factory.mktemp("words")
    page = (root / "docs" / "tasks.md").read_text(encoding="utf-8")
    rows, words = re.findall(r"^```python\n(.*?)^```", page, re.M | re.S)
    (config,) = re.findall(r"^```yaml\n(.*?)^```", page, re.M | re.S)
    for name, text in (("make_rows.py", rows), ("words.py", words), ("words.yaml", config)):
        (folder / name).write_text(text)
    _run(folder, "make_rows.py")
    return folder


def _run(folder, *words, **env):
    done = subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        env=os.environ | {"JAX_PLATFORMS": "cpu"} | env,
        capture_output=True,
        text=True,
        timeout=1800,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done


def test_the_rows(folder):
    lines = (folder / "words.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert len(rows) == 4000
    assert all(sorted(row["prompt"].split()[1:]) == row["answer"].split() for row in rows)
    right = sum(row["demonstration"] == row["answer"] for row in rows) / len(rows)
    assert 0.1 < right < 0.6, "careless, and not hopeless"


def test_the_whole_page(folder):
    said = _run(folder, "-m", "t2g_jax", "run", "words.yaml", *SHORT)
    scores = json.loads((folder / "runs/words/rltf_sd/evaluation.json").read_text())
    assert 0 <= scores["accuracy"] <= 1
    assert (folder / "runs/words/report.html").exists()
    for method in ("rltf-sd", "text2grad"):
        assert method in said.stdout
    answer = _run(
        folder, "-m", "t2g_jax", "generate", "words.yaml", *SHORT, "--method", "rltf-sd",
        "--prompt", "Sort: yak ant dog cat",
    )  # fmt: skip
    assert answer.stdout.strip()


@pytest.mark.skipif(
    not os.environ.get("T2G_WHOLE_PAGE"), reason="T2G_WHOLE_PAGE=1 trains it in full, seven minutes"
)
def test_what_the_page_promises(folder):
    _run(folder, "-m", "t2g_jax", "run", "words.yaml", "--workdir", "full", XLA_FLAGS="")
    scores = {
        name: json.loads((folder / "full" / name / "evaluation.json").read_text())["accuracy"]
        for name in ("sft", "rltf_sd", "text2grad")
    }
    assert scores["sft"] < 0.5, "a warm start that has something to learn"
    assert min(scores["rltf_sd"], scores["text2grad"]) >= 0.9
