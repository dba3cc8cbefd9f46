"""How plans, sizes, times and findings are put into words; one wording for the terminal and the report."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

from qra_search.app.config import RunConfig
from qra_search.app.intervals import Interval
from qra_search.engines import ENGINES, estimate_resident_bytes
from qra_search.schemas import Plan, format_level
from qra_search.space.memory import format_bytes
from qra_search.space.space import SearchSpace
from qra_search.study.result import LossChange

NON_SHARE_SUFFIXES = ("loss", "perplexity")
"""Ends of the names of metrics that are no shares of rows."""


def format_plan(plan: Plan, space: SearchSpace) -> str:
    """`uniform 3 bits, rank 8`, or `mixed, 2.91 bits, rank 11.4` with the averages over the groups; and the level of
    the embeddings if it is searched, and not that of everything else."""
    tables = dict.fromkeys(b for g, b in zip(space.groups, plan.bits, strict=True) if g.is_embedding)
    choice = space.uniform_choice(plan)
    apart = bool(tables) and (choice is None or set(tables) != {choice[0]})
    rest = f", embeddings {' and '.join(map(format_level, tables))}" if apart else ""
    if choice is not None:
        return f"uniform {format_level(choice[0])}, rank {choice[1]}{rest}"
    rank = space.mean_rank(plan)
    return (
        f"mixed, {space.mean_bits(plan):.2f} bits, rank {rank:{'.0f' if rank.is_integer() else '.1f'}}{rest}"
    )


def format_role(role: str, plan: Plan, space: SearchSpace) -> str:
    """A tuned plan in a table: by its role, and its choices if the role does not tell them."""
    short = {"untuned": "untuned, 16 bits", "16-bit": f"16-bit LoRA, rank {max(plan.ranks)}"}
    prefix = {"plan": "plan: ", "shuffled": "shuffled: "}
    return short.get(role) or prefix.get(role, "") + format_plan(plan, space)


def format_level_counts(plan: Plan, space: SearchSpace) -> str:
    """How many groups have each level: `12 at 2 bits, 18 at nf4`."""
    counts = Counter(plan.bits)
    return ", ".join(f"{counts[name]} at {format_level(name)}" for name in space.bits if counts[name])


def format_loss(value: float, std: float = math.nan) -> str:
    """A loss to four figures, with its deviation where one is known."""
    if not math.isfinite(value):
        return "diverged"
    text = f"{value:#.4g}".rstrip(".")
    return text if not math.isfinite(std) else f"{text} ± {std:.2g}"


def format_change(change: LossChange) -> str:
    """A change of a loss with its interval, `−16.4% (−20.1 to −12.7)`, in digits that tell a small one from zero."""
    digits = next((n for n in range(1, 5) if round(100 * change.share, n)), 1)
    share, *ends = (format_percent(share, "+", digits) for share in (change.share, *(change.interval or ())))
    interval = " to ".join(end.removesuffix("%") for end in ends)
    return f"{share} ({interval})" if ends else f"{share}, no interval"


def format_change_cell(change: LossChange | None) -> str:
    """A change in a table, marked if it may be chance; empty if there is none."""
    if change is None:
        return ""
    text = format_change(change)
    return f"{text[:-1]}, chance)" if change.may_be_chance else text


def format_metric_name(name: str) -> str:
    """A metric's name within a sentence: `exact match`."""
    return name.replace("_", " ")


def format_metric(name: str, value: float, interval: Interval | None = None) -> str:
    """A metric with its interval, `62.5% (50 to 73)`; in percent what lies between 0 and 1, but for losses."""
    low, high = interval or (value, value)
    if low >= 0 and high <= 1 and not name.endswith(NON_SHARE_SUFFIXES):
        return format_percent(value) + (f" ({100 * low:.0f} to {100 * high:.0f})" if interval else "")
    return f"{value:.4g}" + (f" ({low:.4g} to {high:.4g})" if interval else "")


def format_percent(share: float, sign: str = "-", digits: int = 1) -> str:
    """A share as a percentage: `16.4%`, `−0.3%`; `+16.4%` with the sign `+`."""
    return f"{100 * share:{sign}.{digits}f}%".replace("-", "\N{MINUS SIGN}")


def format_time(seconds: float) -> str:
    """A time as people read it: `41 s`, `6 min 12 s`, `2 h 05 min`."""
    if not math.isfinite(seconds):
        return "unknown"
    if seconds < 10:
        return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s" if whole >= 60 else f"{whole} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def format_resident_memory(config: RunConfig, plan_bytes: int, weights: int) -> str:
    """Memory while a plan generates in the engine that it is meant for, as a sentence; empty if it is not known."""
    given: Any = config.quantization.backend
    backend = str(given.get("name", "")) if isinstance(given, dict) else given
    engine = config.engine or "transformers"
    resident = estimate_resident_bytes(engine, plan_bytes, backend=backend, weights=weights)
    if resident is None:
        return ""
    return f"While it generates, {engine} holds about {format_bytes(resident)} beyond its libraries."


def describe_engine(config: RunConfig) -> str:
    """Where plans of a config run, within a sentence."""
    if config.engine is not None:
        return f"in {config.engine}, for which qra export writes it"
    beside = "in transformers and vLLM if this package is installed beside them"
    own = f"For an engine's own kernels, plan with --engine {'|'.join(ENGINES)}"
    return f"in Python, by qra_eval.load, and {beside}. {own}"


def format_evaluations(count: float) -> str:
    """A number of evaluations, whole where it is whole."""
    return f"{count:.2f}".rstrip("0").rstrip(".")
