"""The schema of a whole run: what a config file may say, with its defaults."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

from qra_search.engines import ENGINES, engine_settings
from qra_search.errors import BadInput, one_line, shortened
from qra_search.plugins import did_you_mean, unknown_message
from qra_search.space.memory import UNQUANTIZED_BITS, parse_bytes
from qra_search.space.sizes import check_size
from qra_search.space.space import DEFAULT_BITS, DEFAULT_RANKS

MAX_CONFIG_BYTES = 1 << 20
MAX_YAML_DEPTH, MAX_YAML_TEXT = 32, 2000
MANY_FIELDS = 16
"""More than these are not named in an error."""
DEFAULT_STRATEGY = "qra"
DEFAULT_EVALUATIONS = 24
"""What a search may spend if nothing is said: minutes with a real evaluator of a small model."""


class ConfigError(BadInput):
    """A config that cannot be used; the message gives the field's path, what was given and what is allowed."""


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ModelConfig(_Section):
    """Which model is tuned."""

    name: str = Field("smollm2", min_length=1, description="`smollm2`, `tiny`, a folder, a GGUF file, or a hub id")
    device: str = Field("auto", description="`auto`, `cpu`, `cuda`, `cuda:1`")
    dtype: Literal["auto", "bfloat16", "float32"] = Field(
        "auto", description="in which what is not quantized is stored; auto: bfloat16"
    )
    compute: Literal["auto", "bfloat16", "float32"] = Field(
        "auto", description="in which evaluations compute; auto: the faster one on this machine"
    )
    weight_cache: str = Field(
        "auto",
        description="memory for dequantized weights that are kept ready (2GiB, 0); auto: by what is free; if those of "
        "all linears do not fit, each is dequantized when it is used",
    )
    trust_remote_code: bool = False

    @field_validator("weight_cache", mode="before")
    @classmethod
    def _size(cls, value: Any) -> Any:
        if str(value) not in ("auto", "0"):
            parse_bytes(value)
        return str(value)


class TaskConfig(_Section):
    """What it is tuned on."""

    name: str = Field("arithmetic", min_length=1, description="name of a task, or a .jsonl file of prompts and answers")
    data: str | None = Field(None, description="folder or file with the task's data; default: the hub, or none needed")
    options: dict[str, Any] = Field(default_factory=dict, description="keyword options of the task")


BackendSpec = str | dict[str, Any]
BACKEND_FORMS = (
    "the name of a backend, or one for each bit-width, is needed; one with options is {name: hqq, group_size: 128}"
)


def _backend_spec(given: Any) -> Any:
    """One backend: a name, or a mapping of a name and options; raises ValueError otherwise."""
    name = given.get("name") if isinstance(given, dict) else given
    if not isinstance(name, str) or not name.strip():
        raise ValueError(f"{BACKEND_FORMS}; {shortened(given)} is none of these")
    if isinstance(given, dict) and not all(isinstance(option, str) for option in given):
        raise ValueError(f"options of backend {name!r} are texts, got {shortened(list(given))}")
    return given


def _is_width(key: Any) -> bool:
    return (isinstance(key, int) and not isinstance(key, bool)) or (isinstance(key, str) and key.isdecimal())


