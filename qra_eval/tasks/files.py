"""Rows of a data set: from JSON Lines files in a folder, or from the hub."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from qra_eval import hub
from qra_search.files import not_utf8

MAX_LINE_BYTES = 16 << 20


def read_jsonl(path: str | Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, row) of a JSON Lines file; blank lines are left out.

    Raises:
        ValueError: the file cannot be read, or a line is not a JSON object; the message names file and line.
    """
    path = Path(path)
    try:
        with open(path, "rb") as file:
            for number, line in enumerate(iter(lambda: file.readline(MAX_LINE_BYTES + 1), b""), start=1):
                if len(line) > MAX_LINE_BYTES:
                    raise ValueError(f"{path}, line {number}: longer than {MAX_LINE_BYTES >> 20} MiB")
                if line.strip():
                    if number == 1 and line.lstrip().startswith(b"["):
                        raise ValueError(
                            f"{path} is a JSON array, and .jsonl has one object a line: rename it to "
                            f"{path.with_suffix('.json').name}, or run `jq -c '.[]' {path.name} > rows.jsonl`"
                        )
                    yield number, _object(path, number, line)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror or error})") from error


def field_of(row: dict[str, Any], name: str, kind: type | tuple[type, ...], where: str) -> Any:
    """A row's field, checked to be there and of a type.

    Raises:
        ValueError: it is not; the message says where, what was found and what is needed.
    """
    kinds = kind if isinstance(kind, tuple) else (kind,)
    wanted = " or ".join(k.__name__ for k in kinds)
    if name not in row:
        raise ValueError(f"{where}: no field {name!r} ({wanted}), only {', '.join(map(repr, row)) or 'none'}")
    value = row[name]
    if not isinstance(value, kind) or (isinstance(value, bool) and bool not in kinds):
        raise ValueError(f"{where}: field {name!r} is {_short(value)}, a {wanted} is needed")
    return value


def folder_rows(folder: str | Path, stem: str, split: str) -> list[tuple[str, dict[str, Any]]]:
    """(where, row) for the rows of `<folder>/<stem>_<split>.jsonl`.

    Raises:
        ValueError: there is no such folder or file, or no row in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder: give the one with {stem}_train.jsonl and {stem}_test.jsonl")
    path = folder / f"{stem}_{split}.jsonl"
    if not path.is_file():
        raise ValueError(f"{folder} has no {path.name}: task data are {stem}_train.jsonl and {stem}_test.jsonl")
    rows = [(f"{path}, line {number}", row) for number, row in read_jsonl(path)]
    if not rows:
        raise ValueError(f"{path} has no rows")
    return rows


def hub_rows(dataset: str, config: str | None, split: str) -> list[tuple[str, dict[str, Any]]]:
    """(where, row) for the rows of a data set on the hub.

    Raises:
        ValueError: it cannot be had, for want of a network or of the data set; the message is one line.
    """
    from datasets import load_dataset

    check_hub(dataset)
    try:
        loaded = load_dataset(dataset, config, split=split)
    except Exception as error:
        raise unavailable(dataset, error) from error
    return [(f"{dataset}, {split} row {index}", dict(row)) for index, row in enumerate(loaded)]


def check_hub(dataset: str) -> None:
    """Raises ValueError if the hub does not give a data set, and it was not downloaded before; asks once."""
    reason = hub.refusal("dataset", dataset)
    if reason is not None:
        raise unavailable(dataset, reason)


def unavailable(dataset: str, error: Exception | str) -> ValueError:
    """The error for a data set that the hub did not give."""
    first = (str(error).strip() or type(error).__name__).splitlines()[0]
    return ValueError(
        f"data set {dataset!r} could not be downloaded ({first}): check its name and the network, or give its folder "
        "with --data"
    )


def _object(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        row = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
    except UnicodeDecodeError as error:
        raise not_utf8(path, error, number) from None
    except (json.JSONDecodeError, RecursionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{path}, line {number}: {_short(line)} is not JSON ({reason})") from None
    if not isinstance(row, dict):
        raise ValueError(f"{path}, line {number}: {_short(row)} is not a JSON object")
    return row


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
