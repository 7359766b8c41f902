"""Kills a run again and again, and compares what it leaves with a run that was never killed.

    python benchmarks/kill_and_resume.py --kills 100 --seed 0

A run of all phases (tests/configs/kills.yaml) is killed by SIGKILL at random moments, half of them
just before it changes a file, and started again with the same command, until it was killed so many
times; then it may end. Parameters, optimizer state, metrics, annotations, samples and evaluations
must equal those of the other run bit for bit, times apart. Prints where each kill landed; exits
with 1 if anything differs. Some minutes on two CPU cores for 100 kills.
"""

import argparse
import collections
import json
import os
import pathlib
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--config", default=str(ROOT / "tests/configs/kills.yaml"))
    parser.add_argument("--folder", type=pathlib.Path, help="keep both runs here")
    parser.add_argument("--summary", type=pathlib.Path, help="write kills by phase as JSON")
    known = parser.parse_args()
    folder = known.folder or pathlib.Path(tempfile.mkdtemp(prefix="kill_and_resume"))
    folder.mkdir(parents=True, exist_ok=True)

    # The two runs must execute the same programs, and a start must not wait for the compiler.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder / "compiled")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support")]
    import kills

    began = time.monotonic()
    whole, stopped = folder / "whole", folder / "stopped"
    command = ["run", known.config, "--workdir"]
    status = kills.run([*command, str(whole)], folder / "whole.log")
    if status != 0:
        print(kills.tail(folder / "whole.log"))
        return 1
    changes = (folder / "whole.changes").read_text().splitlines()
    print(f"uninterrupted: {kills.elapsed(began)}, {len(changes)} changes of files", flush=True)

    landed: collections.Counter[str] = collections.Counter()
    for kill in kills.killed(
        [*command, str(stopped)],
        folder / "stopped.log",
        kills=known.kills,
        seed=known.seed,
        changes=changes,
    ):
        landed[kill.phase] += 1
        print(f"kill {landed.total():3d}  {kill.phase:15s}  {kill.after}", flush=True)
    print(f"{landed.total()} kills: {dict(landed)}; {kills.elapsed(began)}", flush=True)
    if known.summary:
        known.summary.write_text(json.dumps(landed))
    different = kills.differences(whole, stopped)
    for line in different:
        print(f"DIFFERENT: {line}")
    print("not equal" if different else "equal bit for bit", f"({folder})")
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
