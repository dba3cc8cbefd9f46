"""A tuned run written in the format of another tool."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qra_search import plugins
from qra_search.engines import ENGINES, room_for
from qra_search.errors import BadInput, bad_input
from qra_search.files import tensor_names
from qra_search.runs.folder import RunFolder
from qra_search.runs.tuning_folder import TuningFolder
from qra_search.workflow.evaluator import loading_objects

USUAL = "peft"
"""Format of a run that was searched for no engine."""


@dataclass(frozen=True)
class ExportTarget:
    """What an export will be: the tuning, the format with its options, and where it is written.

    Attributes:
        engine: that the run was searched for, if the format follows from it.
    """

    tuning: TuningFolder
    format: str
    options: Mapping[str, Any]
    path: Path
    engine: str | None = None


def export_target(
    folder: RunFolder,
    format: str | None = None,
    out: str | Path | None = None,
    options: Mapping[str, Any] | None = None,
    *,
    tuning: str | None = None,
) -> ExportTarget:
    """Settle what is written where.

    Args:
        format: of `qra export --list`; None: that of the engine that the run was searched for, or `peft`.
        out: default: `exports/FORMAT` in the run's folder, with the id of a tuning that is named.
        tuning: as `RunFolder.find_tuning` takes it.

    Raises:
        BadInput: there is no such format or tuning.
    """
    if format is not None and format not in plugins.names("exporters"):
        plugins.load("exporters", format)  # which says what there is
    found = folder.check().find_tuning(tuning)
    _check_whole(found)
    engine = None if format else folder.engine()
    format = format or USUAL
    given = dict(options or {})
    if engine is not None:
        format = ENGINES[engine].format
    name = f"{format}-{found.id}" if tuning else format
    return ExportTarget(found, format, given, Path(out or folder.path / "exports" / name), engine)


def make_exporter(target: ExportTarget) -> Any:
    """The exporter of a target.

    Raises:
        BadInput: no such format or option.
    """
    with bad_input():
        options = {name.replace("-", "_"): value for name, value in target.options.items()}
        return plugins.load("exporters", target.format).with_options(options)


def export_tuning(target: ExportTarget, objects: Mapping[str, Any] | None = None) -> Any:
    """Write a tuned plan, and say by how much its logits differ.

    Args:
        objects: model and tokenizer in memory that the run was made with, if it was.

    Returns:
        What the format's exporter says of it: `path`, `notes`, differences of logits.

    Raises:
        BadInput: the format cannot hold this plan, or something is in the way.
    """
    exporter = make_exporter(target)
    if target.path.exists() and not (target.path.is_dir() and not any(target.path.iterdir())):
        raise BadInput(f"{target.path} exists already: give another place with --out, or remove it first")
    with bad_input():
        return exporter.export(target.tuning.path, target.path, **loading_objects(objects or {}))


def serve_command(engine: str, out: Path) -> str:
    """The command that serves an export for an engine."""
    file = out / "adapter" / "adapter_config.json"
    config: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
    rank = max([config.get("r", 1), *config.get("rank_pattern", {}).values()])
    return ENGINES[engine].serve.format(out=out, rank=room_for(engine, rank))


def _check_whole(tuning: TuningFolder) -> None:
    """Raises BadInput for a file that is missing or cut off, before seconds of loading libraries."""
    weights = tuning.adapter / "adapter_model.safetensors"
    if not weights.is_file():
        raise BadInput(f"{tuning.path} lacks its adapter: remove it, and `qra finetune` tunes it anew")
    for file in (tuning.base_file, weights):
        if file.is_file():
            tensor_names(file)
