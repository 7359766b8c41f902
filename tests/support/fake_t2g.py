"""Stands in for `t2g` in tests of studies: leaves the files of a run at once, learning nothing.

    python fake_t2g.py COMMAND CONFIG --workdir DIR

Beside the cells, in the study's folder, tests may leave a file `behavior.json`:
{"fail": ["a/seed0/grpo"], "slow": ["a/seed1/grpo"], "accuracy": {"grpo": 0.5}}.
"""

import json
import pathlib
import signal
import sys
import time

import yaml

PUZZLES, SAMPLES, STEPS, TOKENS = 10, 2, 5, 100


def main(command, config, _, workdir):
    workdir = pathlib.Path(workdir)
    config = yaml.safe_load(pathlib.Path(config).read_text())
    study = workdir.parents[2]
    name = str(workdir.relative_to(study))
    behavior = study / "behavior.json"
    behavior = json.loads(behavior.read_text()) if behavior.exists() else {}
    with open(workdir / "calls.txt", "a") as calls:
        calls.write(f"{command}\n")
    if name in behavior.get("fail", ()):
        print("t2g: the disk is full")
        return 2
    if name in behavior.get("slow", ()):
        signal.signal(signal.SIGTERM, lambda *_: stopped(workdir))
        (workdir / "started").touch()
        time.sleep(60)
    if command == "sft":
        write(workdir / "tokenizer" / "tokenizer.json", {})
        write(workdir / "sft" / "complete.json", {})
    elif command == "evaluate":
        write(workdir / "sft" / "evaluation.json", evaluation(0.1, behavior))
    elif command == "annotate":
        write(workdir / "annotate" / "complete.json", {"tokens_generated": 150})
    elif command == "train-rm":
        write(workdir / "reward_model" / "complete.json", {})
    elif command == "run":
        assert (workdir / "sft" / "evaluation.json").exists()
        method = config["methods"][0].replace("-", "_")
        if method == "text2grad":
            assert (workdir / "reward_model" / "complete.json").exists()
        final = behavior.get("accuracy", {}).get(workdir.name, 0.5)
        rise = final / STEPS
        lines = [
            {
                "step": step + 1,
                "seconds": step,
                "tokens_generated": TOKENS,
                "test_reward" if behavior.get("graded") else "test_accuracy": step * rise,
            }
            for step in range(STEPS)
        ]
        write(workdir / method / "evaluation.json", evaluation(final, behavior))
        (workdir / method / "metrics.jsonl").write_text(
            "".join(json.dumps(line) + "\n" for line in lines)
        )
        write(workdir / method / "complete.json", {})
    return 0


def stopped(workdir):
    (workdir / "stopped").touch()
    sys.exit(75)


def evaluation(accuracy, behavior):
    right = round(accuracy * PUZZLES * SAMPLES)
    flat = [int(i < right) for i in range(PUZZLES * SAMPLES)]
    values = [flat[i::PUZZLES] for i in range(PUZZLES)]
    found = {
        "accuracy": right / len(flat),
        "reward": right / len(flat),
        "second_turn": 0.8,
        "floor": 0.05,
        "floor_policy": "copies the input",
        "correct": values,
        "rewards": values,
    }
    nothing = {"accuracy": None, "correct": None, "floor": None, "floor_policy": ""}
    return found | (nothing if behavior.get("graded") else {})


def write(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
