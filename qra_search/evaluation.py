"""What is known of a plan: the evaluator contract, its results, and the prior."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from qra_search.space import Plan, SearchSpace


@dataclass(frozen=True)
class Evaluation:
    """What came of one plan.

    Attributes:
        loss: held-out loss in nats, lower is better.
        memory_bytes: exact resident bytes of the plan.
        metrics: further figures by name.
        seconds: wall time of the evaluation.
        fidelity: share of a full evaluation that was spent, in (0, 1].
        seed: what initialisation, data order and dropout followed.
        cost: what is charged to the search, in full evaluations; None means `fidelity`.
    """

    loss: float
    memory_bytes: int
    metrics: Mapping[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    fidelity: float = 1.0
    seed: int = 0
    cost: float | None = None

    @property
    def charged(self) -> float:
        """Full evaluations that this one costs the search."""
        return self.fidelity if self.cost is None else self.cost


@dataclass(frozen=True)
class Prior:
    """Sensitivity of every group, measured once before a search; in nats of loss.

    Attributes:
        bits_damage: float (G, B), rise of the loss when one group is at each bit-width and the rest are not
            quantized. Not negative, falling with bits.
        rank_gain: float (G, R), fall of the loss that an adapter of each rank on one group brings.
        cost: full evaluations that measuring it took; charged to the search.
        seconds: wall time that measuring it took.
        source: how it was measured.
        repair: how fast rank repairs damage: the share that tuning leaves of it at rank r is (1 + r)^-repair. The
            default fits SmolLM2 tuned on GSM8K at 3 bits with alpha at twice the rank (52%, 36%, 24% and 17% of the
            untuned damage left at ranks 4, 8, 16 and 32); with one alpha for all ranks it is 0.
    """

    bits_damage: np.ndarray
    rank_gain: np.ndarray
    cost: float = 0.0
    seconds: float = 0.0
    source: str = ""
    repair: float = 0.5

    def __post_init__(self) -> None:
        for name in ("bits_damage", "rank_gain"):
            array = np.array(getattr(self, name), dtype=float)
            if array.ndim != 2 or not np.isfinite(array).all():
                raise ValueError(f"prior {name} must be a finite (groups, choices) array, got shape {array.shape}")
            array.setflags(write=False)
            object.__setattr__(self, name, array)
        if len(self.bits_damage) != len(self.rank_gain):
            raise ValueError(
                f"prior bits_damage has {len(self.bits_damage)} groups, rank_gain has {len(self.rank_gain)}"
            )

    def check(self, space: SearchSpace) -> None:
        """Raises ValueError where the shapes are not those of the space."""
        want = ((len(space), len(space.bits)), (len(space), len(space.ranks)))
        got = (self.bits_damage.shape, self.rank_gain.shape)
        if got != want:
            raise ValueError(f"prior shapes are {got}, the space needs {want} (groups by bits, groups by ranks)")

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return {
            "bits_damage": self.bits_damage.tolist(),
            "rank_gain": self.rank_gain.tolist(),
            "cost": self.cost,
            "seconds": self.seconds,
            "source": self.source,
            "repair": self.repair,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Prior:
        """The inverse of `to_dict`."""
        return cls(**dict(data))


class EvaluationFailed(RuntimeError):
    """The plan could not be evaluated; the message is the reason that the log keeps."""


class Evaluator(ABC):
    """Says what a plan is worth.

    A subclass sets `space` and implements `evaluate`. The same plan, fidelity and seed give the same loss.
    """

    space: SearchSpace
    fidelities: tuple[float, ...] = (1.0,)
    """Fidelities that `evaluate` accepts, ascending; the last is 1."""

    @abstractmethod
    def evaluate(self, plan: Plan, *, fidelity: float = 1.0, seed: int = 0) -> Evaluation:
        """Evaluate one plan of the space.

        Raises:
            EvaluationFailed: it cannot be evaluated (out of memory, not finite); the search goes on.
        """

    def prior(self) -> Prior | None:
        """Sensitivity of the groups, measured once and cached; None where there is none."""
        return None

    def describe(self) -> dict[str, Any]:
        """What identifies the evaluator (model, data, settings), as plain data. A log refuses another one."""
        return {}

    def close(self) -> None:
        """Free what the evaluator holds."""
        return None


def check_evaluation(evaluation: Evaluation, space: SearchSpace, plan: Plan) -> Evaluation:
    """The evaluation itself, or EvaluationFailed where its loss or its bytes cannot be true."""
    if not isinstance(evaluation, Evaluation):
        raise EvaluationFailed(f"the evaluator returned {type(evaluation).__name__}, an Evaluation is needed")
    if not math.isfinite(evaluation.loss):
        raise EvaluationFailed(f"loss is {evaluation.loss}")
    expected = space.memory_bytes(plan)
    if int(evaluation.memory_bytes) != expected:
        raise EvaluationFailed(
            f"the evaluator counted {evaluation.memory_bytes} bytes, the space counts {expected} for the same plan"
        )
    return evaluation
