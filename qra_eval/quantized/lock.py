"""Work that one process does while others that need its result wait: quantizing a bank, measuring sensitivities."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from qra_eval.models.loaded import unwritable_cache
from qra_search.evaluation.evaluator import Progress
from qra_search.files import write_text
from qra_search.log.trial_log import describe_process

WAIT_SECONDS = 1.0


@contextmanager
def lock_work(lock_file: Path, work: str, progress: Progress | None) -> Iterator[None]:
    """Hold a lock, once no other process does; the kernel frees it when its process ends.

    Args:
        lock_file: its folder is made.
        work: what the holder does, for those that wait: `quantizes the same weights`.
        progress: called with the holder and its work, 0 and 1, while this process waits.
    """
    try:
        lock_file.parent.mkdir(parents=True, exist_ok=True)
        lock_file.touch()
    except OSError as error:
        raise unwritable_cache(lock_file.parent, error) from error
    lock, holder = FileLock(lock_file), lock_file.with_suffix(".holder")
    while not lock.is_locked:
        try:
            lock.acquire(timeout=WAIT_SECONDS)
        except Timeout:
            if progress is not None:
                owner = holder.read_text() if holder.is_file() else "another process"
                progress(f"wait for {owner}: it {work}", 0, 1)
    try:
        write_text(holder, describe_process(os.getpid()))
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()
