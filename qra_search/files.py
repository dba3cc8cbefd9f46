"""Files that a reader never sees half of, and JSON that is never read without a limit."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

MAX_JSON_BYTES = 256 << 20


@contextmanager
def replacing(path: str | Path, *, durable: bool = False) -> Iterator[Path]:
    """A file beside `path` to write to, which takes its place at the end, or is removed if writing fails.

    Two processes may write one file: each has its own beside it, and the last takes the place.

    Args:
        durable: on the disk, not only in the kernel's memory, before it takes the place: for what cannot be made again.
    """
    path = Path(path)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        if durable:
            _sync(partial)
        partial.replace(path)
        if durable and hasattr(os, "O_DIRECTORY"):
            _sync(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: str | Path, text: str, *, durable: bool = False) -> None:
    """Write a text so that a reader never sees half a file."""
    with replacing(path, durable=durable) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: str | Path, data: Any, *, durable: bool = False) -> None:
    """Write JSON so that a reader never sees half a file.

    Raises:
        ValueError: the data holds a number that is not finite.
    """
    write_text(path, json.dumps(data, indent=1, allow_nan=False) + "\n", durable=durable)


def read_json(path: Path) -> Any:
    """Content of a JSON file; None if there is no file.

    Raises:
        ValueError: the file is not JSON, or is larger or nested deeper than any that is written here.
    """
    if not path.is_file():
        return None
    if path.stat().st_size > MAX_JSON_BYTES:
        raise ValueError(f"{path} has {path.stat().st_size} bytes, at most {MAX_JSON_BYTES} are read")
    try:
        return json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{path} is not JSON ({error}): give another file; a run's own can be removed, its log has all"
        ) from None


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
