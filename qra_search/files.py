"""Files that are replaced as a whole, JSON that is read up to a limit, and digests of large files."""

from __future__ import annotations

import codecs
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from qra_search.errors import BadInput

MAX_HEADER_BYTES = 100 << 20
"""The largest header of a safetensors file that is read."""
DIGEST_SUFFIX = ".sha256"
BLOCK = 1 << 20


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
        partial.touch()
        mode = partial.stat().st_mode
        yield partial
        partial.chmod(mode)  # safetensors writes files for their owner alone, whatever the umask allows
        if durable:
            sync_to_disk(partial)
        partial.replace(path)
        if durable and hasattr(os, "O_DIRECTORY"):
            sync_to_disk(path.parent)
    except OSError as error:
        if error.filename == str(partial):
            error.filename, error.filename2 = str(path), None  # which the caller knows
        raise
    finally:
        partial.unlink(missing_ok=True)


def honour_umask(folder: Path) -> None:
    """Give every file in a folder the permissions that a new one has: safetensors writes for the owner alone."""
    with tempfile.TemporaryDirectory(dir=folder) as holder:
        probe = Path(holder) / "probe"
        probe.touch()
        mode = probe.stat().st_mode
    for file in folder.rglob("*"):
        if file.is_file():
            file.chmod(mode)


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
        raise BadInput(f"{path} is not JSON ({error}): give another file, or remove it") from None


def read_tensor_names(path: Path) -> list[str]:
    """Names of the tensors in a safetensors file, by its header alone; raises BadInput if it is none, or cut off."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        text = file.read(min(length, MAX_HEADER_BYTES))
    try:
        tensors = {name: entry for name, entry in json.loads(text).items() if name != "__metadata__"}
        end = 8 + length + max((entry["data_offsets"][1] for entry in tensors.values()), default=0)
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError):
        raise BadInput(f"{path} is not a safetensors file: download or save it again") from None
    if end > (size := path.stat().st_size):
        raise BadInput(f"{path} is truncated, it has {size} of {end} bytes: download or save it again")
    return list(tensors)


def make_encoding_error(path: Path, error: UnicodeDecodeError) -> ValueError:
    """The error for a file in another encoding, with the line of the first byte that is not UTF-8."""
    at = error.object.count(b"\n", 0, error.start) + 1
    encoding = "utf-16" if error.object[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "latin1"
    return ValueError(
        f"{path}, line {at}: is not UTF-8 (byte 0x{error.object[error.start]:02x}); convert the file, such as "
        f"`iconv -f {encoding} -t utf-8 {path.name} > utf8-{path.name}`"
    )


def sync_to_disk(path: Path) -> None:
    """Wait until a file or a folder's entries are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_digest(path: Path) -> None:
    """Write the SHA-256 of a file beside it, in a line that `sha256sum -c` reads."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    write_text(path.with_name(path.name + DIGEST_SUFFIX), f"{digest.hexdigest()}  {path.name}\n")
