"""Results as rows: plain dictionaries, which pandas makes frames of."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, Literal

from qra_search.log.trial import Trial
from qra_search.space.space import SearchSpace
from qra_search.study.evaluated_plan import EvaluatedPlan

RowsOf = Literal["candidates", "trials"]
Row = dict[str, Any]


def candidate_rows(
    space: SearchSpace, candidates: Iterable[EvaluatedPlan], front: Iterable[EvaluatedPlan]
) -> list[Row]:
    """A row for each candidate, which says whether it is on the front."""
    on_front = {c.plan.key for c in front}
    return [
        {
            "loss": c.loss,
            "loss_std": c.loss_std if math.isfinite(c.loss_std) else None,
            "memory_bytes": c.memory_bytes,
            "on_front": c.plan.key in on_front,
            "uniform": space.uniform_choice(c.plan) is not None,
            "mean_bits": space.mean_bits(c.plan),
            "mean_rank": space.mean_rank(c.plan),
            "observed": c.observed,
            "evaluations": c.evaluations,
            **c.plan.to_dict(),
        }
        for c in candidates
    ]


def trial_row(trial: Trial) -> Row:
    """A trial; one that is running or failed has None for all that an evaluation says."""
    proposal, evaluation = trial.proposal, trial.evaluation
    return {
        "id": trial.id,
        "status": trial.status,
        **trial.plan.to_dict(),
        "fidelity": trial.fidelity,
        "seed": trial.seed,
        "origin": proposal.origin,
        "predicted_loss": proposal.predicted_loss,
        "predicted_std": proposal.predicted_std,
        "reason": trial.reason,
        "proposed_at": trial.proposed_at,
        "finished_at": trial.finished_at,
        "loss": evaluation.loss if evaluation else None,
        "memory_bytes": evaluation.memory_bytes if evaluation else None,
        "metrics": dict(evaluation.metrics) if evaluation else None,
        "seconds": evaluation.seconds if evaluation else None,
        "cost": evaluation.charged if evaluation else None,
    }


def to_pandas(rows: Sequence[Row]) -> Any:
    """Rows as a `pandas.DataFrame`, the metrics of trials in columns of their own, `metrics.NAME`.

    Raises:
        ImportError: pandas is not installed.
    """
    try:
        import pandas
    except ImportError:
        raise ImportError("a pandas frame needs pandas: pip install pandas, or take .rows()", name="pandas") from None
    # A None in place of the metrics would be a column of its own.
    return pandas.json_normalize([{k: v for k, v in row.items() if k != "metrics" or v} for row in rows])
