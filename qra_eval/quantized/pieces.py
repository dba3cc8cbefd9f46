"""Pieces of work that processes on one folder deal among themselves: whoever comes to one first makes it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from qra_search.evaluation.evaluator import Progress
from qra_search.files import read_json, write_json
from qra_search.log.trial_log import describe_writer, this_process

WAIT_SECONDS = 1.0


@contextmanager
def claimed(lock_file: Path) -> Iterator[bool]:
    """Whether a piece is this process's to make: if so no other makes it until the context or the process ends."""
    lock, holder = FileLock(lock_file), lock_file.with_suffix(".json")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        yield False
        return
    try:
        write_json(holder, this_process(os.getpid()))
        yield True
    finally:
        holder.unlink(missing_ok=True)
        if os.name == "posix":  # elsewhere what is open cannot be removed
            lock_file.unlink(missing_ok=True)
        lock.release()


def await_others(lock_files: Iterable[Path], progress: Progress | None, why: str) -> None:
    """Wait until nobody is at any of some pieces.

    Args:
        progress: called with who that is, 0 and 1.
        why: what the other does, for the message.
    """
    for lock_file in lock_files:
        while True:
            try:
                with FileLock(lock_file, timeout=WAIT_SECONDS):
                    break
            except Timeout:
                if progress is not None:
                    who = describe_writer(read_json(lock_file.with_suffix(".json")) or {})
                    progress(f"wait for {who}: it {why}", 0, 1)
