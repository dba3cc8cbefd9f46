"""Results as rows: plain dictionaries, which pandas and polars make frames of."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal, get_args

if TYPE_CHECKING:
    from qra_search.log.trial import Trial
    from qra_search.study.result import SearchResult

RowsOf = Literal["candidates", "trials"]


def rows(result: SearchResult, of: RowsOf = "candidates") -> list[dict[str, Any]]:
    """One row for each plan that was fully evaluated (cheapest first), or for each trial (oldest first).

    Sizes are in bytes, times in seconds since 1970 or in seconds, losses in the evaluator's unit; what is not known is
    None. `bits` and `ranks` are lists in the order of the space's groups.

    Raises:
        ValueError: `of` is neither.
    """
    if of not in get_args(RowsOf):
        raise ValueError(f"rows of {of!r} are not kept: say one of {', '.join(get_args(RowsOf))}")
    return candidate_rows(result) if of == "candidates" else [trial_row(t) for t in result.trials]


def candidate_rows(result: SearchResult) -> list[dict[str, Any]]:
    """The candidates of a result."""
    front = {c.plan.key for c in result.front}
    return [
        {
            "loss": c.loss,
            "loss_std": _known(c.loss_std),
            "memory_bytes": c.memory_bytes,
            "on_front": c.plan.key in front,
            "uniform": c.plan.is_uniform,
            "mean_bits": result.space.mean_bits(c.plan),
            "mean_rank": sum(c.plan.ranks) / len(c.plan.ranks),
            "observed": c.observed,
            "evaluations": c.evaluations,
            "bits": list(c.plan.bits),
            "ranks": list(c.plan.ranks),
        }
        for c in result.candidates
    ]


def trial_row(trial: Trial) -> dict[str, Any]:
    """A trial; one that is running or failed has None for all that an evaluation says."""
    proposal, evaluation = trial.proposal, trial.evaluation
    return {
        "id": trial.id,
        "status": trial.status,
        "bits": list(trial.plan.bits),
        "ranks": list(trial.plan.ranks),
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


def to_pandas(result: SearchResult, of: RowsOf = "candidates") -> Any:
    """`rows` as a `pandas.DataFrame`, the metrics of trials in columns of their own, `metrics.NAME`.

    Raises:
        ImportError: pandas is not installed.
    """
    try:
        import pandas
    except ImportError:
        raise ImportError("a pandas frame needs pandas: pip install pandas, or take .rows()", name="pandas") from None
    return pandas.DataFrame(_flat(rows(result, of)))


def to_polars(result: SearchResult, of: RowsOf = "candidates") -> Any:
    """Likewise, as a `polars.DataFrame`.

    Raises:
        ImportError: polars is not installed.
    """
    try:
        import polars
    except ImportError:
        raise ImportError("a polars frame needs polars: pip install polars, or take .rows()", name="polars") from None
    return polars.DataFrame(_flat(rows(result, of)), infer_schema_length=None)


def _flat(table: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows with the same columns each, metrics spread out."""
    names = list(dict.fromkeys(n for row in table for n in row.get("metrics") or ()))
    flat = []
    for row in table:
        metrics = row.get("metrics") or {}
        plain = {name: value for name, value in row.items() if name != "metrics"}
        flat.append(plain | {f"metrics.{name}": metrics.get(name) for name in names})
    return flat


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None
