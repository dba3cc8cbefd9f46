"""Reads a GGUF file's metadata and tensors, quickly, and trusting nothing that the file says of itself."""

from __future__ import annotations

import math
import mmap
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_DIMENSIONS = 4
DEFAULT_ALIGNMENT = 32
MAX_ALIGNMENT = 1 << 20

_STRING, _ARRAY = 8, 9
_SCALARS = {
    0: "<B",
    1: "<b",
    2: "<H",
    3: "<h",
    4: "<I",
    5: "<i",
    6: "<f",
    7: "<?",
    10: "<Q",
    11: "<q",
    12: "<d",
}
_LEAST_KEY_VALUE_BYTES = 8 + 4 + 1
_LEAST_TENSOR_BYTES = 8 + 4 + 8 + 4 + 8


class BadGGUF(ValueError):
    """A file that is no GGUF file, or a broken one; the message is one line with the file's name and the fault."""


@dataclass(frozen=True)
class TensorEntry:
    """Where a tensor lies in the file.

    Attributes:
        shape: in torch's order, slowest dimension first.
        type: number of the ggml type.
        offset: from the start of the file, in bytes.
        nbytes: bytes that it takes.
    """

    name: str
    shape: tuple[int, ...]
    type: int
    offset: int
    nbytes: int


@dataclass(frozen=True)
class GGUFFile:
    """Metadata and table of tensors of one file; the weights are read on demand."""

    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, TensorEntry]

    def read(self, name: str) -> np.ndarray:
        """A tensor's values, dequantized: float32, of the entry's shape."""
        from gguf import GGMLQuantizationType, dequantize

        entry = self.tensors[name]
        with open(self.path, "rb") as file:
            file.seek(entry.offset)
            raw = np.fromfile(file, dtype=np.uint8, count=entry.nbytes)
        if raw.nbytes != entry.nbytes:
            raise BadGGUF(f"{self.path}: tensor {name!r} ends beyond the file, which has changed since it was opened")
        kind = GGMLQuantizationType(entry.type)
        plain = {GGMLQuantizationType.F32: np.float32, GGMLQuantizationType.F16: np.float16}
        if kind in plain:
            values = raw.view(plain[kind]).astype(np.float32, copy=False)
        else:
            try:
                values = dequantize(raw.reshape(math.prod(entry.shape[:-1]), -1), kind)
            except NotImplementedError:
                raise BadGGUF(
                    f"{self.path}: tensor {name!r} is of type {kind.name}, which `gguf` cannot read"
                ) from None
        return values.reshape(entry.shape)


