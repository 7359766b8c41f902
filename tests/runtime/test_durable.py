"""Files and folders appear whole or not at all."""

import os

import pytest

from t2g_jax.runtime import durable


def test_a_file_is_on_disk_before_it_has_its_name(tmp_path, monkeypatch):
    events = []
    for name in ("fsync", "replace"):
        function = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, n=name, f=function: (events.append(n), f(*a))[1])
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "file.incomplete").write_text("of a process that was killed")
    durable.write_text(tmp_path / "new" / "file", "é\r\n")
    assert events == ["fsync", "replace", "fsync"]  # the file, its name, the folder
    assert (tmp_path / "new" / "file").read_bytes() == "é\r\n".encode()
    assert os.listdir(tmp_path / "new") == ["file"]


def test_a_file_that_cannot_be_written_stays_as_it_was(tmp_path):
    durable.write_text(tmp_path / "file", "before")
    with pytest.raises(UnicodeEncodeError):
        durable.write_text(tmp_path / "file", "half a pair: \ud800")
    assert (tmp_path / "file").read_text() == "before"


def test_a_folder_appears_with_all_that_is_in_it(tmp_path):
    (tmp_path / "building" / "inner").mkdir(parents=True)
    (tmp_path / "building" / "inner" / "file").write_text("text")
    durable.appear(tmp_path / "building", tmp_path / "folder")
    assert (tmp_path / "folder" / "inner" / "file").read_text() == "text"
    assert not (tmp_path / "building").exists()
    (tmp_path / "building").mkdir()
    with pytest.raises(OSError, match="not empty"):
        durable.appear(tmp_path / "building", tmp_path / "folder")
