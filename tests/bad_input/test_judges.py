"""Judges that raise, hang or return rubbish: counted, never praise, and nothing done is lost."""

import json
import os
import shutil
import subprocess
import sys
import time

import bad_judges
import pytest

from t2g_jax.config import to_yaml
from t2g_jax.data.dataset import load_dataset
from t2g_jax.data.journal import Quarantine
from t2g_jax.training.metrics import read_metrics

BAD = {
    "raised KeyError": 1,
    "raised SystemExit": 1,
    "timed out": 1,
    "no critique": 2,
    "text is not a string": 1,
    "empty text": 1,
    "text is not Unicode": 1,
    "too long": 1,
    "bad quote": 2,
    "bad reward": 3,
}
"""What the judge "all_that_is_bad" does, one after the other, as it is counted."""


@pytest.fixture
def branch(tiny_run, tmp_path):
    """branch("sft", judge="raises"): a work directory whose judge is one of the bad ones."""

    def branch(*phases, judge, **values):
        values = {"judge__name": f"bad_judges:{judge}", "judge__timeout_seconds": 0.3} | values
        return tiny_run.branch(tmp_path / "run", *phases, **values)

    return branch


def summary(workdir, phase="annotate"):
    return json.loads((workdir / phase / "complete.json").read_text())


def test_all_that_a_judge_can_do_is_quarantined_and_counted(t2g, branch):
    workdir, config = branch("sft", judge="all_that_is_bad")
    assert t2g("annotate", workdir, config).status == 0
    counts = {f"judge: {reason}": count for reason, count in BAD.items()}
    assert summary(workdir)["quarantined"] == counts
    assert sum(summary(workdir)["records"].values()) == 16 - sum(BAD.values())
    with Quarantine(workdir / "annotate" / "quarantine.jsonl") as quarantine:
        entries = list(quarantine)
    assert all(len(json.dumps(entry)) < 5000 for entry in entries)
    details = entries[0]["payload"]["details"]
    assert details.startswith("'choices' (")
    assert "bad_judges.py, line " in details


@pytest.mark.parametrize("command", ["annotate", "evaluate"])
def test_a_folder_that_is_moved_meanwhile_is_not_made_again(t2g, branch, monkeypatch, command):
    workdir, config = branch("sft", judge="moves_the_folder", judge__timeout_seconds=60.0)
    (workdir / "sft" / "evaluation.json").unlink()
    monkeypatch.setenv("MOVED", str(workdir))
    outcome = t2g(command, workdir, config)
    assert outcome.status == 2
    moved = workdir.with_name("run-elsewhere")
    assert outcome.error.startswith(f"{workdir} was moved, deleted or replaced while this run")
    assert f"(it is now {moved})" in outcome.error
    assert not workdir.exists()
    monkeypatch.delenv("MOVED")
    assert t2g(command, moved, config).status == 0


def test_quotes_of_what_is_not_there_are_counted_and_teach_nothing(t2g, branch):
    workdir, config = branch("sft", judge="invented_quotes")
    assert t2g("annotate", workdir, config).status == 0
    assert summary(workdir)["unaligned"] >= 16 // 3
    assert summary(workdir)["quarantined"] == {}
    records = [
        record
        for split in ("train", "held_out")
        for record in load_dataset(workdir / "annotate" / "dataset", split)
    ]
    invented = [record for record in records if record.critique == "Hm."]
    assert len(invented) == 16 // 3
    assert not any(len(record.span_rewards) for record in invented)
    assert all("nowhere in any answer: " in record.unaligned[0] for record in invented)


def test_a_judge_that_is_down_stops_the_run_and_loses_nothing(t2g, branch, monkeypatch):
    workdir, config = branch("sft", judge="breaks_down", judge__max_failures_in_a_row=4)
    outcome = t2g("annotate", workdir, config)
    assert outcome.status == 2
    assert outcome.error.startswith("the judge 'bad' failed 4 times in a row (judge.max_failures")
    assert "the last time: raised ConnectionError: connection refused" in outcome.error
    journal = workdir / "annotate" / "journal.jsonl"
    before = journal.read_bytes()
    assert len(before.splitlines()) == 4
    assert (workdir / "annotate" / "quarantine.jsonl").read_bytes() == b""

    monkeypatch.setattr(bad_judges, "breaks_down", bad_judges.all_is_well)
    assert t2g("annotate", workdir, config).status == 0
    assert journal.read_bytes().startswith(before)
    assert sum(summary(workdir)["records"].values()) == 16


