"""Reads SQLite's write-ahead file, to tell a write that a crash broke off from writes that were damaged later.

SQLite itself stops silently at the first frame with a wrong checksum, and all that was committed after it is gone.
The layout is that of https://www.sqlite.org/fileformat2.html#the_write_ahead_log.
"""

from __future__ import annotations

import struct
import sys
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

HEADER, FRAME_HEADER = 32, 24
DEFAULT_PAGE_SIZE = 4096
_MAGIC = (0x377F0682, 0x377F0683)


@dataclass(frozen=True)
class Frame:
    """One page as it was written; `commits` marks the last one of a transaction."""

    page: int
    commits: bool
    valid: bool
    data: bytes


def wal_path(path: str | Path) -> Path:
    """The write-ahead file of a database."""
    return Path(f"{path}-wal")


def frames(path: str | Path) -> Iterator[Frame]:
    """Frames of the present round of a database's write-ahead file, in order; none where it has no such file.

    A frame is valid while its checksum, which runs over all frames before it, is right.
    """
    wal = wal_path(path)
    content = wal.read_bytes() if wal.is_file() else b""
    if len(content) < HEADER:
        return
    magic, _, size, _, salt1, salt2, sum1, sum2 = struct.unpack(">8I", content[:HEADER])
    big = bool(magic & 1)
    sums = _checksum(content[: HEADER - 8], (0, 0), big)
    valid = magic in _MAGIC and sums == (sum1, sum2)
    if not valid:
        size, salts = page_size_of(Path(path).read_bytes()[:18]), None
    else:
        salts = (salt1, salt2)
    for start in range(HEADER, len(content) - FRAME_HEADER - size + 1, FRAME_HEADER + size):
        page, pages, salt1, salt2, sum1, sum2 = struct.unpack(">6I", content[start : start + FRAME_HEADER])
        data = content[start + FRAME_HEADER : start + FRAME_HEADER + size]
        if salts is not None and salt1 != salts[0] and salt2 != salts[1]:
            valid = False
            continue  # left over from an earlier round: both salts change between rounds
        if valid:
            sums = _checksum(content[start : start + 8], sums, big)
            sums = _checksum(data, sums, big)
            valid = (salt1, salt2, *sums) == (*(salts or ()), sum1, sum2)
        yield Frame(page, pages > 0, valid, data)


def damaged_frames(path: str | Path) -> int:
    """Pages in the write-ahead file that SQLite will not read any more.

    A killed process leaves none: its last transaction lacks the mark of its end, but not a checksum.
    """
    return sum(not frame.valid for frame in frames(path))


def page_size_of(database: bytes) -> int:
    """Page size by the first bytes of a database file; SQLite's default where they make no sense."""
    size = int.from_bytes(database[16:18], "big")
    return size if size >= 512 and size & (size - 1) == 0 else DEFAULT_PAGE_SIZE


def _checksum(data: bytes, start: tuple[int, int], big: bool) -> tuple[int, int]:
    words = array("I", data)
    if big == (sys.byteorder == "little"):
        words.byteswap()
    s0, s1 = start
    for i in range(0, len(words), 2):
        s0 = (s0 + words[i] + s1) & 0xFFFFFFFF
        s1 = (s1 + words[i + 1] + s0) & 0xFFFFFFFF
    return s0, s1
