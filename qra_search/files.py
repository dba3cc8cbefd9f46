"""JSON files that a reader never sees half of, and digests beside large files that tell whether they are whole."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

MAX_JSON_BYTES = 256 << 20
DIGEST_SUFFIX = ".sha256"
BLOCK = 1 << 20


def write_json(path: Path, data: Any) -> None:
    """Write JSON so that a reader never sees half a file."""
    partial = path.with_suffix(path.suffix + ".partial")
    partial.write_text(json.dumps(data, indent=1, allow_nan=False) + "\n")
    partial.replace(path)


def read_json(path: Path) -> Any:
    """Content of a JSON file; None where there is no file.

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


def write_digest(path: Path) -> None:
    """Write the SHA-256 of a file beside it, in a line that `sha256sum -c` reads."""
    beside = digest_file(path)
    partial = beside.with_suffix(f".{os.getpid()}.partial")
    partial.write_text(f"{_digest(path)}  {path.name}\n")
    partial.replace(beside)


def is_whole(path: Path) -> bool | None:
    """Whether a file has the bytes that it was written with; None if no digest was written beside it."""
    beside = digest_file(path)
    return beside.read_text().split()[:1] == [_digest(path)] if beside.is_file() else None


def digest_file(path: Path) -> Path:
    """Where the digest of a file is."""
    return path.with_name(path.name + DIGEST_SUFFIX)


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()
