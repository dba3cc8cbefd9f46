"""Rows of data: of files of the usual kinds, of folders and of the hub, or as objects in Python.

JSON and CSV are read by the standard library, so that rows are what is written. The library `datasets` infers types: it
reads the text 2020-01-01 as a time, 4 beside 4.5 as 4.0, and 007 in a table as 7. It serves what has types: the hub.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from qra_eval import hub
from qra_eval.tasks.example import SPLITS, SplitName
from qra_search import plugins
from qra_search.errors import BadInput, first_line, shorten, wrong_type

Row = tuple[str, dict[str, Any]]
"""Where it stands, for messages, and what it holds."""
STEMS: Mapping[SplitName, Sequence[str]] = {
    "train": ("train",),
    "validation": ("validation", "valid", "val", "dev", "eval"),
    "test": ("test",),
}
"""Names of a split's file, and of a data set's split."""
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
MAX_FIELD = 16 << 20
"""Characters of a field of a table, at most; the standard library's limit is 128 Ki."""


def is_file_name(name: str) -> bool:
    return Path(name).suffix.lower() in READERS


def is_data_path(name: str) -> bool:
    """Whether a name is that of a file that can be read, or of a folder, unless a task has it."""
    return is_file_name(name) or (Path(name).is_dir() and name not in plugins.list_names("tasks"))


def is_hub_name(name: str) -> bool:
    """Whether it may be a data set's name on the hub, `owner/name`, and is no path here."""
    return bool(HUB_NAME.fullmatch(name)) and not is_file_name(name) and not Path(name).exists()


def read_splits(
    data: Any, subset: str | None = None, splits: Mapping[str, str] | None = None
) -> dict[SplitName, list[Row]]:
    """The rows of each split that the data has; what it lacks is left out. Raises BadInput if it cannot be read.

    Args:
        data: a file, a folder with a file for each split, a data set's name on the hub, a `Dataset` or a list of
            dictionaries (which have one split, `train`), or a `DatasetDict` or another mapping of these.
        subset: of a data set on the hub that has several ("config" in `datasets`).
        splits: the data's name of a split of ours, such as `{"train": "train_sft"}`; default: the usual names.
    """
    if isinstance(data, Mapping):
        return _select_splits(data, "the data", splits)
    if not isinstance(data, str | Path):
        return {"train": _label_rows(data, "row")}
    if is_hub_name(str(data)):
        return _select_splits(load_hub_data(str(data), subset), str(data), splits)
    return {split: read_rows(path) for split, path in find_split_files(Path(data), tuple(READERS)).items()}


def find_split_files(data: Path, ends: Sequence[str]) -> dict[SplitName, Path]:
    """The file of each split that there is; a single file is for `train`. Raises BadInput if there is none for that."""
    if data.is_file():
        return {"train": data}
    wanted = f"train{ends[0]} (or train{', train'.join(ends[1:])})"
    if not data.is_dir():
        raise BadInput(f"no file or folder {str(data)!r}: a file, or a folder with {wanted}, is needed")
    files: dict[SplitName, Path] = {}
    for split, stems in STEMS.items():
        names = [f"{stem}{end}" for stem in stems for end in ends if (data / f"{stem}{end}").is_file()]
        if names:
            files[split] = data / names[0]
    if "train" not in files:
        raise BadInput(f"{data} has no file to train on: name it {wanted}")
    return files


def read_rows(path: str | Path) -> list[Row]:
    """The rows of a file, by its ending; raises BadInput, with the line or row, if it cannot be read or has none."""
    path = Path(path)
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise BadInput(f"{path}: data files end in {', '.join(READERS)}; for running text use --task text")
    rows = list(reader(path)) if path.stat().st_size else []
    if not rows:
        raise BadInput(f"{path} has no rows: it is empty")
    return rows


def read_text(path: Path) -> str:
    """The text of a file in UTF-8; raises BadInput if it is not."""
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadInput(f"{path} is not UTF-8 ({error}): convert it, such as with iconv") from None