class QuantizationConfig(_Section):
    """How weights are stored at each bit-width."""

    backend: BackendSpec | dict[int, BackendSpec | list[BackendSpec]] = Field(
        "mixed-calibrated",
        description="a backend (see `qra backends`), by name or as `{name: hqq, group_size: 128}`; or one for each "
        "bit-width, `{2: hqq, 4: bitsandbytes-nf4}`, where a list makes it a searched choice",
    )
    embeddings: Literal["auto"] | tuple[int, ...] = Field(
        "auto",
        description="bits to choose from for the token embeddings and the head; one number: of every plan; 16: left as "
        "they are; auto: 3, 4, 5, 6 and 16, as far as the backend can store them",
    )
    cache: str | None = Field(None, description="folder of the bank of quantized weights; default: the user's cache")

    @field_validator("embeddings", mode="before")
    @classmethod
    def _several(cls, given: Any) -> Any:
        return (given,) if isinstance(given, int) and not isinstance(given, bool) else given

    @field_validator("embeddings")
    @classmethod
    def _known(cls, values: Literal["auto"] | tuple[int, ...]) -> Literal["auto"] | tuple[int, ...]:
        if values == "auto":
            return values
        _check_distinct(values, "choices")
        if not all(1 <= value <= UNQUANTIZED_BITS for value in values):
            raise ValueError("embeddings must be from 1 to 16 (16: left as they are)")
        return tuple(sorted(values))

    @field_validator("backend", mode="before")
    @classmethod
    def _backend(cls, given: Any) -> Any:
        if not isinstance(given, dict) or "name" in given:
            return _backend_spec(given)
        if not given or not all(_is_width(key) for key in given):
            raise ValueError(f"{BACKEND_FORMS}; a mapping has the key `name`, or bit-widths as keys")
        several = {int(bits): specs for bits, specs in given.items()}
        for bits, specs in several.items():
            if specs == []:
                raise ValueError(f"at {bits} bits a list names at least one backend")
            for spec in specs if isinstance(specs, list) else [specs]:
                _backend_spec(spec)
        return several


def _check_distinct(values: tuple[Any, ...], what: str) -> None:
    if not values or len(set(values)) != len(values):
        raise ValueError(f"distinct {what} are needed, at least one")


class SpaceConfig(_Section):
    """What may be chosen, and for what."""

    bits: tuple[int, ...] = DEFAULT_BITS
    ranks: tuple[int, ...] = DEFAULT_RANKS
    granularity: Literal["auto", "module", "expert", "layer", "fused"] = Field(
        "auto",
        description="what shares one choice: a linear (module), an expert's linears (expert), a decoder layer, or what "
        "engines run as one matrix (fused); auto: expert for a mixture of experts, module for any other model",
    )

    @field_validator("bits", "ranks")
    @classmethod
    def _known(cls, values: tuple[int, ...], info: ValidationInfo) -> tuple[int, ...]:
        _check_distinct(values, "choices")
        least, most, end = (1, 16, "16: left unquantized") if info.field_name == "bits" else (0, 4096, "0: no adapter")
        if not all(least <= value <= most for value in values):
            raise ValueError(f"{info.field_name} must be from {least} to {most} ({end})")
        return tuple(sorted(values))


Init = Literal["default", "calibrated", "loftq", "pissa", "eva"]
Schedule = Literal["linear", "cosine", "constant"]
FINAL_ONLY = frozenset({
    "final_steps", "final_epochs", "test_rows", "evaluate_every", "patience", "checkpoint_every", "checkpoint_minutes",
    "sample_answers",
})  # fmt: skip
"""Fields of `training` that say how the chosen plan is tuned in full, and change nothing that a search measures."""


