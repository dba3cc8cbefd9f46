"""Safetensors files that know whether they are whole: each tensor's checksum is kept in the file's own header."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from qra_search.files import replacing

CHECKSUMS = "crc32"
"""Key of the header's metadata: a JSON object from a tensor's name to the CRC-32 of its bytes."""


class DamagedFile(ValueError):
    """A tensor file that is cut off, foreign, or holds other bytes than were written."""


def write_tensors(tensors: Mapping[str, Tensor], path: str | Path) -> None:
    """Write tensors with their checksums; a reader sees the whole file or none."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    sums = json.dumps({name: checksum(tensor) for name, tensor in kept.items()}, sort_keys=True)
    with replacing(path) as partial:
        save_file(kept, partial, metadata={CHECKSUMS: sums})


def open_tensors(path: str | Path, *, device: str = "cpu") -> Any:
    """The opened file (`keys`, `get_tensor`), memory-mapped, after every tensor was compared with its checksum.

    A CRC-32 finds every flip of up to 32 neighbouring bits and misses one in four thousand million of the others; it
    is read at about the speed of a disk.

    Raises:
        DamagedFile: it cannot be read, has no checksums, or a tensor's bytes are not those that were written.
        OSError: there is no such file.
    """
    try:
        file = safe_open(path, framework="pt", device="cpu")
        found = (file.metadata() or {}).get(CHECKSUMS)
        sums = json.loads(found) if found else None
        if not isinstance(sums, dict) or sums.keys() != set(file.keys()):
            raise DamagedFile(f"{path} has no checksums for its tensors: it is damaged, or of an older version")
        wrong = [name for name, value in sums.items() if checksum(file.get_tensor(name)) != value]
    except (SafetensorError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DamagedFile(f"{path} is no whole tensor file ({error})") from error
    if wrong:
        raise DamagedFile(f"{path} is damaged: {len(wrong)} tensors differ from what was written, such as {wrong[0]}")
    return file if device == "cpu" else safe_open(path, framework="pt", device=device)


def checksum(tensor: Tensor) -> int:
    """CRC-32 of a tensor's dtype, shape and bytes."""
    head = f"{tensor.dtype} {tuple(tensor.shape)}".encode()
    data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return zlib.crc32(data.numpy(), zlib.crc32(head))  # type: ignore[arg-type]
