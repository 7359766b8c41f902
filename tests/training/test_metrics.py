"""Logs: valid JSON whatever the numbers, no gaps or repeats after a restart."""

import json
import math
import time

import jax.numpy as jnp
import numpy as np
import pytest

from t2g_jax.errors import T2GError
from t2g_jax.training.metrics import MetricsWriter, Stopwatch, read_metrics, whole_log


def log(directory, steps, **options):
    with MetricsWriter(directory, phase="sft", **options) as writer:
        for step in steps:
            writer.write(step, {"loss": 1 / (step + 1)})
    return writer.path


def test_lines_have_step_phase_and_seconds(tmp_path):
    path = log(tmp_path / "run", [1, 2])
    lines = read_metrics(path)
    assert read_metrics(tmp_path / "run") == lines
    assert [line["step"] for line in lines] == [1, 2]
    assert lines[0]["phase"] == "sft"
    assert lines[1]["loss"] == 1 / 3
    assert 0 <= lines[0]["seconds"] <= lines[1]["seconds"]


def test_scalars_of_every_kind(tmp_path):
    metrics = {
        "int": 3,
        "numpy": np.float32(0.5),
        "jax": jnp.ones((), jnp.bfloat16),
        "one": jnp.full((1,), 2),
        "bool": np.bool_(True),
        "text": "plain",
        "none": None,
        "nan": jnp.asarray(math.nan),
        "inf": math.inf,
        "ninf": np.float64(-math.inf),
    }
    with MetricsWriter(tmp_path, phase="sft") as writer:
        writer.write(np.int64(1), metrics)

    def refuse(constant):
        raise AssertionError(constant)

    json.loads(writer.path.read_text(), parse_constant=refuse)  # NaN is not JSON
    (line,) = read_metrics(writer.path)
    assert math.isnan(line.pop("nan"))
    expected = {"int": 3, "numpy": 0.5, "jax": 1.0, "one": 2, "bool": True, "text": "plain"}
    expected |= {"none": None, "inf": math.inf, "ninf": -math.inf}
    assert {name: line[name] for name in expected} == expected


@pytest.mark.parametrize("value", [np.zeros(2), [1.0], object()])
def test_what_is_no_scalar_is_refused(tmp_path, value):
    with MetricsWriter(tmp_path, phase="sft") as writer:
        with pytest.raises(T2GError, match=r"metric 'x' is a .*log a scalar"):
            writer.write(1, {"x": value})
        with pytest.raises(T2GError, match="'step' has the name of a column"):
            writer.write(1, {"step": 2})
    assert read_metrics(writer.path) == []


def test_resuming_drops_later_lines_and_goes_on(tmp_path):
    path = log(tmp_path, range(1, 8))
    path.write_text(path.read_text() + '{"step": 8, "los')  # killed while writing
    log(tmp_path, [5, 6], resumed_step=4)
    lines = read_metrics(path)
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    seconds = [line["seconds"] for line in lines]
    assert seconds == sorted(seconds)
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_seconds_add_up_over_restarts(tmp_path):
    path = log(tmp_path, [1])
    path.write_text(json.dumps({"step": 1, "phase": "sft", "seconds": 100.0, "x": "NaN"}) + "\n")
    log(tmp_path, [2], resumed_step=1)
    first, second = read_metrics(path)
    assert math.isnan(first["x"])
    assert 100 <= second["seconds"] < 110


def test_a_new_run_begins_an_empty_log(tmp_path):
    log(tmp_path, [1, 2])
    log(tmp_path, [1])
    assert [line["step"] for line in read_metrics(tmp_path)] == [1]


@pytest.mark.parametrize(
    ("left", "expected"),
    [
        (None, "is missing"),
        ([], "is missing"),
        ([2, 3], "has no line of step 1"),
        ([1, 3], "has no line of step 2"),
        ([1, 2], "has no line of step 3"),
        ([1, 2, 2, 3], "twice, or in disorder"),
        ([2, 1, 3], "twice, or in disorder"),
        ([0, 1, 2, 3], "twice, or in disorder"),
        ([1, 2, 3, 5, 7], None),
    ],
)
def test_the_log_of_what_goes_on_is_whole(tmp_path, left, expected):
    path = tmp_path / "metrics.jsonl"
    if left is not None:
        log(tmp_path, left)
        text = path.read_text()
    if expected is None:
        log(tmp_path, [4], resumed_step=3)
        assert [line["step"] for line in read_metrics(path)] == [1, 2, 3, 4]
        return
    with pytest.raises(T2GError, match=rf"{path} .*{expected}.* of step 3: .*delete {tmp_path}"):
        log(tmp_path, [4], resumed_step=3)
    assert path.exists() == (left is not None)
    assert left is None or path.read_text() == text


def test_a_step_far_beyond_the_log_is_no_list(tmp_path):
    """Of a folder that somebody named so."""
    path = log(tmp_path, [1, 2])
    with pytest.raises(T2GError, match=r"has no line of step 3, but .* is of step 1000"):
        whole_log(path, 10**15)


def test_a_cut_last_line_is_left_out(tmp_path):
    path = log(tmp_path, [1, 2])
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        assert len(read_metrics(path)) == whole[:length].count(b"\n")


def test_damage_and_absence_are_named(tmp_path):
    path = log(tmp_path, [1, 2])
    text = path.read_text()
    for wrong in ("{", "[]", '{"loss": 1}', "", "3"):
        path.write_text(wrong + "\n" + text)
        with pytest.raises(T2GError, match=r"metrics\.jsonl, line 1 is damaged"):
            read_metrics(path)
        with pytest.raises(T2GError, match="line 1 is damaged"):
            MetricsWriter(tmp_path, phase="sft", resumed_step=2)
        assert path.read_text() == wrong + "\n" + text
    with pytest.raises(T2GError, match="no metrics in"):
        read_metrics(tmp_path / "nowhere")


def test_other_processes_write_nothing(tmp_path):
    log(tmp_path / "run", [1, 2], enabled=False)
    assert not (tmp_path / "run").exists()


def test_stopwatch_adds_up_by_stage():
    watch = Stopwatch()
    for _ in range(2):
        with watch.stage("sample"):
            time.sleep(0.01)
    with pytest.raises(KeyError), watch.stage("judge"):
        raise KeyError
    seconds = watch.lap()
    assert list(seconds) == ["sample", "judge"]
    assert 0.02 <= seconds["sample"] < 1
    assert 0 <= seconds["judge"] < seconds["sample"]
    assert watch.lap() == {}
