"""TensorBoard and W&B, with their own packages: written, stopped, continued, and read back."""

import dataclasses
import math
import os
import pathlib
import struct
import subprocess
import sys
import time

import pytest

from t2g_jax.config import Config, TrackingConfig
from t2g_jax.errors import T2GError
from t2g_jax.training import trackers
from t2g_jax.training.metrics import MetricsWriter
from t2g_jax.training.trackers import opened

KEY = "0123456789abcdef0123456789abcdef01234567"


def config(**tracking):
    return dataclasses.replace(Config(name="run7"), tracking=TrackingConfig(**tracking))


def train(settings, workdir, steps, *, resumed_step=None, loss=lambda step: 1 / step):
    """A phase that logs these steps."""
    folder = workdir / "rltf_sd"
    with (
        opened(settings, workdir, folder, "rltf-sd", resumed_step=resumed_step) as tracked,
        MetricsWriter(folder, phase="rltf-sd", resumed_step=resumed_step) as writer,
    ):
        for step in steps:
            metrics = {"loss": loss(step), "note": "text", "nothing": None, "nan": math.nan}
            writer.write(step, metrics)
            tracked.write(step, metrics)


def test_nothing_is_asked_for_and_nothing_is_imported(tmp_path):
    script = (
        "import sys, pathlib; from t2g_jax.config import Config;"
        "from t2g_jax.training.trackers import opened; p = pathlib.Path(sys.argv[1])\n"
        "with opened(Config(name='r'), p, p / 'sft', 'sft', resumed_step=None) as t:\n"
        "    t.write(1, {'loss': object()})\n"
        "assert not {'wandb', 'tensorboard'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("settings", "package", "extra"),
    [
        ({"tensorboard": True}, "tensorboard", "t2g_jax[tensorboard]"),
        ({"wandb": "offline"}, "wandb", "t2g_jax[wandb]"),
    ],
)
def test_a_package_that_is_missing_is_named_with_its_extra(
    tmp_path, monkeypatch, settings, package, extra
):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(T2GError, match=package) as error:
        train(config(**settings), tmp_path, [1])
    assert extra in str(error.value)
    assert next(iter(settings)) in str(error.value)


def test_only_the_first_process_tracks(tmp_path):
    settings = config(tensorboard=True, wandb="offline")
    folder = tmp_path / "sft"
    with opened(settings, tmp_path, folder, "sft", resumed_step=None, enabled=False) as tracked:
        tracked.write(1, {"loss": 1.0})
    assert list(tmp_path.iterdir()) == []


def test_one_that_cannot_close_does_not_keep_the_others_open():
    closed = []

    class Fake:
        def __init__(self, name):
            self.name = name

        def close(self, *, failed):
            closed.append((self.name, failed))
            if self.name == "b":
                raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        trackers.Trackers([Fake("a"), Fake("b"), Fake("c")]).close(failed=True)
    assert sorted(closed) == [("a", True), ("b", True), ("c", True)]


# --- TensorBoard -----------------------------------------------------------------------------


def shown(folder):
    """(step, loss) as TensorBoard itself shows them."""
    loading = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    accumulator = loading.EventAccumulator(str(folder), size_guidance={"scalars": 0})
    accumulator.Reload()
    assert accumulator.Tags()["scalars"] == ["loss"]
    return [(event.step, event.value) for event in accumulator.Scalars("loss")]


def test_tensorboard_shows_each_step_once_after_a_phase_went_on(tmp_path):
    pytest.importorskip("tensorboard")
    settings = config(tensorboard=True)
    train(settings, tmp_path, [1, 2, 3], loss=lambda step: -1.0)  # stopped before a checkpoint
    assert shown(tmp_path / "tensorboard" / "rltf_sd") == [(step, -1.0) for step in (1, 2, 3)]
    train(settings, tmp_path, [1, 2, 3, 4, 5], loss=float)
    train(settings, tmp_path, [4, 5, 6], resumed_step=3, loss=lambda step: 10.0 * step)
    assert shown(tmp_path / "tensorboard" / "rltf_sd") == [
        (1, 1.0), (2, 2.0), (3, 3.0), (4, 40.0), (5, 50.0), (6, 60.0),
    ]  # fmt: skip