class TrainingConfig(_Section):
    """The short fine-tuning of one evaluation, and the full one of the chosen plan."""

    steps: int = Field(12, ge=0, description="optimizer steps of a full evaluation")
    batch_size: int = Field(8, ge=1, description="rows that go through the model together")
    accumulation: int = Field(1, ge=1, description="batches whose gradients are added up for one step")
    learning_rate: float = Field(1e-3, gt=0)
    warmup: float = Field(0.1, ge=0, lt=1, description="share of the steps with rising learning rate")
    schedule: Schedule = Field(
        "linear", description="how the learning rate goes on after the warm-up: linear or cosine towards 0, or constant"
    )
    weight_decay: float = Field(0.0, ge=0)
    alpha: float = Field(
        16.0, gt=0, description="LoRA alpha, the same at every rank: an adapter is scaled by alpha / rank"
    )
    dropout: float = Field(0.0, ge=0, lt=1)
    init: Init | tuple[Init, ...] = Field(
        "default",
        description="where adapters start: default, calibrated, loftq, pissa or eva; of several the search uses the "
        "first, and before a plan is tuned in full each is tried on it",
    )
    scales: bool = Field(
        False,
        description="train the scales and offsets of quantized groups along with the adapters, at no bytes; a step "
        "then takes up to half as long again",
    )
    scales_rate: float = Field(1e-3, gt=0, description="their learning rate, as a share of the scale")
    max_length: int = Field(256, ge=8, description="tokens of a row; longer prompts are cut at the left")
    validation_rows: int = Field(
        64, ge=1, description="held-out rows of a full evaluation; a search comes to fit those it sees if they are few"
    )
    gradient_checkpointing: bool = Field(
        False, description="compute activations again in the backward pass: less memory, a third more time"
    )
    hopeless: float = Field(
        0.5,
        ge=0,
        description="an evaluation is cut short once its loss can no longer end below this share of the way from the "
        "unquantized, untuned model's loss to that of a blind guess; 0: never",
    )
    shared_steps: int = Field(
        0,
        ge=0,
        description="steps in which one adapter is trained for all plans; each is then scored without training, as the "
        "lowest fidelity; 0: not offered",
    )
    final_steps: int = Field(100, ge=1, description="steps of the full fine-tuning of the chosen plan")
    final_epochs: float | None = Field(
        None, gt=0, description="its length in passes over the rows to tune on; wins over final_steps"
    )
    evaluate_every: int = Field(
        0,
        ge=0,
        description="steps of it between looks at the validation loss; the adapters of the lowest are kept; 0: those "
        "of the last step",
    )
    patience: int = Field(0, ge=0, description="such looks without a lower loss after which it ends; 0: never")
    checkpoint_every: int = Field(
        0, ge=0, description="steps of it between checkpoints, from which it is resumed; 0: by time alone"
    )
    checkpoint_minutes: float = Field(5.0, ge=0, description="likewise minutes; 0: by steps alone")
    sample_answers: int = Field(3, ge=0, description="test rows that the tuned plan's answers to are written down")
    test_rows: int = Field(128, ge=1, description="test rows that the final comparison is made on")

    @field_validator("init")
    @classmethod
    def _inits(cls, value: Any) -> Any:
        if isinstance(value, tuple):
            _check_distinct(value, "initialisations")
        return value

    @field_validator("patience")
    @classmethod
    def _looks(cls, value: int, info: ValidationInfo) -> int:
        if value and not info.data.get("evaluate_every"):
            raise ValueError("it counts looks at the validation loss, set training.evaluate_every as well")
        return value

    @property
    def rows_a_step(self) -> int:
        """Rows that one step of the optimizer sees."""
        return self.batch_size * self.accumulation

    @property
    def inits(self) -> tuple[Init, ...]:
        """The initialisations named, the search's own first."""
        return self.init if isinstance(self.init, tuple) else (self.init,)


class SearchConfig(_Section):
    """How the search is done."""

    strategy: str = DEFAULT_STRATEGY
    options: dict[str, Any] = Field(default_factory=dict, description="keyword options of the strategy")
    evaluations: float = Field(
        DEFAULT_EVALUATIONS, gt=0, description="full evaluations that may be spent, the prior's cost included"
    )
    metric: Literal["loss", "task"] = Field(
        "loss",
        description="what the search lowers: the loss of the wanted answers, or the task's own measure: of multiple "
        "choice the negative log-probability of the right choice among the choices, of generated answers the share "
        "that is wrong; the loss is recorded beside it",
    )
    memory: tuple[str, ...] = Field(
        (),
        description="budgets: bytes (108MiB, 6GiB), bits a weight (3.5bpw), a share of uniform 4-bit (75%), or a "
        "uniform plan (uniform3r8); none: the whole front",
    )
    memory_kind: Literal["resident", "peak"] = Field(
        "resident", description="what a budget limits: the tuned model's bytes, or those at the peak of training it"
    )
    seed: int = Field(0, ge=0)
    learn_from: str | None = Field(
        None, description="another run, or its log, whose trials give the prior; default: the prior is measured"
    )

    @field_validator("memory", mode="before")
    @classmethod
    def _texts(cls, values: Any) -> Any:
        several = (values,) if isinstance(values, (str, int)) else values
        return tuple(map(str, several)) if isinstance(several, (list, tuple)) else several

    @field_validator("memory")
    @classmethod
    def _sizes(cls, values: tuple[str, ...]) -> tuple[str, ...]:
        for value in values:
            check_size(value)
        return values


