"""Files that are replaced as a whole, and JSON."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from qra_search.errors import BadInput


@contextmanager
def replace_file(path: str | Path, *, durable: bool = False) -> Iterator[Path]:
    """A file beside `path` to write to, which replaces it at the end, or is removed if writing fails.

    Two processes may write one file: each has its own beside it, and the last replaces it.

    Args:
        durable: wait until it is on the disk before it replaces `path`: for what cannot be made again.
    """
    path = Path(path)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        umask = os.umask(0)
        os.umask(umask)
        partial.chmod(0o666 & ~umask)  # safetensors writes files for their owner alone, whatever it allows
        if durable:
            sync_to_disk(partial)
        partial.replace(path)
        if durable:
            sync_to_disk(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: str | Path, text: str, *, durable: bool = False) -> None:
    """Write a text so that a reader never sees half a file; `?` for what is no text, as in a path of other bytes."""
    with replace_file(path, durable=durable) as partial:
        partial.write_text(text, encoding="utf-8", errors="replace")


def write_json(path: str | Path, data: Any, *, durable: bool = False) -> None:
    """Write JSON so that a reader never sees half a file; raises ValueError for a number that is not finite."""
    write_text(path, json.dumps(data, indent=1, allow_nan=False) + "\n", durable=durable)


def read_json(path: Path) -> Any:
    """Content of a JSON file, None if there is none; raises BadInput if it is not JSON."""
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{path} is not JSON ({error}): fix the file, or give another one") from None


def sync_to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
