"""What is exported of a tuned run, in which format, and what serves it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qra_search import plugins
from qra_search.engines import ENGINES, fit_rank
from qra_search.errors import BadInput, bad_input
from qra_search.files import tensor_names
from qra_search.runs.folder import RunFolder
from qra_search.runs.tuning_folder import TuningFolder

DEFAULT_FORMAT = "peft"
"""Format of a run that was searched for no engine."""


def prepare_export(
    folder: RunFolder, format: str | None, options: Mapping[str, Any] | None, tuning: str | None
) -> tuple[TuningFolder, str, Any]:
    """The tuning that is exported, whose files are there and whole, and name and exporter of the format.

    Args:
        format: name of an exporter; None: that of the engine that the run was searched for, or `peft`.
        tuning: as `RunFolder.find_tuning` takes it.

    Raises:
        BadInput: no such tuning, format or option, or a file is missing or cut off.
    """
    engine = folder.check().config().engine if folder.config_file.is_file() else None
    name = format or (DEFAULT_FORMAT if engine is None else ENGINES[engine].format)
    if name not in plugins.names("exporters"):
        plugins.load("exporters", name)  # which says what there is
    found = folder.find_tuning(tuning)
    weights = found.adapter / "adapter_model.safetensors"
    if not weights.is_file():
        raise BadInput(f"{found.path} lacks its adapter: remove it, and `qra finetune` tunes it anew")
    for file in (found.base_file, weights):
        if file.is_file():
            tensor_names(file)  # before seconds of loading libraries
    with bad_input():
        given = {option.replace("-", "_"): value for option, value in (options or {}).items()}
        return found, name, plugins.load("exporters", name).with_options(given)


def serve_command(engine: str, out: Path) -> str:
    """The command that serves an export for an engine."""
    file = out / "adapter" / "adapter_config.json"
    config: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
    rank = max([config.get("r", 1), *config.get("rank_pattern", {}).values()])
    return ENGINES[engine].serve.format(out=out, rank=fit_rank(engine, rank))