class RunConfig(_Section):
    """One whole run."""

    evaluator: str = Field("quantized-lora", description="name of an installed evaluator")
    model: ModelConfig = ModelConfig()
    task: TaskConfig = TaskConfig()
    quantization: QuantizationConfig = QuantizationConfig()
    space: SpaceConfig = SpaceConfig()
    training: TrainingConfig = TrainingConfig()
    search: SearchConfig = SearchConfig()
    engine: str | None = Field(
        None,
        description="where the result will run (llama.cpp, transformers, gptqmodel): decides the backend, which bits "
        "there are, and what `qra export` writes",
    )
    options: dict[str, Any] = Field(default_factory=dict, description="keyword options of the evaluator")

    @model_validator(mode="before")
    @classmethod
    def _engine_first(cls, data: Any) -> Any:
        """What an engine decides, where nothing else is said."""
        name = data.get("engine") if isinstance(data, dict) else None
        if not isinstance(name, str) or name not in ENGINES:
            return data
        filled = dict(data)
        for path, value in engine_settings(name).items():
            section, key = path.split(".")
            holder = filled.get(section, {})
            if isinstance(holder, dict) and holder.get(key) is None:
                filled[section] = {**holder, key: value}
        return filled

    @field_validator("engine")
    @classmethod
    def _known(cls, name: str | None) -> str | None:
        if name is not None and name not in ENGINES:
            raise ValueError(unknown_message("engine", name, ENGINES))
        return name


def load_config(path: str | Path, overrides: dict[str, Any] | None = None) -> RunConfig:
    """Read a YAML config; `overrides` maps dotted fields (`search.evaluations`) to values that win over the file.

    Raises:
        ConfigError: no such file, no YAML mapping, or a field that is wrong.
    """
    path = Path(path)
    if path.is_dir():
        raise ConfigError(f"config {str(path)!r} is a folder: give the YAML file, such as {path / 'config.yaml'}")
    if not path.is_file():
        raise ConfigError(f"no config file {str(path)!r}: `qra schema --example` prints one to start from")
    if path.stat().st_size > MAX_CONFIG_BYTES:
        raise ConfigError(f"{path} has {path.stat().st_size} bytes, a config has at most {MAX_CONFIG_BYTES}")
    try:
        data = read_yaml(path.read_text())
    except ValueError as error:
        raise ConfigError(f"{path} is not YAML that can be used: {error}") from None
    if data is None:
        data = {}
    if not isinstance(data, dict):
        raise ConfigError(
            f"{path} holds a {type(data).__name__}, a mapping of sections is needed: model, task, search, ..."
        )
    return make_config(data, overrides, source=str(path))