def test_a_judge_that_is_down_stops_training_and_loses_no_step(t2g, branch, monkeypatch):
    workdir, config = branch(
        "sft",
        judge="breaks_down_later",
        judge__max_failures_in_a_row=4,
        checkpoint__every_steps=50,
        rltf_sd__eval_every=0,
    )
    outcome = t2g("train-policy", workdir, config, "--method", "rltf-sd")
    assert outcome.status == 2
    assert "failed 4 times in a row" in outcome.error
    assert not (workdir / "rltf_sd" / "complete.json").exists()
    assert (workdir / "rltf_sd" / "checkpoints" / "1").exists()
    before = (workdir / "rltf_sd" / "metrics.jsonl").read_text()
    assert len(before.splitlines()) == 1

    monkeypatch.setattr(bad_judges, "breaks_down_later", bad_judges.all_is_well)
    assert t2g("train-policy", workdir, config, "--method", "rltf-sd").status == 0
    after = (workdir / "rltf_sd" / "metrics.jsonl").read_text()
    assert after.startswith(before)
    assert len(after.splitlines()) == 3


@pytest.mark.parametrize("method", ["rltf-sd", "rltf-fm", "text2grad"])
def test_failures_are_in_the_log_of_every_method(t2g, branch, method):
    values = {"steps": 1, "prompts_per_step": 4, "group_size": 2, "eval_every": 0}
    section = method.replace("-", "_")
    values = {f"{section}__{name}": value for name, value in values.items()}
    workdir, config = branch("sft", judge="raises", text2grad__span_source="judge", **values)
    assert t2g("train-policy", workdir, config, "--method", method).status == 0
    lines = read_metrics(workdir / method.replace("-", "_"))
    assert sum(line["judge_failures"] for line in lines) > 0


def test_what_a_judge_of_batches_can_do_is_counted_for_each_of_them(t2g, branch):
    workdir, config = branch("sft", judge="all_that_is_bad_in_batches", judge__batch_size=2)
    assert t2g("annotate", workdir, config).status == 0
    assert summary(workdir)["quarantined"] == {
        "judge: raised KeyError": 2,
        "judge: timed out": 2,
        "judge: no list of critiques": 4,
        "judge: wrong number of critiques": 4,
        "judge: no credit": 1,
    }
    assert sum(summary(workdir)["records"].values()) == 3


def test_a_judge_of_batches_that_is_down_stops_the_run_and_loses_nothing(t2g, branch, monkeypatch):
    values = {"max_failures_in_a_row": 3, "batch_size": 2}
    values = {f"judge__{name}": value for name, value in values.items()}
    workdir, config = branch("sft", judge="batches_break_down", **values)
    outcome = t2g("annotate", workdir, config)
    assert outcome.status == 2
    assert outcome.error.startswith("the judge 'bad' failed 3 times in a row (judge.max_failures")
    journal = workdir / "annotate" / "journal.jsonl"
    assert len(journal.read_bytes().splitlines()) == 4
    monkeypatch.setattr(bad_judges, "batches_break_down", bad_judges.all_is_well_in_batches)
    assert t2g("annotate", workdir, config).status == 0
    assert sum(summary(workdir)["records"].values()) == 16


def test_failed_batches_are_in_the_log_of_a_method(t2g, branch):
    values = {"steps": 1, "prompts_per_step": 4, "group_size": 2, "eval_every": 0}
    values = {f"rltf_sd__{name}": value for name, value in values.items()}
    workdir, config = branch("sft", judge="batches_raise", judge__batch_size=2, **values)
    assert t2g("train-policy", workdir, config, "--method", "rltf-sd").status == 0
    (line,) = read_metrics(workdir / "rltf_sd")
    assert line["judge_failures"] == line["judge_failed/raised ConnectionError"] > 0


