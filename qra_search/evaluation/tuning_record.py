"""One finished fine-tuning: its plan, seed and settings, and the figures of every test row. None of them changes."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from qra_search.space.space import Plan

DIGITS = 12
"""Hexadecimal digits of a tuning's id."""


@dataclass(frozen=True)
class TuningRecord:
    """One finished fine-tuning, measured on test rows; or the untuned model, with rank 0 and no steps.

    Attributes:
        plan: of the evaluator's space, or of its `unquantized`.
        seed: that initialisation, data order and dropout followed.
        steps: optimizer steps that were asked for.
        memory_bytes: exact resident bytes of the plan.
        seconds: wall time, that before an interruption included.
        row_nats: summed test loss of each row; empty if the tuning diverged.
        row_tokens: labelled tokens of each row.
        row_scores: the task's metrics by name, one score for each scored row.
        validation_loss: nats a labelled token of the validation rows; None if it diverged, or of older versions.
        commonest_scores: by metric, the mean score if every scored row had the commonest wanted answer.
        metric_digests: of the source of each metric that scored generated answers.
        samples: generated answers, each with `prompt`, `wanted`, `before` the tuning and `after` it.
        failed: why it diverged; empty if it did not.
        reload_error: why the saved adapter does not load back as it was tuned; empty if it does.
        unscored: why answers were not scored; empty if they were, or nobody asked.
        settings: all else that the figures follow from, as plain data: training, model, backend, rows. Records whose
            settings are equal can be compared.
        finished_at: seconds since 1970; if its learning rate was chosen among several, when it was.
    """

    plan: Plan
    seed: int
    steps: int
    memory_bytes: int
    seconds: float = 0.0
    row_nats: tuple[float, ...] = field(default=(), repr=False)
    row_tokens: tuple[int, ...] = field(default=(), repr=False)
    row_scores: Mapping[str, tuple[float, ...]] = field(default_factory=dict, repr=False)
    samples: tuple[Mapping[str, str], ...] = field(default=(), repr=False)
    validation_loss: float | None = None
    commonest_scores: Mapping[str, float] = field(default_factory=dict, repr=False)
    metric_digests: Mapping[str, str] = field(default_factory=dict, repr=False)
    failed: str = ""
    reload_error: str = ""
    unscored: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict, repr=False)
    finished_at: float = 0.0

    @cached_property
    def id(self) -> str:
        """Short digest of plan, seed and settings; the name of the tuning's folder."""
        return tuning_id(self.plan, self.seed, self.settings)

    @property
    def test_loss(self) -> float:
        """Nats a labelled token; inf if the tuning diverged."""
        return (
            sum(self.row_nats) / max(1, sum(self.row_tokens))
            if self.row_nats and not self.failed
            else math.inf
        )

    @property
    def metrics(self) -> dict[str, float]:
        """Mean score of each metric."""
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
        """Whether it is of the model as it was loaded."""
        return self.steps == 0


def tuning_id(plan: Plan, seed: int, settings: Mapping[str, Any]) -> str:
    """Short digest of what a tuning follows from."""
    content = json.dumps([plan.to_dict(), seed, settings], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:DIGITS]
