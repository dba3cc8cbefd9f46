"""The sections of a run's config: what each may say, with its defaults. Docstrings of fields are in the schema."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    PositiveFloat,
    StrictFloat,
    StrictInt,
    WithJsonSchema,
    field_validator,
)

from qra_search.plugins import DEFAULT_EVALUATOR as DEFAULT_EVALUATOR
from qra_search.space.budgets import Budget, parse_budgets
from qra_search.space.memory import UNQUANTIZED_BITS, parse_bytes
from qra_search.space.space import DEFAULT_RANKS

DEFAULT_STRATEGY = "qra"
DEFAULT_EVALUATIONS = 24
"""What a search may spend if nothing is said: minutes with a real evaluator of a small model."""


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


def _wrap_single(given: Any) -> Any:
    """A single text or number as a list of one; `auto` and everything else as it is."""
    is_single = isinstance(given, str | int | float) and not isinstance(given, bool) and given != "auto"
    return (given,) if is_single else given


def _sort_choices(values: Any) -> Any:
    if values == "auto":
        return values
    if not values or len(set(values)) != len(values):
        raise ValueError("must be a list of one or more distinct values")
    return tuple(sorted(values))


class ModelConfig(Section):
    """Which model is tuned."""

    name: str = Field("smollm2", min_length=1)
    """`smollm2`, `tiny`, a folder, a GGUF file, or a hub id"""
    device: str = "auto"
    """`auto`, `cpu`, `cuda`, `cuda:1`"""
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    """dtype of unquantized parameters; auto: bfloat16"""
    compute: Literal["auto", "bfloat16", "float32"] = "auto"
    """dtype of evaluations. auto: the faster one on this machine; the stored dtype if the weights do not fit in
    dequantized_cache"""
    dequantized_cache: str = "auto"
    """memory for keeping weights dequantized, such as 2GiB; 0: none; auto: by how much is free. If not all weights fit,
    each is dequantized at every use"""

    @field_validator("dequantized_cache", mode="before")
    @classmethod
    def _check_size(cls, value: Any) -> Any:
        if str(value) not in ("auto", "0"):
            parse_bytes(value)
        return str(value)


class TaskConfig(Section):
    """What it is tuned on."""

    name: str = Field("arithmetic", min_length=1)
    """a task by name (see `qra tasks`), a file of prompts and answers or chats (.jsonl, .json, .csv, .parquet), or a
    data set on the hub, owner/name"""
    data: str | None = None
    """folder or file with the task's data; default: downloaded from the hub, or generated"""
    metrics: tuple[str, ...] = ()
    """functions of (answer, example) that score generated answers, each as FILE.py:NAME or module:NAME"""
    options: dict[str, Any] = {}
    """keyword options of the task"""

    _several = field_validator("metrics", mode="before")(_wrap_single)


Width = Annotated[StrictInt | StrictFloat, Field(ge=1, le=UNQUANTIZED_BITS)]
Rank = Annotated[StrictInt, Field(ge=0, le=4096)]


class QuantizationConfig(Section):
    """How weights are stored at each bit-width."""

    backend: str | dict[str | Width, Any] = "mixed-calibrated"
    """a backend (see `qra backends`), by name or as `{name: trellis, L: 14}`; or one for each bit-width,
    `{2: reference, 4: bitsandbytes-nf4}`"""
    embeddings: Literal["auto"] | tuple[Width, ...] = "auto"
    """bits to choose from for the token embeddings and the head; one number: of every plan; 16: left as they are; auto:
    every half bit from 1 to 4, 5 and 16, as far as the backend can store them"""
    calibration: Literal["outputs", "loss"] = "loss"
    """what the codes are chosen for. outputs: the least squared error of a linear's outputs. loss: the same error, with
    tokens and outputs weighted by their squared gradients"""
    calibration_tokens: int = Field(16384, ge=1)
    """tokens of train rows, about, on which the codes are chosen; a quarter of these takes a quarter of the time"""
    cache: str | None = None
    """folder of the bank of quantized weights; default: the user's cache"""

    _several = field_validator("embeddings", mode="before")(_wrap_single)
    _sorted = field_validator("embeddings")(_sort_choices)

    @field_validator("backend", mode="before")
    @classmethod
    def _read_widths(cls, given: Any) -> Any:
        """Widths as numbers, which in JSON are texts; `make_backend` checks what is given for each."""
        if not isinstance(given, dict) or "name" in given:
            return given
        try:
            widths = [float(key) for key in given]
        except ValueError:
            raise ValueError(
                "a backend as a mapping needs the key `name`, or only bit-widths as keys"
            ) from None
        return {
            int(bits) if bits.is_integer() else bits: specs
            for bits, specs in zip(widths, given.values(), strict=True)
        }