def test_settings_reach_the_judge_and_another_setting_asks_anew(t2g, branch):
    workdir, config = branch("sft", judge="with_settings", judge__settings={"model": "small"})
    assert t2g("annotate", workdir, config).status == 0

    def said():
        splits = (load_dataset(workdir / "annotate" / "dataset", s) for s in ("train", "held_out"))
        return {record.critique for split in splits for record in split}

    assert said() == {"small 3"}
    shutil.rmtree(workdir / "annotate")
    words = ["--judge.settings.retries", "7", "--accept-changes"]
    assert t2g("annotate", workdir, config, *words).status == 0
    assert said() == {"small 7"}
    new = workdir.with_name("new")
    outcome = t2g("sft", new, config, "--judge.settings.modle", "large")
    assert outcome.status == 2
    assert "bad_judges:with_settings takes no `modle`; did you mean `model`?" in outcome.error


def test_failures_are_counted_in_the_warm_start_and_the_evaluation(t2g, branch):
    values = {"steps": 2, "repair_fraction": 1.0, "critiques": "judge"}
    values = {f"sft__{name}": value for name, value in values.items()}
    workdir, config = branch("sft", judge="raises", **values)
    (workdir / "sft").rename(workdir / "before")
    assert t2g("sft", workdir, config).status == 0
    assert sum(line["judge_failures"] for line in read_metrics(workdir / "sft")) > 0
    assert t2g("evaluate", workdir, config).status == 0
    assert json.loads((workdir / "sft" / "evaluation.json").read_text())["judge_failures"] > 0


def test_a_judge_that_hangs_does_not_keep_the_process(branch, tmp_path):
    """In a process of its own: threads that hang must not hold up its end either."""
    workdir, config = branch("sft", judge="always_hangs", judge__max_failures_in_a_row=2)
    given = tmp_path / "given.yaml"
    given.write_text(to_yaml(config))
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "t2g_jax", "annotate", str(given), "--workdir", str(workdir)],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 2
    assert "failed 2 times in a row" in done.stderr
    assert "Traceback" not in done.stderr
    assert time.monotonic() - began < 200


@pytest.mark.parametrize(
    ("judge", "limits"),
    [("all_is_well", {"workers": 4}), ("all_is_well_in_batches", {"workers": 2, "batch_size": 3})],
)
def test_several_critiques_at_a_time_change_nothing_but_the_time(
    t2g, branch, tiny_run, judge, limits
):
    limits = {f"judge__{name}": value for name, value in limits.items()}
    workdir, config = branch("sft", judge=judge, **limits)
    assert t2g("annotate", workdir, config).status == 0
    ours, whole = (
        [json.loads(line) for line in (folder / "annotate" / "journal.jsonl").open()]
        for folder in (workdir, tiny_run.workdir)
    )
    assert len(ours) == len(whole)
    for entry, expected in zip(ours, whole, strict=True):
        assert entry.pop("checksum") != expected["checksum"]  # it is of another judge
        assert entry == {k: v for k, v in expected.items() if k != "checksum"} | {"judge": "bad"}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("no_such_module:make", "judge.name: there is no module 'no_such_module': install it, or"),
        ("bad_judges:rais", "bad_judges.py) has no 'rais'; did you mean 'raises'?"),
        ("bad_judges:time", "name a function of its settings that returns a judge"),
        ("math:sqrt", "judge.name: math:sqrt takes `x` by position alone, but it is called with"),
        ("builtins:max", "judge.name: builtins:max() failed: TypeError: "),
        ("builtins:isinstance", "judge.name: builtins:isinstance takes `obj` by position alone"),
        ("collections:ChainMap", "return an object with critique(example, completion), or crit"),
        ("raises", "in `judge`: name is 'raises'; must be 'task', 'policy', or 'package.module:"),
        ("policy", "judge.settings: `model` is missing"),
    ],
)
def test_a_judge_that_cannot_be_had(t2g, branch, name, expected):
    workdir, config = branch("sft", judge="raises")
    outcome = t2g("sft", workdir.with_name("new"), config, "--judge.name", name)
    assert outcome.status == 2
    assert expected in outcome.error