def read_gguf(path: str | Path) -> GGUFFile:
    """Read metadata and table of tensors; every count and offset is checked against the file's size first.

    Memory is bounded by a small multiple of the header's size, whatever the file says.

    Raises:
        BadGGUF: not a GGUF file, of another version or byte order, truncated, or not consistent.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        if size < 24:
            raise BadGGUF(f"{path}: {size} bytes are too few for a GGUF file")
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _parse(path, _Cursor(path, data, size))
    except OSError as error:
        raise BadGGUF(f"{path}: cannot be read ({error.strerror or error})") from error


class _Cursor:
    """A position in the mapped file; reading beyond its end raises BadGGUF."""

    def __init__(self, path: Path, data: mmap.mmap, size: int):
        self.path, self.data, self.size, self.position = path, data, size, 0

    @property
    def left(self) -> int:
        return self.size - self.position

    def need(self, count: int, what: str) -> None:
        if count > self.left:
            raise BadGGUF(f"{self.path}: truncated or broken, {what} needs {count} bytes, {self.left} are left")

    def unpack(self, form: str, what: str) -> Any:
        self.need(struct.calcsize(form), what)
        (value,) = struct.unpack_from(form, self.data, self.position)
        self.position += struct.calcsize(form)
        return value

    def text(self, what: str) -> str:
        length = self.unpack("<Q", what)
        self.need(length, what)
        start, self.position = self.position, self.position + length
        try:
            return self.data[start : self.position].decode("utf-8")
        except UnicodeDecodeError:
            raise BadGGUF(f"{self.path}: {what} at byte {start} is not UTF-8") from None

    def texts(self, count: int, what: str) -> list[str]:
        """A run of strings; written out, since a vocabulary has hundreds of thousands of them."""
        self.need(8 * count, what)
        data, position, size = self.data, self.position, self.size
        length_at = struct.Struct("<Q").unpack_from
        values = []
        try:
            for _ in range(count):
                (length,) = length_at(data, position)
                position += 8
                if length > size - position:
                    raise BadGGUF(f"{self.path}: truncated or broken, a string of {what} ends beyond the file")
                values.append(data[position : position + length].decode("utf-8"))
                position += length
        except struct.error:
            raise BadGGUF(f"{self.path}: truncated or broken in {what}") from None
        except UnicodeDecodeError:
            raise BadGGUF(f"{self.path}: a string of {what} at byte {position} is not UTF-8") from None
        self.position = position
        return values

    def value(self, kind: int, what: str) -> Any:
        if kind in _SCALARS:
            return self.unpack(_SCALARS[kind], what)
        if kind == _STRING:
            return self.text(what)
        if kind != _ARRAY:
            raise BadGGUF(f"{self.path}: {what} has the unknown type {kind}")
        element, count = self.unpack("<I", what), self.unpack("<Q", what)
        if element == _STRING:
            return self.texts(count, what)
        if element not in _SCALARS:
            raise BadGGUF(f"{self.path}: {what} is an array of the unsupported type {element}")
        width = struct.calcsize(_SCALARS[element])
        self.need(count * width, what)
        start, self.position = self.position, self.position + count * width
        return np.frombuffer(self.data[start : self.position], dtype=np.dtype(_SCALARS[element])).tolist()


def _parse(path: Path, cursor: _Cursor) -> GGUFFile:
    if cursor.data[:4] != MAGIC:
        raise BadGGUF(f"{path}: not a GGUF file, it starts with {cursor.data[:4]!r} instead of {MAGIC!r}")
    cursor.position = 4
    version = cursor.unpack("<I", "the version")
    if version not in VERSIONS:
        swapped = int.from_bytes(version.to_bytes(4, "little"), "big") in VERSIONS
        why = "of big-endian byte order" if swapped else f"of version {version}"
        raise BadGGUF(f"{path}: a GGUF file {why}, only little-endian files of version 2 and 3 are read")
    tensor_count, pair_count = cursor.unpack("<Q", "the tensor count"), cursor.unpack("<Q", "the metadata count")
    cursor.need(pair_count * _LEAST_KEY_VALUE_BYTES + tensor_count * _LEAST_TENSOR_BYTES, "the header")
    metadata: dict[str, Any] = {}
    for _ in range(pair_count):
        key = cursor.text("a metadata key")
        if key in metadata:
            raise BadGGUF(f"{path}: metadata {key[:80]!r} occurs twice")
        metadata[key] = cursor.value(cursor.unpack("<I", "a value's type"), f"metadata {key[:80]!r}")
    table = [_table_row(path, cursor) for _ in range(tensor_count)]
    alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if not isinstance(alignment, int) or not 0 < alignment <= MAX_ALIGNMENT or alignment & (alignment - 1):
        raise BadGGUF(f"{path}: alignment {alignment!r} is not a power of two up to {MAX_ALIGNMENT}")
    start = -(-cursor.position // alignment) * alignment
    return GGUFFile(path, metadata, _place(path, table, start, alignment, cursor.size))


def _table_row(path: Path, cursor: _Cursor) -> tuple[str, tuple[int, ...], int, int]:
    name = cursor.text("a tensor's name")
    what = f"tensor {name[:80]!r}"
    dimensions = cursor.unpack("<I", what)
    if not 1 <= dimensions <= MAX_DIMENSIONS:
        raise BadGGUF(f"{path}: {what} has {dimensions} dimensions, 1 to {MAX_DIMENSIONS} are allowed")
    shape = tuple(cursor.unpack("<Q", what) for _ in range(dimensions))[::-1]
    return name, shape, cursor.unpack("<I", what), cursor.unpack("<Q", what)


def _place(
    path: Path, table: list[tuple[str, tuple[int, ...], int, int]], start: int, alignment: int, size: int
) -> dict[str, TensorEntry]:
    """Entries with absolute offsets, checked to lie in the file, apart from each other."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    sizes = {int(kind): GGML_QUANT_SIZES[kind] for kind in GGMLQuantizationType if kind in GGML_QUANT_SIZES}
    entries: dict[str, TensorEntry] = {}
    for name, shape, kind, offset in table:
        what = f"{path}: tensor {name[:80]!r}"
        if name in entries:
            raise BadGGUF(f"{what} occurs twice")
        if kind not in sizes:
            raise BadGGUF(f"{what} has the unknown ggml type {kind}: a newer `gguf` package may know it")
        block, block_bytes = sizes[kind]
        if min(shape) < 1 or shape[-1] % block:
            raise BadGGUF(f"{what} has shape {shape}, rows of whole blocks of {block} are needed")
        nbytes = math.prod(shape) // block * block_bytes
        if offset % alignment or start + offset + nbytes > size:
            raise BadGGUF(f"{what} lies at bytes {start + offset} to {start + offset + nbytes}, the file has {size}")
        entries[name] = TensorEntry(name, shape, kind, start + offset, nbytes)
    placed = sorted(entries.values(), key=lambda entry: entry.offset)
    for before, after in zip(placed, placed[1:], strict=False):
        if before.offset + before.nbytes > after.offset:
            raise BadGGUF(f"{path}: tensors {before.name[:80]!r} and {after.name[:80]!r} overlap")
    return entries


def file_digest(path: str | Path, *, blocks: int = 4096, block_bytes: int = 1 << 16) -> str:
    """Hash of a file's size and of up to `blocks` evenly spaced blocks: all of a file up to 256 MiB, a sample beyond.

    The first and the last block are always among them.
    """
    import hashlib

    size = os.path.getsize(path)
    digest = hashlib.sha256(str(size).encode())
    count = -(-size // block_bytes)
    chosen = range(count) if count <= blocks else np.linspace(0, count - 1, blocks).astype(int)
    with open(path, "rb") as file:
        for index in chosen:
            file.seek(int(index) * block_bytes)
            digest.update(file.read(block_bytes))
    return digest.hexdigest()[:16]
