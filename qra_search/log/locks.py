"""A lock for one writer at a time, which the kernel frees when its process dies, and which says who holds it."""

from __future__ import annotations

import json
import os
import socket
import sys
import time
import weakref
from datetime import datetime
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # not POSIX: there is no lock that dies with its process, and nothing is refused
    fcntl = None  # type: ignore[assignment]


PATIENCE = 0.2
"""Seconds that a lock is waited for: a reader that asks whether it is free holds it for an instant."""


class Locked(RuntimeError):
    """Another process (or another part of this one) holds the lock; `holder` is what it wrote of itself."""

    def __init__(self, path: Path, holder: dict[str, Any]):
        super().__init__(f"{path} is held by {describe_holder(holder)}")
        self.holder = holder


class WriterLock:
    """An exclusive lock on a side file.

    The file stays where it is when the lock is free: removing it would let two processes lock two files of one name.
    A child made by `fork` gives up its copy, so that it cannot outlive the holder with the lock.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._file: int | None = None

    @property
    def held(self) -> bool:
        """Whether this object holds the lock."""
        return self._file is not None

    def acquire(self) -> None:
        """Take the lock, or go on holding it.

        Raises:
            Locked: somebody else holds it.
            OSError: the side file cannot be written, or its file system has no locks.
        """
        if self._file is not None:
            return
        file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            _lock(file)
            os.ftruncate(file, 0)
            os.pwrite(file, json.dumps(_this_process()).encode(), 0)
        except BlockingIOError:
            os.close(file)
            raise Locked(self.path, self.holder()) from None
        except BaseException:
            os.close(file)
            raise
        self._file = file
        _held.add(self)

    def release(self) -> None:
        """Free the lock where it is held."""
        file, self._file = self._file, None
        _held.discard(self)
        if file is not None:
            os.close(file)

    def is_free(self) -> bool:
        """Whether nobody, this object included, holds it now. Reads only."""
        if fcntl is None or not self.path.is_file():
            return True
        file = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        finally:
            os.close(file)
        return True

    def holder(self) -> dict[str, Any]:
        """What the last holder wrote of itself: pid, host, started, command; empty where nothing can be read."""
        try:
            data = json.loads(self.path.read_bytes() or b"{}")
        except (OSError, ValueError):
            return {}
        return data if isinstance(data, dict) else {}

    def __del__(self) -> None:
        self.release()


def describe_holder(holder: dict[str, Any]) -> str:
    """A holder in words: `process 123 on host, since 2025-01-02 10:11:12 (qra search ...)`."""
    if "pid" not in holder:
        return "another process"
    return (
        f"process {holder['pid']} on {holder.get('host', 'an unknown host')}, "
        f"since {holder.get('started', 'an unknown time')} ({holder.get('command') or 'unknown command'})"
    )


def _lock(file: int) -> None:
    if fcntl is None:
        return
    patience_ends = time.monotonic() + PATIENCE
    while True:
        try:
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > patience_ends:
                raise
            time.sleep(PATIENCE / 20)


def _this_process() -> dict[str, Any]:
    return {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "started": datetime.now().isoformat(" ", "seconds"),
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])[:200],
    }


_held: weakref.WeakSet[WriterLock] = weakref.WeakSet()


def _drop_in_forked_child() -> None:
    for lock in list(_held):
        lock.release()  # closes this copy of the file only: the parent's lock stays


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_drop_in_forked_child)
