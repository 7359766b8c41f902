"""Reading a Hugging Face folder: how much memory of the host it takes beside the parameters."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys
import tempfile

from benchmarks.measure import Section

_CHILD = """
import json, pathlib, sys, time
import jax
jax.config.update("jax_platforms", "cpu")
from t2g_jax.models import families, huggingface, tensor_files

def peak():
    status = dict(line.split(":", 1) for line in open("/proc/self/status"))
    return 1024 * int(status["VmHWM"].split()[0])

folder = pathlib.Path(sys.argv[1])
config = families.read_config(folder)
largest = max(t.bytes for t in tensor_files.tensors(folder).values())
jax.block_until_ready(jax.numpy.zeros(8))
before, start = peak(), time.perf_counter()
params = huggingface.load(folder, config)
seconds = time.perf_counter() - start
held = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
found = {"before": before, "peak": peak(), "held": held, "largest": largest, "seconds": seconds}
print(json.dumps(found))
"""


def measure(*, small: bool = False) -> Section:
    size = "tiny" if small else "2b"
    root = pathlib.Path(__file__).resolve().parent.parent
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary) / "model"
        make = [sys.executable, str(root / "benchmarks" / "random_checkpoint.py"), str(folder)]
        subprocess.run([*make, "--size", size], check=True, cwd=root, stdout=subprocess.DEVNULL)
        files = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
        done = subprocess.run(
            [sys.executable, "-c", _CHILD, str(folder)],
            check=True,
            cwd=root,
            capture_output=True,
            text=True,
        )
    found = json.loads(done.stdout)
    beside = found["peak"] - found["before"] - found["held"]
    bound = 2 * found["largest"] + 2**30
    text = f"""
A random checkpoint of {_gib(files)} in bfloat16, its largest tensor {_gib(found["largest"])}, read
to {_gib(found["held"])} of float32 parameters in {found["seconds"]:.0f} s. Here host and device
share their memory, so the parameters are part of the peak of the process; beside them:
"""
    row = ["memory beside the parameters", _gib(beside), f"≤ {_gib(bound)}"]
    return Section(
        "Reading a checkpoint", text, ["", "t2g_jax", "target: 2 tensors + 1 GiB"], [row]
    )


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"
