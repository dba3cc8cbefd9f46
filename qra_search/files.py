"""JSON files that a reader never sees half of, and that are never read without a limit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

MAX_JSON_BYTES = 256 << 20


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
