"""What a search is made of and leaves: frozen pydantic schemas, in memory, in its journal and between processes.

A `plan.json`, which people and other tools read, has a plan by the names of its groups instead (`plan_to_dict`).

All are pydantic dataclasses: checked when they are made, also from positional arguments and by `dataclasses.replace`.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import field
from functools import cache, cached_property
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import (
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeInt,
    PlainSerializer,
    PlainValidator,
    PositiveFloat,
    PositiveInt,
    StrictInt,
    StrictStr,
    TypeAdapter,
)
from pydantic.dataclasses import dataclass

from qra_search.errors import EvaluationFailed

MODEL_CONFIG = ConfigDict(extra="forbid", ser_json_inf_nan="strings")
MAX_INT = 1 << 63
LENGTH_PARAMETER = "length"
"""Name of the extra parameter that is a share of a full evaluation's steps."""

LevelName = int | str
_LEVEL_NAME_PATTERN = re.compile(r"[A-Za-z][\w.-]*", re.ASCII)

Status = Literal["running", "done", "failed"]
Int64 = Annotated[int, Field(ge=-MAX_INT, lt=MAX_INT)]
Name = Annotated[str, Field(min_length=1)]


class Schema:
    """A schema's way to plain data and back."""

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        data: dict[str, Any] = make_adapter(type(self)).dump_python(self, mode="json")
        return data

    @classmethod
    def from_dict(cls, data: Any) -> Self:
        """The inverse of `to_dict`; raises pydantic's ValidationError, a ValueError, for other data."""
        made: Self = make_adapter(cls).validate_python(data)
        return made


make_adapter: Callable[[Any], TypeAdapter[Any]] = cache(TypeAdapter)
"""Pydantic's reader and writer of a class, made once."""


@dataclass(frozen=True, config=MODEL_CONFIG)
class Linear(Schema):
    """One linear map of the model, by its path and shape."""

    name: Name
    out_features: PositiveInt
    in_features: PositiveInt

    @property
    def weights(self) -> int:
        return self.out_features * self.in_features


@dataclass(frozen=True, config=MODEL_CONFIG)
class Group(Schema):
    """Linears that share one choice of bits and rank.

    `bits` (names of levels) and `ranks` narrow the space's choices for this group; None allows all of them.
    A group that `is_embedding` follows uniform plans as far as it can: it takes their level, or the next wider that it
    allows, and its own lowest rank.
    `kind` names what such groups have in common across layers (`v_proj`, `layer`), and `depth` is the
    index of the decoder layer: both only inform models of the loss, and may be left out.
    """

    name: Name
    linears: Annotated[tuple[Linear, ...], Field(min_length=1)]
    bits: tuple[LevelName, ...] | None = None
    ranks: tuple[int, ...] | None = None
    kind: str = ""
    depth: int | None = None
    is_embedding: bool = False

    @property
    def weights(self) -> int:
        return sum(linear.weights for linear in self.linears)


@dataclass(frozen=True, config=MODEL_CONFIG)
class ExtraParameter(Schema):
    """What a search may choose beside bits and ranks, for the whole plan.

    Attributes:
        values: numbers to choose from, ascending, above 0.
        default: one of them, that of plans which name none.
    """

    values: Annotated[tuple[PositiveFloat, ...], Field(min_length=1)]
    default: float

    def __post_init__(self) -> None:
        if list(self.values) != sorted(set(self.values)) or self.default not in self.values:
            raise ValueError(
                f"values of an extra parameter must ascend, each once, with the default {self.default} among them: "
                f"got {self.values}"
            )


def _convert_numpy_integers(values: Any) -> Any:
    """Integers of numpy among the values as Python's: the only other kind that a plan takes."""
    if not isinstance(values, (list, tuple, np.ndarray)):
        raise ValueError(
            f"bits and ranks of a plan must be lists with an entry for each group, got {values!r}"
        )
    return tuple(value.item() if isinstance(value, np.integer) else value for value in values)


