"""Rows of data: of files of the usual kinds, of folders and of the hub, or as objects in Python.

JSON and CSV are read by the standard library, so that rows are what is written. The library `datasets` infers types: it
reads the text 2020-01-01 as a time, 4 beside 4.5 as 4.0, and 007 in a table as 7. It serves what has types: the hub.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from qra_eval import hub
from qra_eval.tasks.example import SPLITS, SplitName
from qra_search import plugins
from qra_search.errors import BadInput, first_line, make_type_error, shorten

Row = tuple[str, dict[str, Any]]
"""Where it stands, for messages, and what it holds."""
SPLIT_STEMS: Mapping[SplitName, Sequence[str]] = {
    "train": ("train",),
    "validation": ("validation", "valid", "val", "dev", "eval"),
    "test": ("test",),
}
"""Names of a split's file, and of a data set's split."""
HUB_NAME_PATTERN = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def is_data_path(name: str) -> bool:
    """Whether a name is that of a file that can be read, or of a folder, unless a task has it."""
    return name.lower().endswith(hub.ROW_SUFFIXES) or (
        Path(name).is_dir() and name not in plugins.list_names("tasks")
    )


def is_hub_name(name: str) -> bool:
    """Whether it may be a data set's name on the hub, `owner/name`, and is no path here."""
    return (
        bool(HUB_NAME_PATTERN.fullmatch(name))
        and not name.lower().endswith(hub.ROW_SUFFIXES)
        and not Path(name).exists()
    )


def read_splits(
    data: Any, subset: str | None = None, splits: Mapping[str, str] | None = None
) -> dict[SplitName, list[Row]]:
    """The rows of each split that the data has; what it lacks is left out. Raises BadInput if it cannot be read.

    Args:
        data, subset, splits: as of `JSONLTask`. A file, a `Dataset` and a list have one split, `train`.
    """
    what = str(data) if isinstance(data, str | Path) else "the data"
    if isinstance(data, str | Path):
        if not is_hub_name(what):
            return _read_files(Path(data))
        data = load_hub_data(what, subset)
    if not isinstance(data, Mapping):
        return {"train": _label_rows(data, "row")}
    chosen = dict(splits or {})
    if not (chosen.keys() <= set(SPLITS) and set(chosen.values()) <= data.keys()):
        raise BadInput(
            f"task.options.splits must map {', '.join(SPLITS)} to splits of the data ({', '.join(data)}), got {chosen}"
        )
    found: dict[SplitName, list[Row]] = {}
    for split in SPLITS:
        names = [chosen[split]] if split in chosen else SPLIT_STEMS[split]
        name = next((name for name in names if name in data), None)
        if name is not None:
            found[split] = _label_rows(data[name], f"{what}, {name} row")
    if "train" not in found:
        raise BadInput(
            f"{what} has no train split: it has {', '.join(data) or 'none'}. Name the one to train on, such as "
            f"--set task.options.splits.train={next(iter(data), 'train')}"
        )
    return found


def _read_files(data: Path) -> dict[SplitName, list[Row]]:
    """The rows of a file, which is for `train`, or of the file of each split in a folder."""
    if data.is_file():
        return {"train": read_rows(data)}
    found: dict[SplitName, list[Row]] = {}
    for split, stems in SPLIT_STEMS.items():
        paths = [
            path for stem in stems for end in hub.ROW_SUFFIXES if (path := data / f"{stem}{end}").is_file()
        ]
        if paths:
            found[split] = read_rows(paths[0])
    if "train" not in found:
        raise BadInput(
            f"{data} has no rows to train on: give a file, or a folder with train.jsonl (or "
            f"{', '.join(hub.ROW_SUFFIXES[1:])})"
        )
    return found


