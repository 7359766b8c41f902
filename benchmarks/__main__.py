"""python -m benchmarks [NAMES] [--write docs/benchmarks.md] [--threads N]

Measures t2g_jax side by side with what one would use instead, and prints a section for each name;
`--write` puts it into a page, in place of the one that is there. Needs `pip install -e
'.[benchmarks]'`. All together: about ten minutes on two quiet cores. `--small` only shows that a
benchmark still runs; `gpu` is for a machine that has one.
"""

from __future__ import annotations

import argparse
import importlib
import os
import pathlib
import subprocess
import sys

from benchmarks import measure

NAMES = (
    "decode",
    "labels",
    "update",
    "vocabulary",
    "rltf_step",
    "quickstart",
    "flat",
    "importing",
    "installation",
    "quotes",
    "gpu",
)
PAGE = """\
# Benchmarks

t2g_jax beside what one would use instead: the same weights, data and work, in turns, on the same
cores. Medians; "times faster" is the median over turns of their time by ours, with its range.
Nothing here is checked by the tests but that it runs. Each section is written by the command in it.
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAMES", help=f"of {', '.join(NAMES)}")
    parser.add_argument("--write", type=pathlib.Path, metavar="PAGE", help="a Markdown file")
    parser.add_argument("--threads", type=int, help="cores for either side (all)")
    parser.add_argument("--small", action="store_true", help="sizes that only show that it runs")
    parser.add_argument("--full", action="store_true", help="quickstart: not shortened")
    known = parser.parse_args()
    unknown = set(known.names) - set(NAMES)
    if unknown:
        parser.error(f"there is no {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}")
    names = known.names or [name for name in NAMES if name != "gpu"]
    if len(names) == 1:
        _one(names[0], known)
        return
    # Each in a process of its own, so that none finds what another left.
    flags = [f"--write={known.write}"] if known.write else []
    flags += [f"--threads={known.threads}"] if known.threads else []
    flags += ["--small"] * known.small + ["--full"] * known.full
    command = [sys.executable, "-m", "benchmarks"]
    failed = [n for n in names if subprocess.run([*command, n, *flags], check=False).returncode]
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


def _one(name: str, known: argparse.Namespace) -> None:
    threads = measure.pin(known.threads)
    if name == "gpu":
        os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # torch needs some too
    else:
        os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if name not in ("flat", "quickstart", "importing", "installation"):
        import torch

        torch.set_num_threads(threads)
    options = {"full": True} if known.full and name == "quickstart" else {}
    section = importlib.import_module(f"benchmarks.{name}").measure(small=known.small, **options)
    words = [name, *(["--threads", str(known.threads)] if known.threads else [])]
    words += ["--full"] * bool(options) + ["--small"] * known.small
    made = f"`python -m benchmarks {' '.join(words)}` on {measure.machine(threads)}."
    text = f"{section.markdown()}\n\n{made}"
    print(text, flush=True)
    if known.write:
        page = known.write.read_text() if known.write.exists() else PAGE
        known.write.parent.mkdir(parents=True, exist_ok=True)
        known.write.write_text(measure.replaced(page, name, text))


if __name__ == "__main__":
    main()