@dataclass(frozen=True, config=MODEL_CONFIG)
class Plan(Schema):
    """One choice for every group, in the order of the space's groups.

    Attributes:
        bits: names of storage levels, such as `(2, "nf4", 3)`.
        ranks: of the adapters; 0 is none.
        extra: names and values of what else a space lets search (`SearchSpace.extra`), such as
            `(("learning_rate", 0.004),)`; what is not named is as the evaluator has it.
    """

    bits: Annotated[tuple[StrictInt | StrictStr, ...], BeforeValidator(_convert_numpy_integers)]
    ranks: Annotated[tuple[StrictInt, ...], BeforeValidator(_convert_numpy_integers)]
    extra: tuple[tuple[str, float], ...] = ()

    def __post_init__(self) -> None:
        for level in set(self.bits):
            check_level_name(level)
        if not self.bits or len(self.bits) != len(self.ranks):
            raise ValueError(
                f"bits and ranks of a plan must be lists of one length, at least 1: got {len(self.bits)} and "
                f"{len(self.ranks)}"
            )

    @cached_property
    def key(self) -> str:
        """A short text that is equal for equal plans."""
        # Kept: a search asks for the keys of all its trials before every proposal.
        key = ",".join(map(str, self.bits)) + "|" + ",".join(map(str, self.ranks))
        return "|".join([key, *(f"{name}={value:g}" for name, value in self.extra)])

    @property
    def length(self) -> float:
        """Share of a full evaluation's steps that the plan asks for; evaluating it is charged so much."""
        return dict(self.extra).get(LENGTH_PARAMETER, 1.0)

    def __str__(self) -> str:
        counts = Counter(self.bits)
        order = sorted(counts, key=lambda name: (isinstance(name, str), name))
        shares = ", ".join(f"{counts[name]} at {format_level(name)}" for name in order)
        return f"Plan({len(self.bits)} groups: {shares}; mean rank {sum(self.ranks) / len(self.ranks):.1f})"


def check_level_name(name: LevelName) -> None:
    """Raises ValueError if a text cannot name a level."""
    if isinstance(name, str) and not _LEVEL_NAME_PATTERN.fullmatch(name):
        raise ValueError(
            f"{name!r} cannot name a storage level: a number of bits is needed, such as 4, or a name that starts with "
            "a letter and has only letters, digits, '_', '.' and '-', such as nf4"
        )


def format_level_label(name: LevelName) -> str:
    """A level's name in a cell: `4`, `nf4`, and `1.5` for `trellis-1.5`, as numbers name whole widths alone."""
    text = str(name)
    width = text.rpartition("-")[2]
    return width if "." in width and width.replace(".", "", 1).isdecimal() else text


def format_level(name: LevelName) -> str:
    """A level's name within a sentence: `4 bits`, `1.5 bits`, `nf4`."""
    label = format_level_label(name)
    if label == name:
        return label
    return f"{label} bit" if label == "1" else f"{label} bits"


@dataclass(frozen=True, config=MODEL_CONFIG)
class Evaluation(Schema):
    """What came of one plan.

    Attributes:
        loss: held-out loss in nats, lower is better.
        memory_bytes: exact resident bytes of the plan.
        seconds: wall time of the evaluation.
        fidelity: share of a full evaluation that was spent, in (0, 1]; a search is charged that of the proposal.
        seed: what initialisation, data order and dropout followed.

    Raises:
        EvaluationFailed: the loss is not finite or has diverged.
        ValueError: a field is of another kind.
    """

    loss: float
    memory_bytes: Int64
    metrics: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    fidelity: float = Field(default=1.0, gt=0.0, le=1.0)
    seed: Int64 = 0

    def __post_init__(self) -> None:
        if not abs(self.loss) < 1e100:  # nan is not below it either; the square of a larger one is no number
            raise EvaluationFailed(f"the loss is {self.loss}, and must be a finite number below 1e100")


@dataclass(frozen=True, config=MODEL_CONFIG)
class Proposal(Schema):
    """What a strategy asks to be evaluated.

    Attributes:
        origin: why it was proposed (`uniform`, `sweep`, `confirm`, ...), for the record.
        predicted_loss: what the strategy expected, if it has a model.
    """

    plan: Plan
    fidelity: float = 1.0
    seed: Int64 = 0
    origin: str = ""
    predicted_loss: float | None = None

    @property
    def key(self) -> tuple[Plan, float, int]:
        """Equal for proposals that would repeat the same evaluation."""
        return self.plan, self.fidelity, self.seed


@dataclass(frozen=True, config=MODEL_CONFIG)
class Trial(Schema):
    """A proposal, and what became of it. `id` counts from 0 in the order of proposing."""

    id: NonNegativeInt
    proposal: Proposal
    status: Status = "running"
    evaluation: Evaluation | None = None
    reason: str = ""
    proposed_at: float = 0.0
    finished_at: float | None = None

    def __post_init__(self) -> None:
        if (self.status == "done") != (self.evaluation is not None):
            needs = "needs an" if self.status == "done" else "must have no"
            raise ValueError(f"trial {self.id} with status {self.status} {needs} evaluation")

    @property
    def plan(self) -> Plan:
        return self.proposal.plan

    @property
    def fidelity(self) -> float:
        return self.proposal.fidelity

    @property
    def cost(self) -> float:
        return self.fidelity * self.plan.length

    @property
    def seed(self) -> int:
        return self.proposal.seed

    @property
    def done(self) -> bool:
        return self.status == "done"

    @property
    def loss(self) -> float:
        assert self.evaluation is not None
        return self.evaluation.loss