def read_folder_rows(folder: str | Path, stem: str, split: str) -> list[Row]:
    """The rows of `<folder>/<stem>_<split>.jsonl`; raises BadInput if there is no such file, or no row in it."""
    path = Path(folder) / f"{stem}_{split}.jsonl"
    if not path.is_file():
        raise BadInput(f"{folder} has no {path.name}: give a folder with {stem}_train.jsonl and _test.jsonl")
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


def read_hub_rows(name: str, subset: str | None, split: str) -> list[Row]:
    """The rows of one split of a data set on the hub; see `load_hub_data`."""
    return _label_rows(load_hub_data(name, subset)[split], f"{name}, {split} row")


def _select_splits(
    data: Mapping[str, Any], what: str, splits: Mapping[str, str] | None
) -> dict[SplitName, list[Row]]:
    """The rows of a mapping of splits, by the usual names or by those given."""
    chosen = dict(splits or {})
    for ours, theirs in chosen.items():
        if ours not in SPLITS:
            raise BadInput(f"a split must be one of {', '.join(SPLITS)}, got {ours!r}")
        if theirs not in data:
            raise BadInput(f"{what} has no split {theirs!r} for {ours}: it has {', '.join(data)}")
    found: dict[SplitName, list[Row]] = {}
    for split in SPLITS:
        names = [chosen[split]] if split in chosen else STEMS[split]
        name = next((name for name in names if name in data), None)
        if name is not None:
            found[split] = _label_rows(data[name], f"{what}, {name} row")
    if "train" not in found:
        raise BadInput(
            f"{what} has no train split: it has {', '.join(data) or 'none'}. Name the one to train on, such as "
            f"--set task.options.splits.train={next(iter(data), 'train')}"
        )
    return found


def _label_rows(rows: Any, what: str) -> list[Row]:
    """Rows of a `Dataset`, or of a list of dictionaries, numbered from 1."""
    if isinstance(rows, str) or not (hasattr(rows, "__len__") and hasattr(rows, "__iter__")):
        raise wrong_type("task", rows, "a name, a file, a Dataset, or a list of dictionaries is needed")
    if hasattr(rows, "with_format"):
        rows = rows.with_format(None)  # of a Dataset that gives tensors
    found: list[Row] = []
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, Mapping):
            raise BadInput(f"{what} {number} is {shorten(row, 60)}: an object with fields is needed")
        found.append((f"{what} {number}", dict(row)))
    return found


# -- files -------------------------------------------------------------------------------------
def _read_json_lines(path: Path) -> Iterator[Row]:
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        where = f"{path}, line {number}"
        shown = shorten(line[:200], 60)
        if line.strip():
            row = _parse_json(line, f"{where}: {shown}")
            if not isinstance(row, dict):
                raise BadInput(f"{where}: {shown} is not a JSON object")
            yield where, row


def _read_json(path: Path) -> list[Row]:
    rows = _parse_json(read_text(path), str(path))
    if not isinstance(rows, list):
        raise BadInput(f"{path} holds a {type(rows).__name__}: a list of objects is needed")
    return _label_rows(rows, f"{path}, row")


def _read_table(path: Path) -> Iterator[Row]:
    csv.field_size_limit(MAX_FIELD)
    file = io.StringIO(read_text(path), newline="")
    reader = csv.DictReader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",", strict=True)
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
        raise BadInput(f"{path}, line {reader.line_num}: {error}") from None


def _read_parquet(path: Path) -> list[Row]:
    from pyarrow import ArrowException, parquet  # comes with datasets

    try:
        return _label_rows(parquet.read_table(path).to_pylist(), f"{path}, row")
    except ArrowException as error:
        raise BadInput(f"{path} is no Parquet file that can be read ({first_line(error)})") from error


READERS: Mapping[str, Callable[[Path], Iterable[Row]]] = {
    ".jsonl": _read_json_lines,
    ".json": _read_json,
    ".csv": _read_table,
    ".tsv": _read_table,
    ".parquet": _read_parquet,
}
"""What reads a file, by its ending."""


def _parse_json(text: str, what: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # a number may have more digits than Python reads
        raise BadInput(f"{what} is not JSON ({first_line(error)})") from None
