"""The tables of a report: plans against uniform, the front, costs, failures, several runs."""

from __future__ import annotations

import math
from collections.abc import Sequence

from qra_search.report.data import PRIOR, RunData
from qra_search.report.figures.charts import origin_mark
from qra_search.report.formatting import (
    bits_counts,
    duration,
    evaluations_text,
    loss_text,
    percent,
    plan_name,
    signed_percent,
    test_loss_text,
)
from qra_search.report.html.markup import escape, prose
from qra_search.report.shares import metric_text
from qra_search.report.terminal.tables import lower_text
from qra_search.runs.comparison import FOUND, TestResult, metrics_of
from qra_search.space.memory import format_bytes
from qra_search.space.space import Plan
from qra_search.study.result import EvaluatedPlan

FAILURES_SHOWN = 50
RIVALS_SHOWN = 2
"""Uniform plans shown for each of several budgets."""


def table(head: Sequence[str], rows: str, caption: str) -> str:
    """A table; a head that begins with `*` is left out on a phone, one with `<` is aligned left."""
    cells = "".join(
        f'<th scope="col"{_head_class(h)}>{escape(h.lstrip("*<")) or "<span class=sr>Action</span>"}</th>' for h in head
    )
    return (
        f'<div class="scroll" role="group" aria-label="{escape(caption)}" tabindex="0"><table class="rows">'
        f"<caption>{prose(caption)}</caption><thead><tr>{cells}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def tested_table(run: RunData, tested: Sequence[TestResult]) -> str:
    """A final comparison, best first; empty if it was not made."""
    if not tested:
        return ""
    names = metrics_of(tested)
    found = next((t for t in tested if t.role == FOUND), None)
    # A phone has room for the metrics or for the difference, which the losses say as well.
    wide, star = (' class="wide"', "*") if names else ("", "")
    rows = ""
    for t in sorted(tested, key=lambda t: t.loss):
        name = _plan_cell(run, t.plan, "plan found, " if t.role == FOUND else "")
        metrics = "".join(f"<td>{'–' if t.failed else _two_lines(metric_text(t, n))}</td>" for n in names)
        loss = escape(test_loss_text(t)) if t.failed else _loss(t.loss, t.loss_error)
        lower = "" if found is None or t is found else _two_lines(lower_text(found, t))
        rows += (
            f'<tr{_mark(t.role == FOUND)}><th scope="row">{name}</th><td>{prose(format_bytes(t.memory_bytes))}</td>'
            f"<td>{loss}</td>{metrics}<td{wide}>{lower}</td></tr>"
        )
    head = ["Plan", "Size", "Test loss", *(n.replace("_", " ").capitalize() for n in names), f"{star}Found is lower by"]
    seeds = max(len(t.losses) for t in tested)
    return table(head, rows, "On test data" + (f", mean and standard error of {seeds} seeds" if seeds > 1 else ""))


def validation_table(run: RunData) -> str:
    """For every budget the best plan and uniform plans, as the search saw them; empty if nothing fits."""
    result = run.result
    budgets = result.memory_budgets or ((run.finding.budget,) if run.finding else ())
    rows = ""
    for budget in budgets:
        best = result.best(budget)
        if best is None:
            continue
        if len(budgets) > 1:
            rows += f'<tr class="group"><th scope="rowgroup" colspan="5">Within {prose(format_bytes(budget))}</th></tr>'
        rivals = sorted((c for c in result.uniform if c.memory_bytes <= budget and c is not best), key=lambda c: c.loss)
        for c in [best, *rivals[: RIVALS_SHOWN if len(budgets) > 1 else None]]:
            rows += _validation_row(run, c, best)
    return (
        table(["Plan", "Size", "Estimated loss", "*Evaluations", "Best is lower by"], rows, "On validation data")
        if rows
        else ""
    )


def forecast_table(run: RunData) -> str:
    """The plan that the sensitivities choose and the uniform plans that fit; empty if nothing is foretold."""
    foretold = run.forecast
    if foretold is None:
        return ""
    rows = (
        f'<tr{_mark(True)}><th scope="row">{_plan_cell(run, foretold.plan, "planned, ")}</th>'
        f"<td>{prose(format_bytes(foretold.memory_bytes))}</td><td></td></tr>"
    )
    for other in sorted(foretold.uniform, key=lambda u: (u.gain, u.memory_bytes)):
        low, high = other.interval
        rows += (
            f'<tr><th scope="row">{_plan_cell(run, other.plan)}</th><td>{prose(format_bytes(other.memory_bytes))}</td>'
            f"<td>{_two_lines(f'{other.gain:.3f} ({low:+.3f} to {high:+.3f})')}</td></tr>"
        )
    return table(["Plan", "Size", "Predicted gain, 90% interval"], rows, "As foretold by the sensitivities")


def front_table(run: RunData) -> str:
    """The plans of the front, with a button that shows each in the heat maps."""
    shown = {c.plan.key: i for i, c in enumerate(run.shown)}
    rows = "".join(
        f'<tr{_mark(c.plan == run.plan)}><th scope="row">{_plan_cell(run, c.plan)}</th>'
        f"<td>{prose(format_bytes(c.memory_bytes))}</td><td>{_loss(c.loss, c.loss_std)}</td>"
        f'<td class="wide">{c.evaluations}</td>'
        f'<td><button type="button" hidden data-p="{shown[c.plan.key]}">Show</button></td></tr>'
        for c in run.result.front
    )
    return table(["Plan", "Size", "Loss", "*Evaluations", ""], rows, "Plans that no other beats in both loss and bytes")


def cost_table(run: RunData) -> str:
    """What each part of the search took; empty if nothing was spent."""
    total = sum(c.evaluations for c in run.costs)
    if total <= 0:
        return ""
    rows = "".join(
        f'<tr><th scope="row"><span class="swatch {cost_class(run, c.part)}"></span>{escape(c.part)}</th>'
        f"<td>{c.trials or '–'}</td><td>{escape(evaluations_text(c.evaluations))}</td>"
        f'<td class="wide">{prose(percent(c.evaluations / total))}</td><td>{prose(duration(c.seconds))}</td></tr>'
        for c in run.costs
    )
    rows += (
        f'<tr><th scope="row"><b>all</b></th><td><b>{len(run.result.trials)}</b></td>'
        f'<td><b>{escape(evaluations_text(total))}</b></td><td class="wide"></td>'
        f"<td><b>{prose(duration(run.seconds))}</b></td></tr>"
    )
    return table(["Part", "Trials", "Evaluations", "*Share", "Time"], rows, "Cost of each part of the search")


def cost_class(run: RunData, part: str) -> str:
    """The class that colours a part of the cost."""
    if part == PRIOR:
        return "o-prior"
    color, _ = origin_mark(run, part)
    return color if color.startswith("o-") else f"o-{color}"


def failure_table(run: RunData) -> str:
    """The first failures with their reasons."""
    rows = "".join(
        f'<tr><th scope="row">{t.id}</th><td class="text">{prose(plan_name(t.plan, run.result.space))}</td>'
        f'<td class="text">{escape(t.reason)}</td></tr>'
        for t in run.result.failures()[:FAILURES_SHOWN]
    )
    return table(["Trial", "<Plan", "<Reason"], rows, "Failed evaluations")


def overview_table(runs: Sequence[RunData]) -> str:
    """The finding of every run."""
    rows = "".join(
        f'<tr><th scope="row"><a href="#run-{i}">{escape(run.name)}</a><small>{escape(run.result.strategy)}, seed '
        f"{run.result.seed}</small></th>{_overview_cells(run)}</tr>"
        for i, run in enumerate(runs)
    )
    head = ["Run", "Budget", "Loss", "Best uniform", "Gain", "*Evaluations", "*Time"]
    return table(head, rows, "The finding of every run")


def _overview_cells(run: RunData) -> str:
    found = run.finding
    ends = (
        f'<td class="wide">{escape(evaluations_text(run.result.spent))}</td>'
        f'<td class="wide">{prose(duration(run.seconds))}</td>'
    )
    if found is None:
        return f"<td>–</td><td>–</td><td>–</td><td>–</td>{ends}"
    gain = percent(found.gain) if found.beats else "none"
    rival = loss_text(found.rival_loss) if found.rival is not None else "–"
    return (
        f"<td>{prose(format_bytes(found.budget))}</td><td>{prose(loss_text(found.loss))}<small>{escape(found.data)}"
        f"</small></td><td>{prose(rival)}</td><td>{prose(gain)}</td>{ends}"
    )


def _validation_row(run: RunData, c: EvaluatedPlan, best: EvaluatedPlan) -> str:
    name = _plan_cell(run, c.plan, "best plan, " if c is best else "")
    return (
        f'<tr{_mark(c is best)}><th scope="row">{name}</th><td>{prose(format_bytes(c.memory_bytes))}</td>'
        f'<td>{_loss(c.loss, c.loss_std)}</td><td class="wide">{c.evaluations}</td>'
        f"<td>{_difference(best.loss, c.loss)}</td></tr>"
    )


def _plan_cell(run: RunData, plan: Plan, before: str = "") -> str:
    space = run.result.space
    name = before + plan_name(plan, space)
    small = "" if len(set(plan.bits)) == 1 else f"<small>{prose(bits_counts(plan, space))}</small>"
    return f"{prose(name[:1].upper() + name[1:])}{small}"


def _two_lines(text: str) -> str:
    """A figure, and below it the interval that it has in brackets."""
    figure, bracket, interval = text.partition(" (")
    return prose(figure) + (f"<small>{prose(interval.removesuffix(')'))}</small>" if bracket else "")


def _loss(value: float, std: float) -> str:
    spread = f' <small class="pm">± {std:.2g}</small>' if math.isfinite(std) and math.isfinite(value) else ""
    return escape(loss_text(value)) + spread


def _difference(found: float, other: float) -> str:
    """How much lower the loss of the plan found is, as a share of the other."""
    if not (math.isfinite(found) and math.isfinite(other) and other):
        return "–"
    return "" if other == found else prose(signed_percent(1 - found / other).removeprefix("+"))


def _head_class(head: str) -> str:
    return ' class="wide"' if head.startswith("*") else ' style="text-align:left"' if head.startswith("<") else ""


def _mark(found: bool) -> str:
    return ' class="found"' if found else ""
