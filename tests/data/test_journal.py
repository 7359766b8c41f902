"""Journals: killed at any byte, everything before is kept, and nothing is ever guessed."""

import json
import os
import subprocess
import sys

import pytest

from t2g_jax.data.journal import Journal, Quarantine
from t2g_jax.errors import T2GError
from t2g_jax.runtime.checked import line

ENTRIES = [{"id": f"é{i}", "text": "line\nbreak", "value": i / 3} for i in range(4)]


@pytest.fixture
def path(tmp_path):
    with Journal(tmp_path / "run" / "journal.jsonl") as journal:
        for entry in ENTRIES:
            journal.append(entry)
    return journal.path


def test_entries_come_back_in_order(path):
    with Journal(path) as journal:
        assert list(journal) == ENTRIES
        assert journal.done == {entry["id"] for entry in ENTRIES}
        assert len(journal) == 4
        journal.append({"id": "new"})
        assert [entry["id"] for entry in journal][-1] == "new"
    assert len(path.read_bytes().splitlines()) == 5


def test_resumes_after_a_cut_at_any_byte_of_the_last_line(path):
    whole = path.read_bytes()
    kept = whole[: whole.rindex(b"\n", 0, -1) + 1]
    for length in range(len(kept), len(whole)):
        path.write_bytes(whole[:length])
        with Journal(path) as journal:
            assert journal.done == {entry["id"] for entry in ENTRIES[:3]}
            journal.append(ENTRIES[3])
        assert path.read_bytes() == whole


def test_a_long_cut_line_is_dropped(path):
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"id": "' + b"x" * 200_000)
    with Journal(path):
        assert path.read_bytes() == whole
    path.write_bytes(b"x" * 200_000)
    with Journal(path) as journal:
        assert (journal.done, path.read_bytes()) == (set(), b"")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"id": "a', "line 2 is damaged"),
        (b"\0\0\0\0", "line 2 is damaged"),
        (b'{"id": "\xff"}', "line 2 is damaged"),
        (b"", "line 2 is damaged"),
        (b"[1]", "line 2 is damaged"),
        (line({"text": "x"}).strip(), 'line 2: the entry has no "id"'),
        (line({"id": 7}).strip(), 'line 2: the entry has no "id"'),
        (b'{"id": "new"}', r"line 2 is damaged \(it has no checksum\)"),
        (b'{"id": "new", "checksum": "00000000"}', r"line 2 is damaged \(its checksum is not "),
        (b'{"id": "new", "checksum": 7}', r"line 2 is damaged \(its checksum is not "),
        (b"[" * 100_000, "line 2 is damaged"),
        (b'{"id": "new", "reward": 1e999}', "line 2 is damaged"),
        (b'{"id": "new", "reward": NaN}', "line 2 is damaged"),
    ],
)
def test_damage_in_the_middle_is_refused(path, line, message):
    lines = path.read_bytes().splitlines()
    path.write_bytes(b"\n".join([lines[0], line, *lines[2:], b""]))
    before = path.read_bytes()
    with pytest.raises(T2GError, match=message) as error:
        Journal(path)
    assert str(path) in str(error.value)
    assert path.read_bytes() == before
    path.write_bytes(b"\n".join([lines[0], *lines[2:], b""]))
    Journal(path).close()  # the lock was let go


def test_every_byte_of_a_line_counts(path):
    whole = path.read_bytes()
    start, end = whole.index(b"\n") + 1, whole.index(b"\n", whole.index(b"\n") + 1)
    for place in range(start, end):
        damaged = bytearray(whole)
        damaged[place] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(T2GError, match=r"journal.jsonl, line [23] ") as error:
            Journal(path)
        assert "delete the line" in str(error.value)


def test_repeated_ids_are_refused(path):
    with Journal(path) as journal, pytest.raises(T2GError, match="id 'é0' is done"):
        journal.append({"id": "é0"})
    path.write_bytes(path.read_bytes() * 2)
    with pytest.raises(T2GError, match="line 5: id 'é0' is there before"):
        Journal(path)


def test_entries_without_id_or_json_are_not_written(path):
    before = path.read_bytes()
    with Journal(path) as journal:
        with pytest.raises(T2GError, match='no "id"'):
            journal.append({"text": "x"})
        with pytest.raises(ValueError, match="JSON"):
            journal.append({"id": "x", "value": float("nan")})
        with pytest.raises(TypeError, match="JSON"):
            journal.append({"id": "x", "value": object()})
        assert "x" not in journal.done
    assert path.read_bytes() == before


def test_one_writer_at_a_time(path):
    with Journal(path), pytest.raises(T2GError, match="is being written by another process"):
        Journal(path)
    Journal(path).close()


def test_entries_outlive_a_killed_process(tmp_path):
    program = """
import os, sys, signal
from t2g_jax.data import journal
journal.SYNC_SECONDS = 1e9
notes = journal.Journal(sys.argv[1])
for i in range(50):
    notes.append({"id": str(i)})
os.kill(os.getpid(), signal.SIGKILL)
"""
    path = tmp_path / "journal.jsonl"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run([sys.executable, "-c", program, str(path)], env=environment, timeout=60)
    assert done.returncode == -9
    with Journal(path) as journal:
        assert len(journal) == 50


def test_fsync_is_batched(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", synced.append)
    monkeypatch.setattr("t2g_jax.data.journal.SYNC_SECONDS", 1e9)
    with Journal(tmp_path / "a") as journal:
        for i in range(10):
            journal.append({"id": str(i)})
        assert synced == []
    assert len(synced) == 1
    monkeypatch.setattr("t2g_jax.data.journal.SYNC_SECONDS", 0)
    with Journal(tmp_path / "b") as journal:
        for i in range(10):
            journal.append({"id": str(i)})
        assert len(synced) == 11


def test_quarantine_counts_by_reason(tmp_path):
    path = tmp_path / "quarantine.jsonl"
    with Quarantine(path) as quarantine:
        quarantine.add("a", "unparseable", {"reply": "…"})
        quarantine.add("b", "timeout", None)
        quarantine.add("a", "timeout", None)
        assert quarantine.counts == {"unparseable": 1, "timeout": 2}
    path.write_bytes(path.read_bytes() + b'{"id": "c", "rea')
    with Quarantine(path) as quarantine:
        assert quarantine.counts == {"unparseable": 1, "timeout": 2}
        assert (quarantine.ids, len(quarantine)) == ({"a", "b"}, 3)
        quarantine.add("c", "timeout", [1])
        assert list(quarantine)[-1] == {"id": "c", "reason": "timeout", "payload": [1]}
    assert json.loads(path.read_text().splitlines()[0])["payload"] == {"reply": "…"}


def test_damaged_quarantine_is_refused(tmp_path):
    whole = line({"id": "a", "reason": "x", "payload": 1})
    (tmp_path / "q").write_bytes(whole + b'{"id"\n')
    with pytest.raises(T2GError, match="q, line 2 is damaged"):
        Quarantine(tmp_path / "q")
    (tmp_path / "q").write_bytes(line({"id": "a"}))
    with pytest.raises(T2GError, match='q, line 1: the entry has no "reason"'):
        Quarantine(tmp_path / "q")
