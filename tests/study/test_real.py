"""A study of real runs, too small to learn anything: killed, gone on with, and complete."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest
import yaml

from t2g_jax.config import load_config
from t2g_jax.study.plan import load_study

TINY = pathlib.Path(__file__).parents[1] / "configs" / "tiny.yaml"


@pytest.mark.slow
def test_killed_and_gone_on_with(tmp_path, one_device):
    base = yaml.safe_load(TINY.read_text())
    del base["name"], base["methods"], base["text2grad"]
    path, root = tmp_path / "tiny.yaml", tmp_path / "cells"
    study = {
        "name": "tiny",
        "seeds": [0],
        "token_budget": 300,
        "results": str(tmp_path / "results.md"),
        "base": base | {"grpo": {"steps": 50, "prompts_per_step": 4, "group_size": 2}},
        "tasks": {"matrix": {}},
        "arms": {"grpo": {"method": "grpo"}, "rltf-sd": {"method": "rltf-sd", "baseline": "grpo"}},
    }
    path.write_text(yaml.safe_dump(study))
    words = ["-m", "t2g_jax", "study", str(path), "--workdir", str(root), "--jobs", "2"]
    # All processes share compiled programs.
    environment = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "programs"), "JAX_PLATFORMS": "cpu"}
    environment |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    environment |= {"T2G_COMPILATION_CACHE": str(tmp_path / "programs"), "XLA_FLAGS": one_device}
    environment = os.environ | environment

    first = subprocess.Popen([sys.executable, *words], env=environment, stderr=subprocess.PIPE)
    shared = root / "matrix/seed0/shared/sft/complete.json"
    while not shared.exists() and first.poll() is None:
        time.sleep(0.2)
    first.send_signal(signal.SIGINT)
    _, error = first.communicate(timeout=240)
    assert first.returncode == 130, error.decode()
    made = shared.stat().st_mtime_ns

    again = subprocess.run([sys.executable, *words], env=environment, capture_output=True)
    assert again.returncode == 0, again.stderr.decode()
    assert shared.stat().st_mtime_ns == made
    for cell in load_study(path).cells:
        folder = root / cell.folder
        assert load_config(folder / "config.yaml") == cell.config
        summary = json.loads((folder / cell.arm.replace("-", "_") / "complete.json").read_text())
        assert 300 <= summary["tokens_generated"] < 700
        assert (folder / "report.html").exists()
        start = [p / "sft/evaluation.json" for p in (folder, folder.parent / "shared")]
        assert start[0].read_bytes() == start[1].read_bytes()
    text = (tmp_path / "results.md").read_text()
    assert "2 of 2 done" in text
    assert (tmp_path / "results/matrix.svg").exists()