class _PlainLoader(yaml.SafeLoader):
    """Plain data whose size is that of its text: a few aliases would stand for gigabytes in every message."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        problem = ""
        if isinstance(event, yaml.AliasEvent):
            problem = f"*{str(event.anchor)[:40]} is an alias: write the value out"
        elif isinstance(event, yaml.ScalarEvent) and len(event.value) > MAX_YAML_TEXT:
            problem = f"a value has {len(event.value)} characters, at most {MAX_YAML_TEXT} are read"
        elif self.depth >= MAX_YAML_DEPTH:
            problem = f"values are nested deeper than {MAX_YAML_DEPTH}"
        if problem:
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


def read_yaml(text: str) -> Any:
    """The plain data of a YAML text.

    Raises:
        ValueError: it is not YAML, has an alias, or a value too long or nested too deep; in one line.
    """
    try:
        return _PlainLoader(text).get_single_data()
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
        place = f"line {mark.line + 1}, column {mark.column + 1}: {problem}" if mark and problem else str(error)
        raise ValueError(one_line(place, 500)) from None


def make_config(data: dict[str, Any], overrides: dict[str, Any] | None = None, source: str = "config") -> RunConfig:
    """A config from plain data; see `load_config`."""
    data = copy.deepcopy(data)
    for field, value in (overrides or {}).items():
        *sections, name = field.split(".")
        holder = data
        for depth, section in enumerate(sections):
            holder = holder.setdefault(section, {})
            if not isinstance(holder, dict):
                where = ".".join(sections[: depth + 1])
                raise ConfigError(f"{source}: {where} is {shortened(holder)}: a mapping is needed to set {field}")
        holder[name] = value
    try:
        config = RunConfig.model_validate(data)
    except ValidationError as error:
        raise ConfigError(f"{source}: {explain(error)}") from None
    if config.engine is not None:
        _check_engine(config, config.engine, source)
    return config


def _check_engine(config: RunConfig, name: str, source: str) -> None:
    """Raises ConfigError if what is chosen beside an engine is nothing that it has."""
    engine, given = ENGINES[name], config.quantization.backend
    backend = given.get("name") if isinstance(given, dict) else given  # type: ignore[call-overload]
    if not isinstance(backend, str) or not f"{backend}-".startswith(f"{engine.backend}-"):
        raise ConfigError(
            f"{source}: quantization.backend is {shortened(given)}: engine {name} runs what backend {engine.backend} "
            "stores, so leave the backend out"
        )
    lacking = [bits for bits in config.space.bits if bits not in (*engine.bits, UNQUANTIZED_BITS)]
    if lacking:
        raise ConfigError(
            f"{source}: space.bits has {', '.join(map(str, lacking))}: engine {name} has "
            f"{', '.join(map(str, engine.bits))}, and 16 for unquantized"
        )


def dump_config(config: RunConfig) -> str:
    """The config as YAML with every field, which `load_config` reads back to an equal one."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, width=100, default_flow_style=None)


def differences(old: RunConfig, new: RunConfig) -> dict[str, tuple[Any, Any]]:
    """Fields in which two configs differ, by dotted path: the old value and the new.

    A granularity of `auto` differs from none: which it is follows from the model, and the log's space tells.
    """
    found = dict(_differences(old.model_dump(mode="json"), new.model_dump(mode="json"), ""))
    if "auto" in found.get("space.granularity", ()):
        del found["space.granularity"]
    return found


def _differences(old: Any, new: Any, path: str) -> Iterator[tuple[str, tuple[Any, Any]]]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in [*old, *(k for k in new if k not in old)]:
            yield from _differences(old.get(key), new.get(key), f"{path}.{key}" if path else str(key))
    elif old != new:
        yield path, (old, new)


def explain(error: ValidationError) -> str:
    """The first fault of a validation as one line: path of the field, what was given, what is allowed."""
    fault = error.errors()[0]
    where = ".".join(str(part) for part in fault["loc"] if part != "str" and "[" not in str(part)) or "config"
    where = where if where.isprintable() and len(where) < 200 else shortened(where)
    if fault["type"] == "extra_forbidden":
        section: Any = RunConfig
        for part in fault["loc"][:-1]:
            section = section.model_fields[part].annotation
        allowed = list(section.model_fields)
        near = did_you_mean(fault["loc"][-1], allowed, most=1)
        listed = ", ".join(allowed) if len(allowed) <= MANY_FIELDS else "those that `qra schema` lists"
        return f"{where} is no known field: {near}allowed are {listed}"
    message = _ALLOWED.get(fault["type"]) or fault["msg"].removeprefix("Value error, ")
    return f"{where} is {shortened(fault['input'])}: {message[:1].lower() + message[1:]}"


_ALLOWED = {
    "model_type": "a mapping of fields is needed, such as {name: ...}",
    "dict_type": "a mapping is needed",
    "tuple_type": "a list is needed",
    "invalid_key": "names of fields are texts",
}
