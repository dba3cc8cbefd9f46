"""Reads table rows out of the pages of a damaged SQLite file, without its indexes, its schema or its own reader.

The layout is that of https://www.sqlite.org/fileformat2.html; rows are to be checked by their own checksums.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from qra_search.log.walfile import frames, page_size_of

LEAF = 0x0D
FIRST_PAGE_HEADER = 100
MAX_PAYLOAD = 1 << 28
_INTEGERS = {1: 1, 2: 2, 3: 3, 4: 4, 5: 6, 6: 8}


def rows(path: str | Path) -> Iterator[tuple[int, tuple[Any, ...]]]:
    """Row number and columns of everything that looks like a row, older versions of a row before newer ones.

    First those of the database file, then as the valid frames of its write-ahead file change it, then as each of
    the others does.
    """
    content = Path(path).read_bytes()
    size = page_size_of(content)
    pages = {i + 1: content[i * size : (i + 1) * size] for i in range(len(content) // size)}
    yield from _rows_of(pages, size)
    changed: dict[int, bytes] = {}
    for frame in frames(path):
        if not frame.valid and changed:
            yield from _rows_of({**pages, **changed}, size)
            pages.update(changed)
            changed = {}
        changed[frame.page] = frame.data
    if changed:
        yield from _rows_of({**pages, **changed}, size)


def _rows_of(pages: Mapping[int, bytes], size: int) -> Iterator[tuple[int, tuple[Any, ...]]]:
    for number, page in pages.items():
        if _is_leaf(number, page):
            yield from _leaf(number, page, pages, size)


def _is_leaf(number: int, page: bytes) -> bool:
    start = FIRST_PAGE_HEADER if number == 1 else 0
    return len(page) > start and page[start] == LEAF


def _leaf(number: int, page: bytes, pages: Mapping[int, bytes], size: int) -> Iterator[tuple[int, tuple[Any, ...]]]:
    start = FIRST_PAGE_HEADER if number == 1 else 0
    (cells,) = struct.unpack_from(">H", page, start + 3)
    for i in range(min(cells, (size - start - 8) // 2)):
        (at,) = struct.unpack_from(">H", page, start + 8 + 2 * i)
        try:
            yield _cell(page, at, pages, size)
        except (IndexError, KeyError, ValueError, struct.error, UnicodeDecodeError):
            continue  # a damaged cell: its row is missed, which is reported


def _cell(page: bytes, at: int, pages: Mapping[int, bytes], size: int) -> tuple[int, tuple[Any, ...]]:
    length, at = _varint(page, at)
    row, at = _varint(page, at)
    if length > MAX_PAYLOAD:
        raise ValueError("no row of a log is as long")
    most, least = size - 35, (size - 12) * 32 // 255 - 23
    local = length
    if length > most:
        local = least + (length - least) % (size - 4)
        local = local if local <= most else least
    payload = bytearray(page[at : at + local])
    following = struct.unpack_from(">I", page, at + local)[0] if local < length else 0
    while len(payload) < length:
        overflow = pages[following]
        (following,) = struct.unpack_from(">I", overflow, 0)
        payload += overflow[4 : 4 + length - len(payload)]
    return row, _record(bytes(payload))


def _record(payload: bytes) -> tuple[Any, ...]:
    end, at = _varint(payload, 0)
    kinds = []
    while at < end:
        kind, at = _varint(payload, at)
        kinds.append(kind)
    values: list[Any] = []
    for kind in kinds:
        value, at = _value(payload, kind, at)
        values.append(value)
    if at != len(payload):
        raise ValueError("the columns do not fill the row")
    return tuple(values)


def _value(payload: bytes, kind: int, at: int) -> tuple[Any, int]:
    if kind == 0:
        return None, at
    if kind in _INTEGERS:
        end = at + _INTEGERS[kind]
        return int.from_bytes(payload[at:end], "big", signed=True), end
    if kind == 7:
        return struct.unpack_from(">d", payload, at)[0], at + 8
    if kind in (8, 9):
        return kind - 8, at
    if kind < 12:
        raise ValueError("a reserved kind of column")
    end = at + (kind - 12) // 2
    content = payload[at:end]
    return (content.decode() if kind % 2 else content), end


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for i in range(9):
        byte = data[at + i]
        if i == 8:
            return value << 8 | byte, at + 9
        value = value << 7 | byte & 0x7F
        if byte < 0x80:
            return value, at + i + 1
    raise AssertionError("unreachable")
