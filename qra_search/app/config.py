"""The settings of a whole run: what a config file may say, and values from elsewhere that win over it."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError, field_validator, model_validator

from qra_search.engines import ENGINES
from qra_search.errors import BadInput, make_type_error, one_line, shorten
from qra_search.plugins import IN_MEMORY_PREFIX, suggest_names
from qra_search.sections import (
    DEFAULT_EVALUATOR,
    EvaluationConfig,
    FinetuneConfig,
    ModelConfig,
    QuantizationConfig,
    SearchConfig,
    Section,
    SpaceConfig,
    TaskConfig,
    TrainingConfig,
)
from qra_search.space.memory import UNQUANTIZED_BITS

DEFAULT_FOLDER = Path("runs")
FINETUNE_FIELDS = ("training.", "finetune.", "model.device", "evaluation.validation_rows")
"""Fields that may be set anew to tune a run's plan; `finetune.evaluate_every` looks at the validation rows."""
ROW_SUFFIXES = (".jsonl", ".csv", ".tsv", ".parquet")


class ConfigError(BadInput):
    """A config that cannot be used; the message gives the field's path, what was given and what is allowed."""


class RunConfig(Section):
    """One whole run."""

    evaluator: str = DEFAULT_EVALUATOR
    """what measures a plan: quantized-lora (real training), landscape (a formula, for trying out), or a plug-in"""
    model: ModelConfig = ModelConfig()
    task: TaskConfig = TaskConfig()
    quantization: QuantizationConfig = QuantizationConfig()
    space: SpaceConfig = SpaceConfig()
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    finetune: FinetuneConfig = FinetuneConfig()
    search: SearchConfig = SearchConfig()
    engine: str | None = None
    """where the result will run (llama.cpp, transformers, vllm): decides the backend, which bits there are, and what
    `qra export` writes"""
    options: dict[str, Any] = {}
    """keyword options of the evaluator"""

    def name_objects(self, *, task: Any = None, metrics: Mapping[str, Any] | None = None) -> RunConfig:
        """A copy of the settings that names a task or metrics given as Python objects."""
        named = dict.fromkeys([*self.task.metrics, *(IN_MEMORY_PREFIX + name for name in metrics or ())])
        of_task = {} if task is None else {"name": make_in_memory_name(task)}
        changed_task = self.task.model_copy(update=of_task | {"metrics": tuple(named)})
        return self.model_copy(update={"task": changed_task})

    @model_validator(mode="before")
    @classmethod
    def _apply_engine(cls, data: Any) -> Any:
        """Fill in what an engine decides, where nothing else is given."""
        name = data.get("engine") if isinstance(data, dict) else None
        if not isinstance(name, str) or name not in ENGINES:
            return data
        engine = ENGINES[name]
        decided: dict[str, dict[str, Any]] = {
            "quantization": {"backend": engine.backend, "embeddings": list(engine.embeddings)},
            "space": {"bits": list(engine.bits), "granularity": engine.granularity},
        }
        filled = dict(data)
        for section, values in decided.items():
            given = filled.get(section, {})
            if isinstance(given, dict):
                own = {key: value for key, value in given.items() if value not in (None, "auto")}
                filled[section] = {**given, **{k: v for k, v in values.items() if v is not None}, **own}
        return filled

    @field_validator("engine")
    @classmethod
    def _check_engine_name(cls, name: str | None) -> str | None:
        if name is not None and name not in ENGINES:
            raise ValueError(f"{suggest_names(name, ENGINES)}choose one of {', '.join(sorted(ENGINES))}")
        return name


def load_config(path: str | Path, overrides: dict[str, Any] | None = None) -> RunConfig:
    """Read a YAML config; `overrides` maps dotted fields (`search.evaluations`) to values that win over the file.

    Raises ConfigError if there is no such file, it holds no YAML mapping, or a field is wrong.
    """
    path = Path(path)
    if path.is_dir():
        file = path / "config.yaml"
        raise ConfigError(f"config {str(path)!r} is a folder: give the YAML file, such as {file}")
    if not path.is_file():
        raise ConfigError(f"no config file {str(path)!r}: `qra schema --example` prints one to start from")
    if path.suffix in ROW_SUFFIXES:
        raise ConfigError(f"{path} holds rows, not a config: give it as --task {path}")
    try:
        data = read_yaml(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{path} cannot be read as YAML: {error}") from None
    if not isinstance(data, dict | None):
        kind = type(data).__name__
        raise ConfigError(
            f"{path} holds a {kind}, but a mapping of sections is needed, such as model and task"
        )
    return make_config(data or {}, overrides, source=str(path))


def read_yaml(text: str) -> Any:
    """The plain data of a YAML text; raises ValueError, in one line, if it is none."""
    try:
        return yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        mark, problem = error.problem_mark, error.problem or str(error)
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise ValueError(one_line(place + problem, 500)) from None
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError) as error:
        raise ValueError(one_line(str(error), 500)) from None


def read_pairs(
    texts: Sequence[str] | None, option: str = "--set", example: str = "training.learning_rate=0.0005"
) -> dict[str, Any]:
    """Values by name of an option `NAME=VALUE` that may be given several times; raises BadInput for anything else."""
    given: dict[str, Any] = {}
    for text in texts or ():
        name, equals, value = text.partition("=")
        name = name.strip()
        if not equals or not name:
            raise BadInput(f"{option} takes a name and a value, such as {example}, not {text!r}")
        if name in given:
            raise BadInput(f"{option} {name} is given twice: give it once")
        try:
            given[name] = read_yaml(value)
        except ValueError:
            raise BadInput(f"{option} {name}: {value!r} is not a YAML value") from None
    return given


