"""Safetensors files that a reader sees whole or not at all, with a digest beside them for `qra doctor`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from qra_search.errors import BadInput
from qra_search.files import replace_file, write_digest

HEADER = {"format": "pt"}
"""In the header of every file."""


class DamagedFile(BadInput):
    """A tensor file that is cut off or foreign."""


def write_tensors(
    tensors: Mapping[str, Tensor],
    path: str | Path,
    *,
    metadata: Mapping[str, str] | None = None,
    digest: bool = True,
) -> None:
    """Write tensors; a reader sees the whole file or none.

    Args:
        metadata: texts by name, in the file's header.
        digest: write its digest beside it, which a file that is there for a while does without.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replace_file(path, durable=not digest) as partial:
        ready = {name: t.cpu().contiguous() for name, t in tensors.items()}
        try:
            save_file(ready, partial, metadata={**HEADER, **(metadata or {})})
        except SafetensorError as error:  # what is written is ours: it is the disk
            raise OSError(f"{path} cannot be written ({error})") from error
    if digest:
        write_digest(path)


def open_tensors(path: str | Path, *, device: str = "cpu") -> Any:
    """The opened file (`keys`, `get_tensor`), memory-mapped; tensors are not compared with the digest.

    Raises:
        DamagedFile: it is not a complete safetensors file.
        OSError: there is no such file.
    """
    try:
        return safe_open(path, framework="pt", device=device)
    except SafetensorError as error:
        raise DamagedFile(f"{path} is not a complete tensor file ({error})") from error
