"""A thousand steps: does a step take as long at the end as at the beginning, and as much memory?"""

from __future__ import annotations

import itertools
import os
import pathlib
import statistics
import tempfile
import time

from benchmarks.measure import Section, duration
from t2g_jax.config import load_config
from t2g_jax.methods import make_method
from t2g_jax.phases import annotate, reward_model, sft
from t2g_jax.run.context import Context
from t2g_jax.run.trainer import run_training

ROOT = pathlib.Path(__file__).resolve().parent.parent
METHODS = ("rltf-sd", "text2grad")


def measure(*, small: bool = False) -> Section:
    steps, window, skipped = (6, 2, 1) if small else (1000, 100, 10)
    overrides = []
    for method in METHODS:
        section = method.replace("-", "_")
        overrides += [f"--{section}.steps", str(steps), f"--{section}.eval_every", "0"]
    config = load_config(
        ROOT / "tests/configs/tiny.yaml",
        [*overrides, "--checkpoint.every_steps", "100", "--checkpoint.keep_best", "None"],
    )
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for phase in (sft, annotate, reward_model):
            phase.run(config, folder)
        for name in METHODS:
            context = Context.open(config, folder)
            at, memory = steps_of(context, name)
            seconds = [b - a for a, b in itertools.pairwise(at)]
            early, late = seconds[skipped : skipped + window], seconds[-window:]
            ratio = statistics.median(late) / statistics.median(early)
            held = memory[skipped + window], memory[len(memory) // 2], memory[-1]
            rows.append(
                [
                    name,
                    duration(statistics.median(early)),
                    duration(statistics.median(late)),
                    f"**{ratio:.2f} ×**",
                    *(f"{size / 1e6:,.0f} MB" for size in held),
                    f"**{held[2] / held[1]:.2f} ×**",
                ]
            )
    text = f"""
{steps:,} steps of the tests' tiny run with logs and checkpoints. Time of a step: the median of the
{window} steps after the first {skipped}, and of the last {window}. Memory: what the process holds
after the former, halfway and at the end; rows of a length that was not there before need a program
of their own, so it still grows for some hundred steps. In the second half it should not (1 ×).
"""
    memory_header = ["early", "halfway", "late", "grows in the second half"]
    header = ["", "early", "late", "time grows", *memory_header]
    return Section("A thousand steps", text, header, rows)


def steps_of(context: Context, name: str) -> tuple[list[float], list[int]]:
    """When each step of a run began, and the memory that the process held."""
    method = make_method(name, context)
    at: list[float] = []
    memory: list[int] = []

    def collect(state, step: int):
        at.append(time.perf_counter())
        memory.append(resident())
        return method.collect(state, step)

    params = context.weights.with_adapters(method.params, name)
    run_training(context, name, params, collect, method.plan)
    return at, memory


def resident() -> int:
    """Bytes of memory that this process holds (Linux)."""
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
