"""One writer of a file or folder at a time: a lock that ends with the process, however it ends."""

from __future__ import annotations

import errno

import filelock


def lock(descriptor: int) -> bool:
    """Takes the lock of an open file or folder; False if another process has it.

    Processes that inherit the descriptor hold the lock with this one. Some file systems have no
    locks, others (NFS) none of what is open for reading only: there nobody is kept out.
    """
    try:
        return filelock.lock_descriptor(descriptor, blocking=False)
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF):
            raise
        return True