def make_config(
    data: dict[str, Any], overrides: dict[str, Any] | None = None, source: str = "config"
) -> RunConfig:
    """A config from plain data; see `load_config`."""
    data = copy.deepcopy(data)
    for field, value in (overrides or {}).items():
        *sections, name = field.split(".")
        holder = data
        for section in sections:
            holder = holder.setdefault(section, {})
            if not isinstance(holder, dict):
                what = f"{section} is {shorten(holder)}, not a section"
                raise ConfigError(f"{source}: {field} cannot be set, because {what}")
        holder[name] = value
    try:
        config = RunConfig.model_validate(data)
    except ValidationError as error:
        fault = ".".join(map(str, error.errors()[0]["loc"]))
        given = any(f"{fault}.".startswith(f"{field}.") for field in overrides or {})
        raise ConfigError(f"{'options' if given else source}: {explain_error(error)}") from None
    if config.engine is not None:
        _check_engine(config, config.engine, source)
    return config


def _check_engine(config: RunConfig, name: str, source: str) -> None:
    """Raises ConfigError if what is chosen beside an engine is nothing that it has."""
    engine, space, fault = ENGINES[name], config.space, ""
    given, embeddings = config.quantization.backend, config.quantization.embeddings
    backend = given.get("name") if isinstance(given, dict) else given
    if not f"{backend}-".startswith(f"{engine.backend}-"):
        what = f"engine {name} runs what backend {engine.backend} stores"
        fault = f"quantization.backend is {shorten(given)}, but {what}"
    elif space.bits != "auto" and (wrong := set(space.bits) - {*engine.bits, UNQUANTIZED_BITS}):
        has = _join(engine.bits)
        fault = f"space.bits has {_join(wrong)}, but engine {name} has {has}, and 16 for unquantized"
    elif embeddings != "auto" and (wrong := set(embeddings) - set(engine.embeddings)):
        has = _join(engine.embeddings)
        fault = f"quantization.embeddings has {_join(wrong)}, but engine {name} has {has}"
    elif engine.granularities is not None and space.granularity not in engine.granularities:
        fault = f"space.granularity is {space.granularity}, but engine {name} runs q, k and v as one matrix, "
        fault += f"and gate and up as another, so choose {' or '.join(engine.granularities)}"
    elif engine.ranks is not None and max(space.ranks) > max(engine.ranks):
        fault = f"space.ranks has {max(space.ranks)}, but engine {name} takes at most {max(engine.ranks)}"
    if fault:
        raise ConfigError(f"{source}: {fault}. Change it, or leave the field out")


def _join(values: Iterable[float]) -> str:
    return ", ".join(map(str, sorted(values)))


def dump_config(config: RunConfig) -> str:
    """The config as YAML with every field, which `load_config` reads back to an equal one."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, width=100, default_flow_style=None)


def make_in_memory_name(given: object) -> str:
    """What stands in a config for a model, rows or a task that was given as an object."""
    return f"{IN_MEMORY_PREFIX}{type(given).__name__}"


def find_differences(old: RunConfig, new: RunConfig) -> dict[str, tuple[Any, Any]]:
    """Fields in which two configs differ, by dotted path: the old value and the new."""
    return dict(_list_differences(old.model_dump(mode="json"), new.model_dump(mode="json"), ""))


def _list_differences(old: Any, new: Any, path: str) -> Iterator[tuple[str, tuple[Any, Any]]]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in [*old, *(k for k in new if k not in old)]:
            yield from _list_differences(old.get(key), new.get(key), f"{path}.{key}" if path else str(key))
    elif old != new:
        yield path, (old, new)


def explain_error(error: ValidationError) -> str:
    """The first fault of a validation as one line: path of the field, what was given, what is allowed."""
    first = error.errors()[0]
    # Of a field of several types each has a fault of its own, with the type in its place: `literal['auto']`, `bool`.
    types = ("str", "bool", "int", "float")
    field = tuple(takewhile(lambda part: part not in types and "[" not in str(part), first["loc"]))
    where = shorten(".".join(map(str, field)) or "config", 200).strip("'\"")
    if first["type"] == "extra_forbidden":
        section: Any = RunConfig
        *sections, name = first["loc"]
        for part in sections:
            section = section.model_fields[part].annotation
        near = suggest_names(name, section.model_fields, most=1)
        return f"{where} is not a known field: {near}`qra schema` lists them"
    faults = [fault for fault in error.errors() if fault["loc"][: len(field)] == field]
    given = min(faults, key=lambda fault: len(fault["loc"]))["input"]
    needed = dict.fromkeys(fault["msg"].removeprefix("Value error, ") for fault in faults)
    words = " or ".join(needed).replace("or Input should be", "or").replace("Input should", "must")
    words = words.replace("a valid tuple", "a list")
    return f"{where} is {shorten(given)}: {words}"


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
        raise make_type_error("config", config, wanted)
    task = made.task
    names: dict[str, Any] = {"model.name": made.model.name, "task.name": task.name}
    names |= {"task.data": task.data, "task.metrics": task.metrics}
    changed = {field: new for field, name in names.items() if (new := make_absolute(name)) != name}
    if made.quantization.cache is not None:
        changed["quantization.cache"] = str(Path(made.quantization.cache).absolute())
    for field, value in changed.items():
        section, name = field.split(".")
        made = made.model_copy(update={section: getattr(made, section).model_copy(update={name: value})})
    return made


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
        if not path.startswith(FINETUNE_FIELDS):
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
    """Raises BadInput if a config for a real model names no task."""
    chosen = "task" in config.model_fields_set and "name" in config.task.model_fields_set
    if config.evaluator == DEFAULT_EVALUATOR and not chosen:
        raise BadInput(
            "say with --task what to tune for: a name (qra tasks), a file, or a data set on the hub"
        )


def require_budget(config: RunConfig) -> None:
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
