"""Pieces of work that processes on one folder deal among themselves: whoever comes to one first makes it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

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


class Pieces:
    """What the pieces of one work gave, by name, as plain data; kept in a folder, so that what was killed goes on.

    Args:
        folder: named by all that the work follows from.
        why: what who makes a piece does, for those that wait.
    """

    def __init__(self, folder: Path, progress: Progress | None, why: str):
        self.folder, self.progress, self.why = folder, progress, why
        self._alone = True

    @contextmanager
    def own(self, name: str) -> Iterator[bool]:
        """Whether a piece is this process's to make, and to `keep` before the context ends."""
        with claimed(self.folder / f"{name}.lock") as free:
            own = free and not self._file(name).is_file()
            self._alone &= own
            yield own

    def keep(self, name: str, data: Any) -> None:
        """What a piece gave."""
        write_json(self._file(name), data)

    def gathered(self, names: Sequence[str], work: Callable[[], None]) -> list[Any]:
        """What each piece gave; `work` makes those that nobody else is at.

        Raises:
            FileNotFoundError: another process, which made them all, has done with them.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        mark = self.folder / "begun"
        mark.touch()
        while any(not self._file(name).is_file() for name in names):
            work()
            left = [name for name in names if not self._file(name).is_file()]
            await_others([self.folder / f"{name}.lock" for name in left], self.progress, self.why)
            if not mark.is_file():  # locks make a folder that is gone anew
                raise FileNotFoundError(self.folder)
        found = [read_json(self._file(name)) for name in names]
        if None in found:
            raise FileNotFoundError(self.folder)
        return found

    def forget(self) -> None:
        """Remove what no other process may still read."""
        if self._alone:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _file(self, name: str) -> Path:
        return self.folder / f"{name}-made.json"
