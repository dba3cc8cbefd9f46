"""From a config and values that win over it to the settings of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qra_search.app.config import RunConfig, find_differences, load_config, make_config
from qra_search.errors import BadInput, wrong_type
from qra_search.sections import DEFAULT_EVALUATOR

DEFAULT_FOLDER = Path("runs")
TUNABLE = ("training.", "finetune.", "model.device", "evaluation.validation_rows")
"""Fields that may be set anew to tune a run's plan; `finetune.evaluate_every` looks at the validation rows."""
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
"""The field of the config that each option of the command line sets."""


def make_settings(
    config: RunConfig | Mapping[str, Any] | str | Path | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> RunConfig:
    """The settings of a config with overrides, which win; relative paths become absolute.

    Args:
        config: a `RunConfig`, its fields as a mapping, the path of a YAML file, or None for the defaults.
        overrides: values by dotted field, such as `{"training.scales": True}`.

    Raises:
        BadInput: a value that cannot be used.
    """
    given = {name: str(v) if isinstance(v, Path) else v for name, v in (overrides or {}).items()}
    if isinstance(config, (str, Path)):
        made = load_config(config, given)
    elif isinstance(config, RunConfig):
        made = make_config(config.model_dump(mode="json", exclude_unset=True), given) if given else config
    elif config is None or isinstance(config, Mapping):
        made = make_config(dict(config or {}), given, source="options" if config is None else "config")
    else:
        wanted = "a RunConfig, a mapping of its fields, or the path of a YAML file is needed"
        raise wrong_type("config", config, wanted)
    task = made.task
    names: dict[str, Any] = {"model.name": made.model.name, "task.name": task.name}
    names |= {"task.data": task.data, "task.metrics": task.metrics}
    changed = {field: new for field, name in names.items() if (new := make_absolute(name)) != name}
    if made.quantization.cache is not None:
        changed["quantization.cache"] = str(Path(made.quantization.cache).absolute())
    return make_config(made.model_dump(mode="json", exclude_unset=True), changed) if changed else made


def change_settings(
    known: RunConfig,
    *,
    steps: int | None = None,
    epochs: float | None = None,
    rates: Sequence[float] | None = None,
    settings: Mapping[str, Any] | None = None,
) -> RunConfig:
    """The settings of a run with those that `Run.finetune` is given, which win; raises BadInput for one that
    no tuning of its plan can be given."""
    if steps is not None and epochs is not None:
        raise BadInput("--steps and --epochs both say how long to tune: give one of them")
    changes = dict(settings or {})
    named = {"finetune.steps": steps, "finetune.epochs": epochs, "training.learning_rate": rates}
    for field, value in named.items():
        if value is not None and field in changes:
            option = "rates" if value is rates else field.removeprefix("finetune.")
            raise BadInput(f"give --{option} or --set {field}, not both")
    if steps is not None:
        changes["finetune.steps"] = steps
        changes.setdefault("finetune.epochs", None)
    if epochs is not None:
        changes["finetune.epochs"] = epochs
    config = make_config(known.model_dump(mode="json"), changes, source="options")
    for path, (old, _) in find_differences(known, config).items():
        if not path.startswith(TUNABLE):
            raise BadInput(
                f"{path} is {old!r} in this run and cannot be changed. Only settings of training and finetune can"
            )
    return config


def make_absolute(name: Any) -> Any:
    """A relative path that exists, or several, from the root, so that a run opens anywhere; anything else as it is.

    A bare name of a folder is left: it may be that of a model or a task.
    """
    if isinstance(name, tuple):
        return tuple(map(make_absolute, name))
    if not isinstance(name, str) or "://" in name:
        return name
    path, colon, thing = name.partition(".py:")
    file = Path(path + ".py" if colon else path)
    is_path = file.is_file() or (file.is_dir() and len(file.parts) > 1)
    return f"{file.absolute()}{':' if colon else ''}{thing}" if is_path and not file.is_absolute() else name


def require_task(config: RunConfig) -> None:
    """Raises BadInput if a real model would be tuned for the default task, which nobody asked for."""
    chosen = "task" in config.model_fields_set and "name" in config.task.model_fields_set
    if config.evaluator == DEFAULT_EVALUATOR and not chosen:
        raise BadInput(
            "say with --task what to tune for: a name (qra tasks), a file, or a data set on the hub"
        )


def check_budget(config: RunConfig) -> None:
    """Raises BadInput if a config names no budget: a plan is one for so many bytes."""
    if not config.search.memory:
        raise BadInput("say with --memory how many bytes the plan may take, such as --memory 108MiB or 75%")


def make_folder_name(config: RunConfig) -> Path:
    """A folder below `runs/` that is named after model and task and does not exist."""
    stem = "-".join(Path(name).stem.lower() for name in (config.model.name, config.task.name))
    if config.evaluator != DEFAULT_EVALUATOR:
        stem = config.evaluator
    number = 1
    while (path := DEFAULT_FOLDER / (stem if number == 1 else f"{stem}-{number}")).exists():
        number += 1
    return path