def read_rows(path: str | Path) -> list[Row]:
    """The rows of a file, by its ending; raises BadInput, with the line or row, if it cannot be read or has none."""
    path = Path(path)
    end = path.suffix.lower()
    if end not in hub.ROW_SUFFIXES:
        raise BadInput(
            f"{path} is not a data file: a name that ends in {', '.join(hub.ROW_SUFFIXES)} is needed"
        )
    if end == ".parquet":
        rows = _read_parquet(path)
    else:
        try:
            text = path.read_bytes().decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise BadInput(f"{path} is not UTF-8 ({error}): convert it, such as with iconv") from None
        if end == ".txt":
            rows = [(str(path), {"text": io.StringIO(text, newline=None).read()})]  # \r\n is \n
        elif end == ".json":
            rows = _read_json(text, path) if text else []
        else:
            rows = list(_read_json_lines(text, path) if end == ".jsonl" else _read_table(text, path))
    if not rows:
        raise BadInput(f"{path} has no rows: give a file that has some")
    return rows


def _read_json_lines(text: str, path: Path) -> Iterator[Row]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            where = f"{path}, line {number}"
            row = _parse_json(line, where)
            if not isinstance(row, dict):
                raise BadInput(f"{where}: {shorten(line[:200], 60)} is not a JSON object")
            yield where, row


def _read_json(text: str, path: Path) -> list[Row]:
    rows = _parse_json(text, str(path))
    if not isinstance(rows, list):
        raise BadInput(f"{path} holds a {type(rows).__name__}: a list of objects is needed")
    return _label_rows(rows, f"{path}, row")


def _read_table(text: str, path: Path) -> Iterator[Row]:
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        for row in reader:
            where = f"{path}, line {reader.line_num}"
            if None in row or None in row.values():
                raise BadInput(
                    f"{where}: more or fewer fields than the {len(reader.fieldnames or ())} columns of the first line: "
                    "put texts with a comma or a new line into double quotes"
                )
            yield where, row
    except csv.Error as error:
        raise BadInput(f"{path}, line {reader.line_num} is not CSV ({error})") from None


def _read_parquet(path: Path) -> list[Row]:
    from pyarrow import ArrowException, parquet  # comes with datasets

    try:
        return _label_rows(parquet.read_table(path).to_pylist(), f"{path}, row")
    except ArrowException as error:
        raise BadInput(f"{path} cannot be read as a Parquet file ({first_line(error)})") from error


def _parse_json(text: str, what: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # a number may have more digits than Python reads
        raise BadInput(f"{what}: {shorten(text[:200], 60)} is not JSON ({first_line(error)})") from None


def _label_rows(rows: Any, what: str) -> list[Row]:
    if isinstance(rows, str) or not (hasattr(rows, "__len__") and hasattr(rows, "__iter__")):
        raise make_type_error("task", rows, "a name, a file, a Dataset, or a list of dictionaries is needed")
    if hasattr(rows, "with_format"):
        rows = rows.with_format(None)  # of a Dataset that gives tensors
    found: list[Row] = []
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, Mapping):
            raise BadInput(
                f"{what} {number} is {shorten(row, 60)}. A JSON object with named fields is needed"
            )
        found.append((f"{what} {number}", dict(row)))
    return found


# -- data sets -------------------------------------------------------------------------------------
def read_folder_rows(folder: str | Path, stem: str, split: str) -> list[Row]:
    """The rows of `<folder>/<stem>_<split>.jsonl`; raises BadInput if there is no such file, or no row in it."""
    path = Path(folder) / f"{stem}_{split}.jsonl"
    if not path.is_file():
        raise BadInput(
            f"{folder} has no {path.name}: give a folder with {stem}_train.jsonl and {stem}_test.jsonl"
        )
    return read_rows(path)


def load_hub_data(name: str, subset: str | None = None) -> Mapping[str, Any]:
    """A data set's splits by name (or a folder that `datasets` reads), downloaded unless they were before."""
    from datasets import load_dataset  # takes a second, which files do without

    reason = hub.unavailable_reason("dataset", name) if is_hub_name(name) else None
    if reason is None:
        try:
            return load_dataset(name, subset)
        except Exception as error:  # no network, no such name, a subset needed, a broken file
            reason = first_line(error)
    raise BadInput(f"data set {name!r} could not be downloaded ({reason}): check its name and the network")
