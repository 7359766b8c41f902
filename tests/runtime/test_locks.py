"""Locks: one process at a time, those it starts with it, and file systems that have none."""

import errno
import os
import subprocess
import sys

import filelock
import pytest

from t2g_jax.data.journal import Journal
from t2g_jax.run.claim import claimed
from t2g_jax.runtime.locks import lock
from t2g_jax.study import runner


@pytest.mark.parametrize("what", ["file", "folder"])
def test_one_at_a_time(tmp_path, what):
    path = tmp_path if what == "folder" else tmp_path / "file"
    if what == "file":
        path.touch()
    first, second = (os.open(path, os.O_RDONLY) for _ in range(2))
    assert lock(first)
    assert not lock(second)
    # A process that was given the lock keeps it when the one that took it is gone.
    sleeper = [sys.executable, "-c", "import sys; sys.stdin.read()"]
    with subprocess.Popen(sleeper, stdin=subprocess.PIPE, pass_fds=(first,)) as child:
        os.close(first)
        assert not lock(second)
        child.stdin.close()
        child.wait()
    assert lock(second)
    os.close(second)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF])
def test_a_file_system_without_locks_can_be_written_to(tmp_path, monkeypatch, number):
    def refuse(descriptor, *, blocking):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(filelock, "lock_descriptor", refuse)
    with Journal(tmp_path / "journal.jsonl") as journal:
        journal.append({"id": "a"})
    with runner._locked(tmp_path / "study"), claimed(tmp_path / "run"):
        pass


def test_other_errors_are_told(tmp_path, monkeypatch):
    def refuse(descriptor, *, blocking):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(filelock, "lock_descriptor", refuse)
    with pytest.raises(OSError, match="Input/output error"):
        Journal(tmp_path / "journal.jsonl")