def _make_matrix(values: Any) -> np.ndarray:
    array = np.array(values, dtype=float)
    if array.ndim != 2:
        raise ValueError(f"sensitivities must be a matrix, (groups, choices), got shape {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError(
            f"sensitivities must be finite, got {(~np.isfinite(array)).sum()} numbers that are not"
        )
    array.setflags(write=False)
    return array


Matrix = Annotated[np.ndarray, PlainValidator(_make_matrix), PlainSerializer(np.ndarray.tolist)]


@dataclass(frozen=True, config=MODEL_CONFIG)
class Sensitivities(Schema):
    """Sensitivity of every group, measured once before a search; in nats of loss.

    Attributes:
        bits_damage: float (G, B), rise of the loss when one group is at each bit-width and the rest are not
            quantized. Not negative, falling with bits.
        rank_gain: float (G, R), fall of the loss that an adapter of each rank on one group brings.
        cost: full evaluations that take as long as measuring it did.
        repair: how fast rank repairs damage: the share that tuning leaves of it at rank r is (1 + r)^-repair. The
            default fits SmolLM2 tuned on GSM8K at 3 bits with alpha at twice the rank (52%, 36%, 24% and 17% of the
            untuned damage left at ranks 4, 8, 16 and 32); with one alpha for all ranks it is 0.
    """

    bits_damage: Matrix
    rank_gain: Matrix
    cost: float = Field(default=0.0, ge=0.0, lt=math.inf)
    seconds: float = 0.0
    source: str = ""
    repair: float = 0.5


@dataclass(frozen=True, config=MODEL_CONFIG)
class TuningRecord(Schema):
    """One finished fine-tuning, measured on test rows; or the untuned model, with rank 0 and no steps.

    Attributes:
        plan: of the evaluator's space, or of its `unquantized`.
        seconds: wall time, that before an interruption included.
        row_nats: summed test loss of each row; empty if the tuning diverged.
        row_tokens: labelled tokens of each row.
        row_scores: the task's metrics by name, one score for each scored row.
        validation_loss: nats a labelled token of the validation rows; None if it diverged.
        commonest_scores: by metric, the mean score if every scored row had the commonest wanted answer.
        metric_digests: of the source of each metric that scored generated answers.
        samples: generated answers, each with `prompt`, `wanted`, `before` the tuning and `after` it.
        failed: why it diverged; empty if it did not.
        unscored: why answers were not scored; empty if they were, or nobody asked.
        settings: all else that the figures follow from, as plain data: training, model, backend, rows. Records whose
            settings are equal can be compared.
    """

    plan: Plan
    seed: Int64
    steps: int
    memory_bytes: Int64
    seconds: float = 0.0
    row_nats: tuple[float, ...] = field(default=(), repr=False)
    row_tokens: tuple[int, ...] = field(default=(), repr=False)
    row_scores: dict[str, tuple[float, ...]] = field(default_factory=dict, repr=False)
    samples: tuple[dict[str, str], ...] = field(default=(), repr=False)
    validation_loss: float | None = None
    commonest_scores: dict[str, float] = field(default_factory=dict, repr=False)
    metric_digests: dict[str, str] = field(default_factory=dict, repr=False)
    failed: str = ""
    unscored: str = ""
    settings: dict[str, Any] = field(default_factory=dict, repr=False)
    finished_at: float = 0.0

    @cached_property
    def id(self) -> str:
        """Short digest of plan, seed and settings; the name of the tuning's folder."""
        return tuning_id(self.plan, self.seed, self.settings)

    @property
    def test_loss(self) -> float:
        """Nats a labelled token; inf if the tuning diverged."""
        if not self.row_nats or self.failed:
            return math.inf
        return sum(self.row_nats) / max(1, sum(self.row_tokens))

    @property
    def metrics(self) -> dict[str, float]:
        return {name: sum(scores) / len(scores) for name, scores in self.row_scores.items() if scores}

    @property
    def has_adapter(self) -> bool:
        return any(self.plan.ranks) and not self.failed

    @property
    def learning_rate(self) -> float | None:
        """Peak learning rate of the optimizer; None for the untuned model, and if the settings have none."""
        return None if self.is_untuned else self.settings.get("training", {}).get("learning_rate")

    @property
    def is_untuned(self) -> bool:
        return self.steps == 0


def tuning_id(plan: Plan, seed: int, settings: Mapping[str, Any]) -> str:
    """Short digest of what a tuning follows from."""
    content = json.dumps([plan.to_dict(), seed, settings], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:12]
