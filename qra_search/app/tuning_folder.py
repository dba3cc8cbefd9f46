"""The folder of one tuning in a run: its record, written last, whose figures never change, and what it leaves."""

from __future__ import annotations

import hashlib
import json
import math
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from qra_search.errors import BadInput
from qra_search.files import read_json, write_json, write_text
from qra_search.schemas import TuningRecord

RECORD_FORMAT = "qra-tuning/1"
RECORD_ADAPTER = TypeAdapter(TuningRecord)
LOCK_FILE, OWNER_FILE = ".lock", ".owner"
CURVE_FILE, CHECKPOINT_FILE = "curve.jsonl", "checkpoint.safetensors"
ADAPTER_FOLDER, BASE_FILE = "adapter", "quantized.safetensors"


class TuningFolder:
    """`tunings/<id>/` of a run."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.id = self.path.name
        self.record_file = self.path / "record.json"
        self.adapter = self.path / ADAPTER_FOLDER

    def record(self) -> TuningRecord | None:
        """The record, None if the tuning has not finished; raises BadInput if the file is damaged."""
        data = read_json(self.record_file)
        return None if data is None else record_from_dict(data, self.record_file)

    def write(self, record: TuningRecord) -> None:
        """Finish the tuning: write its record, and remove its checkpoint."""
        write_json(self.record_file, record_to_dict(record), durable=True)
        (self.path / CHECKPOINT_FILE).unlink(missing_ok=True)

    @contextmanager
    def lock(self, *, wait: bool = False) -> Iterator[bool]:
        """Whether this process may tune here while the context lasts: False if another one does."""
        from filelock import FileLock, Timeout  # as in the trial log

        self.path.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.path / LOCK_FILE, thread_local=False)
        try:
            lock.acquire(timeout=-1 if wait else 0)
        except Timeout:
            yield False
            return
        try:
            write_text(self.path / OWNER_FILE, f"process {os.getpid()} on {socket.gethostname()}")
            yield True
        finally:
            lock.release()

    @property
    def owner(self) -> str:
        """The process that locked the folder last, for messages; a lock's own file is emptied by all who try it."""
        try:
            return (self.path / OWNER_FILE).read_text("utf-8")
        except OSError:
            return "another process"


def record_to_dict(record: TuningRecord) -> dict[str, Any]:
    """A record as plain data, with a digest of itself. Scores that are not finite are left out."""
    fields = RECORD_ADAPTER.dump_python(record, mode="json")
    fields["row_scores"] = {n: row for n, row in fields["row_scores"].items() if all(map(math.isfinite, row))}
    means = fields["commonest_scores"].items()
    fields["commonest_scores"] = {name: mean for name, mean in means if math.isfinite(mean)}
    data = {"format": RECORD_FORMAT, "id": record.id, **fields}
    return {**data, "digest": _digest(data)}


def record_from_dict(data: Any, file: Path) -> TuningRecord:
    """The inverse of `record_to_dict`; raises BadInput for another format, or damage."""
    content = (
        {name: value for name, value in data.items() if name != "digest"} if isinstance(data, dict) else {}
    )
    if content.get("format") != RECORD_FORMAT or data.get("digest") != _digest(content):
        raise BadInput(
            f"{file} is damaged, or was written by another version: delete {file.parent} and run "
            "`qra finetune` again"
        )
    return RECORD_ADAPTER.validate_python(
        {n: value for n, value in content.items() if n not in ("format", "id")}
    )


def _digest(data: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()
