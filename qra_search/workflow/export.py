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
from qra_search.workflow.evaluator import loading_objects

USUAL = "peft"
"""Format of a run that was searched for no engine."""


@dataclass(frozen=True)
class ExportTarget:
    """What an export will be: the format, its options, and where it is written.

    Attributes:
        engine: that the run was searched for, if the format follows from it.
    """

    format: str
    options: Mapping[str, Any]
    path: Path
    engine: str | None = None


def export_target(
    folder: RunFolder,
    format: str | None = None,
    out: str | Path | None = None,
    options: Mapping[str, Any] | None = None,
) -> ExportTarget:
    """Settle what is written where.

    Args:
        format: of `qra export --list`; None: that of the engine that the run was searched for, or `peft`.
        out: default: `exports/FORMAT` in the run's folder.

    Raises:
        BadInput: there is no format, or the run holds nothing tuned.
    """
    if not folder.path.is_dir():
        raise BadInput(f"{folder.path} is no folder: give that of a run, tuned by `qra finetune`")
    engine = None if format else folder.engine()
    format = format or USUAL
    given = dict(options or {})
    if engine is not None:
        format = ENGINES[engine].format
    if format in plugins.names("exporters"):
        _check_tuned(folder)
    return ExportTarget(format, given, Path(out or folder.path / "exports" / format), engine)


def make_exporter(target: ExportTarget) -> Any:
    """The exporter of a target.

    Raises:
        BadInput: no such format or option.
    """
    with bad_input():
        options = {name.replace("-", "_"): value for name, value in target.options.items()}
        return plugins.load("exporters", target.format).with_options(options)


def export_run(folder: RunFolder, target: ExportTarget, objects: Mapping[str, Any] | None = None) -> Any:
    """Write a tuned run, and say by how much its logits differ.

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
        return exporter.export(folder.path, target.path, **loading_objects(objects or {}))


def serve_command(engine: str, out: Path) -> str:
    """The command that serves an export for an engine."""
    file = out / "adapter" / "adapter_config.json"
    config: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
    rank = max([config.get("r", 1), *config.get("rank_pattern", {}).values()])
    return ENGINES[engine].serve.format(out=out, rank=room_for(engine, rank))


def _check_tuned(folder: RunFolder) -> None:
    """Raises BadInput for a folder with nothing tuned, or what was cut off, before seconds of loading libraries."""
    weights = folder.path / "quantized.safetensors"
    if missing := [file.name for file in (folder.plan_file, folder.adapter) if not file.exists()]:
        lacking = ", ".join(missing)
        raise BadInput(f"{folder.path} holds no tuned plan, it lacks {lacking}: run `qra finetune` on it first")
    for file in (weights, folder.adapter / "adapter_model.safetensors"):
        if file.is_file():
            tensor_names(file)
