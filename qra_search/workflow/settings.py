"""From keywords, as Python's `plan` and the command line take them, to the settings of a run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qra_search.config import RunConfig, load_config, make_config
from qra_search.errors import BadInput, needed

FIELDS = {
    "model": "model.name",
    "device": "model.device",
    "task": "task.name",
    "data": "task.data",
    "columns": "task.options.columns",
    "metric": "task.metrics",
    "memory": "search.memory",
    "bits": "space.bits",
    "ranks": "space.ranks",
    "granularity": "space.granularity",
    "backend": "quantization.backend",
    "evaluations": "search.evaluations",
    "strategy": "search.strategy",
    "seed": "search.seed",
    "evaluator": "evaluator",
    "engine": "engine",
}
"""The field of the config that each keyword sets."""


def make_settings(
    config: RunConfig | Mapping[str, Any] | str | Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    **keywords: Any,
) -> RunConfig:
    """The settings of a config with keywords and overrides, which win.

    Args:
        config: a `RunConfig`, its fields as a mapping, the path of a YAML file, or None for the defaults.
        overrides: values by dotted field, such as `{"training.scales": True}`.
        keywords: those of `FIELDS`; None leaves a field as it is.

    Raises:
        BadInput: a value that cannot be used.
    """
    if unknown := [name for name in keywords if name not in FIELDS]:
        raise BadInput(
            f"{unknown[0]!r} is no setting by that name: known are {', '.join(FIELDS)}, and any field of the config as "
            "settings={'section.field': value}"
        )
    given = {FIELDS[name]: _plain(value) for name, value in keywords.items() if value is not None}
    given |= overrides or {}
    if config is None:
        return make_config({}, given, source="options")
    if isinstance(config, (str, Path)):
        return load_config(config, given)
    if isinstance(config, RunConfig):
        return make_config(config.model_dump(mode="json", exclude_unset=True), given) if given else config
    if isinstance(config, Mapping):
        return make_config(dict(config), given)
    raise needed("config", config, "a RunConfig, a mapping of its fields, or the path of a YAML file is needed")


def check_task(config: RunConfig) -> None:
    """Raises BadInput if a real model would be tuned for the default task, which nobody asked for."""
    chosen = "task" in config.model_fields_set and "name" in config.task.model_fields_set
    if config.evaluator == type(config).model_fields["evaluator"].default and not chosen:
        raise BadInput("say with --task what to tune for: a name (qra tasks), a file of rows, or a data set on the hub")


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    return list(value) if isinstance(value, tuple) else value