def test_tensorboard_has_a_step_as_soon_as_it_is_written(tmp_path):
    """A run that is killed keeps what it has told."""
    pytest.importorskip("tensorboard")
    script = (
        "import os, sys; from t2g_jax.training.trackers import TensorBoard;"
        "t = TensorBoard(sys.argv[1]); t.write(1, {'loss': 0.5});"
        "t.write(2, {'loss': 0.25}); os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False).returncode
    assert shown(tmp_path) == [(1, 0.5), (2, 0.25)]


# --- Weights & Biases, offline ---------------------------------------------------------------


@pytest.fixture
def offline(tmp_path, monkeypatch):
    """offline(config) → the records of each of the runs that W&B kept, oldest first."""
    pytest.importorskip("wandb")
    for name in list(os.environ):
        if name.startswith("WANDB_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("WANDB_MODE", "online")  # the config decides
    # Whatever would go out goes to a port that nobody listens at.
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")

    def offline():
        # In the order of their names: the second that they began in, then a number.
        files = sorted((tmp_path / "rltf_sd" / "wandb").glob("offline-run-*/run-*.wandb"))
        return [ended(file) for file in files]

    return offline


def ended(path, seconds=30):
    """The records of a run that is over; W&B's own process may still be writing them."""
    end = time.monotonic() + seconds
    while not ((found := records(path)) and found[-1].HasField("exit")):
        assert time.monotonic() < end, f"{path} does not end"
        time.sleep(0.05)
    return found


def records(path):
    """The protocol buffers in a file of W&B: LevelDB's log format after seven bytes."""
    from wandb.proto import wandb_internal_pb2

    data, at, parts, found = path.read_bytes(), 7, b"", []
    while at + 7 <= len(data):
        room = 32768 - at % 32768
        if room < 7:
            at += room
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            found.append(record)
            parts = b""
    return found


def history(found):
    """(step, loss) of each point."""
    lines = [
        {item.key or item.nested_key[0]: item.value_json for item in record.history.item}
        for record in found
        if record.WhichOneof("record_type") == "history"
    ]
    return [(int(line["_step"]), float(line["loss"])) for line in lines]


def test_wandb_goes_on_with_the_same_run(tmp_path, offline, capfd):
    settings = config(wandb="offline", project="puzzles")
    train(settings, tmp_path, [1, 2, 3, 4])
    train(settings, tmp_path, [3, 4, 5], resumed_step=2)
    begun, continued = offline()
    assert history(begun) == [(1, 1.0), (2, 1 / 2), (3, 1 / 3), (4, 1 / 4)]
    assert history(continued) == [(5, 1 / 5)]  # what W&B has is not told again
    runs = [r.run for records in (begun, continued) for r in records if r.HasField("run")]
    assert len({run.run_id for run in runs}) == 1
    (run, *_) = runs
    assert (tmp_path / "rltf_sd" / "wandb_run.txt").read_text().strip() == run.run_id
    assert (run.project, run.run_group, run.display_name, run.job_type) == (
        "puzzles", "run7", "run7-rltf-sd", "rltf-sd",
    )  # fmt: skip
    values = {item.key: item.value_json for item in run.config.update}
    assert values["name"] == '"run7"'
    assert '"wandb":"offline"' in values["tracking"].replace(" ", "")
    said = "".join(capfd.readouterr())
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert KEY not in said
    assert KEY.encode() not in written


def test_wandb_without_a_login_says_what_to_do(tmp_path, offline, monkeypatch):
    """In a process of its own: wandb remembers that it was logged in."""
    monkeypatch.delenv("WANDB_API_KEY")
    script = (
        "import sys; from t2g_jax.errors import T2GError;"
        "from t2g_jax.training.trackers import WeightsAndBiases\n"
        "try:\n"
        "    WeightsAndBiases(sys.argv[1], mode='online', project='p', run='r', phase='sft',"
        " config={})\n"
        "except T2GError as error:\n"
        "    print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
    )
    for piece in ("No API key", "`wandb login`", "WANDB_API_KEY", "--tracking.wandb offline"):
        assert piece in done.stdout
    assert not (tmp_path / "wandb_run.txt").exists()  # there is no run to go on with


def test_both_at_once_and_the_log_is_there_anyway(tmp_path, offline):
    pytest.importorskip("tensorboard")
    train(config(tensorboard=True, wandb="offline"), tmp_path, [1, 2])
    assert shown(tmp_path / "tensorboard" / "rltf_sd") == [(1, 1.0), (2, 0.5)]
    (found,) = offline()
    assert history(found) == [(1, 1.0), (2, 0.5)]
    assert len(pathlib.Path(tmp_path / "rltf_sd" / "metrics.jsonl").read_text().splitlines()) == 2