class SpaceConfig(Section):
    """What may be chosen, and for what."""

    bits: Literal["auto"] | tuple[Width, ...] = "auto"
    """bits to choose from, whole or and a half (16: left unquantized); auto: every half bit from
    1 to 4, and 5, as far as the backend has them; 8 if it has no 5"""
    ranks: tuple[Rank, ...] = (2, *DEFAULT_RANKS)
    """LoRA ranks to choose from; 0: no adapter"""
    granularity: Literal["auto", "module", "expert", "layer", "fused"] = "auto"
    """what shares one choice: a linear (module), an expert's linears (expert), a decoder layer, or what engines run as
    one matrix (fused); auto: expert for a mixture of experts, module for any other model"""
    learning_rates: tuple[PositiveFloat, ...] = ()
    """learning rates that a search may choose from beside training.learning_rate, with a strategy that searches them
    (random, nsga2, bayes)"""
    lengths: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = ()
    """shares of evaluation.steps that a search may evaluate a plan with, beside all of them, with such a strategy; an
    evaluation is charged its share"""

    _sorted = field_validator("bits", "ranks")(_sort_choices)
    _several = field_validator("learning_rates", "lengths", mode="before")(_wrap_single)


class TrainingConfig(Section):
    """How adapters are tuned: briefly in an evaluation, and to the end in the fine-tuning of the chosen plan."""

    batch_size: int = Field(8, ge=1)
    """rows that go through the model together"""
    accumulation: int = Field(1, ge=1)
    """batches whose gradients are summed for one step"""
    learning_rate: Literal["auto"] | PositiveFloat = "auto"
    """peak learning rate. auto: that of a full tuning is foretold from short trials, or from its steps alone if it is
    short; that of an evaluation is 0.001"""
    warmup: float = Field(0.1, ge=0, lt=1)
    """share of the steps in which the learning rate rises; in the others it falls to 0"""
    weight_decay: float = Field(0.0, ge=0)
    alpha: float = Field(16.0, gt=0)
    """LoRA alpha, the same at every rank: an adapter is scaled by alpha / rank"""
    dropout: float = Field(0.0, ge=0, lt=1)
    scales: bool | Literal["auto"] = "auto"
    """train the scales and offsets of quantized weights together with the adapters, which takes no bytes. auto: only
    scales of whole rows, since scales of groups make a step up to 50% longer"""
    scales_rate: float = Field(1e-3, gt=0)
    """learning rate of trained scales, relative to the scale"""
    max_length: int = Field(256, ge=8)
    """tokens of a row; longer prompts are cut at the left"""
    gradient_checkpointing: bool = False
    """recompute activations in the backward pass: less memory, a third more time"""

    @property
    def rate(self) -> float:
        """The learning rate; of `auto` that of an evaluation."""
        return 1e-3 if self.learning_rate == "auto" else self.learning_rate

    @property
    def rows_a_step(self) -> int:
        return self.batch_size * self.accumulation


class EvaluationConfig(Section):
    """One evaluation of a search: a short tuning, then the loss on held-out rows."""

    steps: int = Field(12, ge=0)
    """optimizer steps of a full evaluation"""
    validation_rows: int = Field(64, ge=1)
    """held-out rows of a full evaluation; a search overfits them if they are few"""


class FinetuneConfig(Section):
    """The full fine-tuning of the chosen plan, and the comparison on test rows."""

    steps: int = Field(100, ge=1)
    """optimizer steps"""
    epochs: float | None = Field(None, gt=0)
    """passes over the train split; wins over steps"""
    evaluate_every: int = Field(0, ge=0)
    """evaluate on the validation split every so many steps, and keep the adapters of the best evaluation; 0: keep those
    of the last step"""
    checkpoint_minutes: float = Field(5.0, ge=0)
    """minutes between checkpoints; 0: after every step"""
    sample_answers: int = Field(3, ge=0)
    """test rows whose answers, before tuning and after, are recorded"""
    test_rows: int = Field(256, ge=1)
    """test rows of the final comparison"""
    scored_rows: int = Field(256, ge=0)
    """test rows whose answers are scored by the task's metrics; 0: none"""

    beside: ClassVar[frozenset[str]] = frozenset(
        {"checkpoint_minutes", "sample_answers", "test_rows", "scored_rows"}
    )
    """Fields that change nothing of how a plan is tuned: what is written down and measured beside it."""


MemoryBudget = Annotated[
    Budget,
    PlainSerializer(lambda budget: budget.text),
    WithJsonSchema({"anyOf": [{"type": "integer"}, {"type": "string"}]}),
]


class SearchConfig(Section):
    """How the search is done."""

    strategy: str = DEFAULT_STRATEGY
    """search strategy (see `qra strategies`)"""
    options: dict[str, Any] = {}
    """keyword options of the strategy"""
    evaluations: float = Field(DEFAULT_EVALUATIONS, gt=0)
    """search budget, in full evaluations"""
    metric: Literal["loss", "task"] = "loss"
    """what the search lowers. loss: the loss of the wanted answers. task: the task's own measure, 1 minus its
    first metric"""
    memory: tuple[MemoryBudget, ...] = ()
    """memory budgets: bytes (108MiB, 6GiB), bits a weight (3.5bpw), a share of uniform 4-bit (75%), or a uniform plan
    (uniform3r8). Without one the whole front is searched"""
    seed: int = Field(0, ge=0, lt=1 << 63)
    """random seed of the search"""

    _parsed = field_validator("memory", mode="before")(parse_budgets)
