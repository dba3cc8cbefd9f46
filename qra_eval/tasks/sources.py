"""Rows of a user's own data: a file of any of the usual kinds, a folder with one for each split, or a hub data set."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from qra_eval.tasks.example import SPLITS, SplitName
from qra_eval.tasks.files import MAX_LINE_BYTES, check_hub, read_jsonl, unavailable
from qra_search.files import MAX_JSON_BYTES, not_utf8

Row = tuple[str, dict[str, Any]]
"""Where it stands, for messages, and what it holds."""
STEMS: Mapping[SplitName, Sequence[str]] = {
    "calibration": ("train", "calibration"),
    "validation": ("validation", "valid", "val", "dev", "eval"),
    "test": ("test",),
}
"""Names of a split's file, and of a data set's split."""
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def is_file_name(name: str) -> bool:
    """Whether a name ends as a file that can be read does."""
    return Path(name).suffix.lower() in READERS


def is_hub_name(name: str) -> bool:
    """Whether it may be a data set's name on the hub, `owner/name`, and is no path here."""
    return bool(HUB_NAME.fullmatch(name)) and not is_file_name(name) and not Path(name).exists()


def read_rows(path: str | Path) -> list[Row]:
    """The rows of a file, by its ending.

    Raises:
        ValueError: it cannot be read, is of no known kind, or has no rows; one line with the file, and line or row.
    """
    path = Path(path)
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise ValueError(f"{path}: data files end in {', '.join(READERS)}; for running text use --task text")
    try:
        rows = list(reader(path))
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror or error})") from error
    if not rows:
        raise ValueError(f"{path} has no rows: it is empty")
    return rows


def split_files(data: Path) -> dict[SplitName, Path | None]:
    """The file of each split, None if it is to be split off another.

    Raises:
        ValueError: no such file or folder, or a folder without a file to train on.
    """
    if data.is_file():
        return {"calibration": data, "validation": None, "test": None}
    if not data.is_dir():
        raise ValueError(
            f"no file or folder {str(data)!r}: a file ({', '.join(READERS)}), or a folder with train.jsonl, is needed"
        )
    files = {
        name: next((p for stem in stems for end in READERS if (p := data / f"{stem}{end}").is_file()), None)
        for name, stems in STEMS.items()
    }
    if files["calibration"] is None:
        raise ValueError(f"{data} has no train.jsonl (nor {', '.join(f'train{end}' for end in list(READERS)[1:])})")
    return files


def hub_splits(
    name: str, subset: str | None = None, splits: Mapping[str, str] | None = None
) -> dict[SplitName, list[Row]]:
    """The rows of a data set's splits, by the usual names or by those given; what it lacks is left out.

    Args:
        name: `owner/name`, or a folder that `datasets` reads.
        subset: of a data set that has several ("config" in `datasets`).
        splits: the data set's name of a split of ours, such as `{"calibration": "train_sft"}`.

    Raises:
        ValueError: it could not be downloaded, or has no split to train on; one line.
    """
    from datasets import load_dataset

    unknown = set(splits or ()) - set(SPLITS)
    if unknown:
        raise ValueError(f"splits are {', '.join(SPLITS)}, got {min(unknown)!r}")
    if is_hub_name(name):
        check_hub(name)
    try:
        loaded = load_dataset(name, subset)
    except Exception as error:  # of a dozen kinds: no network, no such name, a subset needed, a broken file
        raise unavailable(name, error) from error
    wanted = {ours: (splits[ours],) if splits and ours in splits else STEMS[ours] for ours in SPLITS}
    found = {ours: next((n for n in names if n in loaded), None) for ours, names in wanted.items()}
    for ours, theirs in (splits or {}).items():
        if theirs not in loaded:
            raise ValueError(f"data set {name!r} has no split {theirs!r} for {ours}: it has {', '.join(loaded)}")
    if found["calibration"] is None:
        raise ValueError(
            f"data set {name!r} has no split to tune on, it has {', '.join(loaded)}: name one, such as "
            f"--set task.options.splits.calibration={next(iter(loaded))}"
        )
    return {
        ours: [(f"{name}, {theirs} row {index + 1}", dict(row)) for index, row in enumerate(loaded[theirs])]
        for ours, theirs in found.items()
        if theirs is not None
    }


def _jsonl(path: Path) -> Iterator[Row]:
    return ((f"{path}, line {number}", row) for number, row in read_jsonl(path))


def _json(path: Path) -> Iterator[Row]:
    text = _text(path)
    try:
        rows = json.loads(text) if text.strip() else []
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON ({error}); of one object a line, name it .jsonl") from None
    if not isinstance(rows, list):
        raise ValueError(
            f"{path} holds a {type(rows).__name__}: a list of objects is needed, or .jsonl with one a line"
        )
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise ValueError(f"{path}, row {number} is a {type(row).__name__}: an object is needed")
        yield f"{path}, row {number}", row


def _table(path: Path) -> Iterator[Row]:
    text = _text(path)
    csv.field_size_limit(MAX_LINE_BYTES)
    reader = csv.reader(
        io.StringIO(text, newline=""), delimiter="\t" if path.suffix.lower() == ".tsv" else ",", strict=True
    )
    try:
        header = next(reader, [])
        for fields in reader:
            if fields:
                if len(fields) != len(header):
                    raise ValueError(
                        f"{path}, line {reader.line_num}: {len(fields)} fields, the first line names {len(header)} "
                        f"columns: put texts that hold a comma or a new line into double quotes"
                    )
                yield f"{path}, line {reader.line_num}", dict(zip(header, fields, strict=True))
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num}: {error}") from None


def _text(path: Path) -> str:
    if path.stat().st_size > MAX_JSON_BYTES:
        raise ValueError(f"{path} has {path.stat().st_size} bytes, at most {MAX_JSON_BYTES} are read: use .parquet")
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise not_utf8(path, error) from None


def _parquet(path: Path) -> Iterator[Row]:
    from pyarrow import ArrowException, parquet

    if not path.stat().st_size:
        return
    try:
        rows = parquet.read_table(path).to_pylist()
    except ArrowException as error:
        raise ValueError(f"{path} is no Parquet file that can be read ({str(error).splitlines()[0]})") from error
    yield from ((f"{path}, row {number}", row) for number, row in enumerate(rows, start=1))


READERS: Mapping[str, Callable[[Path], Iterator[Row]]] = {
    ".jsonl": _jsonl, ".json": _json, ".csv": _table, ".tsv": _table, ".parquet": _parquet,
}  # fmt: skip
"""What reads a file, by its ending."""
