"""The quickstart by phase, what compiling takes of it, and what the compilation cache saves."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

from benchmarks.measure import Section, duration

ROOT = pathlib.Path(__file__).resolve().parent.parent
COMPILING = "/jax/core/compile/backend_compile_duration"
SHORT = {
    "sft.steps": 30,
    "annotate.prompts": 250,
    "reward_model.epochs": 1,
    "text2grad.steps": 5,
    "rltf_sd.steps": 5,
    "evaluate.samples_per_prompt": 1,
}


def measure(*, small: bool = False, full: bool = False) -> Section:
    config = ROOT / ("tests/configs/tiny.yaml" if small else "configs/quickstart.yaml")
    changes = {} if full else {"methods": "rejection-sampling"} if small else SHORT
    overrides = [word for path, value in changes.items() for word in (f"--{path}", str(value))]
    with tempfile.TemporaryDirectory() as folder:
        runs = [_run(config, overrides, pathlib.Path(folder), name) for name in ("cold", "warm")]
    rows = [
        [phase, *(cell for run in runs for cell in _cells(run[phase]))] for phase in (*runs[0],)
    ]
    totals = [[sum(run[phase][i] for phase in run) for i in range(2)] for run in runs]
    rows.append(["**all**", *(cell for total in totals for cell in _cells(total))])
    shortened = ", ".join(f"{path} {value}" for path, value in changes.items())
    text = f"""
`t2g run configs/quickstart.yaml`{f", shortened ({shortened})" if changes else ""}, phase by phase
in one process: with an empty compilation cache, then in a new process and work folder with what
the first left in it. "compiling" is XLA's share, or what reading the cache takes.
"""
    header = ["phase", "cold", "compiling", "warm", "compiling"]
    return Section("The quickstart", text, header, rows)


def _cells(seconds: list[float]) -> list[str]:
    return [duration(seconds[0]), duration(seconds[1])]


def _run(
    config: pathlib.Path, overrides: list[str], folder: pathlib.Path, name: str
) -> dict[str, list[float]]:
    command = [sys.executable, "-m", "benchmarks.quickstart", str(config), str(folder / name)]
    environment = os.environ | {
        "T2G_COMPILATION_CACHE": str(folder / "cache"),
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    }
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    done = subprocess.run(
        [*command, *overrides], env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def _phases(config_file: str, workdir: str, *overrides: str) -> dict[str, list[float]]:
    """Seconds of each phase, and those of them spent compiling."""
    began = time.perf_counter()
    import jax

    from t2g_jax.config import load_config
    from t2g_jax.phases import evaluate, pipeline, reporting
    from t2g_jax.run.context import Context
    from t2g_jax.runtime.compilation_cache import use_compilation_cache

    compiling = 0.0

    def listen(event: str, seconds: float, **_) -> None:
        nonlocal compiling
        if event == COMPILING:
            compiling += seconds

    jax.monitoring.register_event_duration_secs_listener(listen)
    use_compilation_cache()
    config = load_config(config_file, overrides)
    seconds: dict[str, list[float]] = {}

    def note(phase: str) -> None:
        nonlocal began, compiling
        now = time.perf_counter()
        seconds[phase] = [now - began, compiling]
        began, compiling = now, 0.0

    Context.open(config, workdir)
    note("imports, tokenizer")
    for name, phase in pipeline.phases(config).items():
        phase(config, workdir)
        note(name)
    evaluate.run(config, workdir)
    note("evaluate")
    reporting.run(config, workdir)
    note("report")
    return seconds


if __name__ == "__main__":
    print(json.dumps(_phases(*sys.argv[1:])))
