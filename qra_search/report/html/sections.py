"""The sections of a report, each a function from gathered data to HTML; empty if a run has nothing to say."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence

import yaml

from qra_search.config import dump_config
from qra_search.errors import one_line
from qra_search.report import formatting
from qra_search.report.data import Record, RunData
from qra_search.report.figures import charts as figures
from qra_search.report.figures.canvas import SHAPES
from qra_search.report.finding import CHANCE, finding
from qra_search.report.finding import headline as finding_headline
from qra_search.report.formatting import bits_counts, duration, evaluations_text, loss_text, percent, plan_name
from qra_search.report.html import embedded as charts
from qra_search.report.html import heatmap, tables
from qra_search.report.html.markup import escape, prose
from qra_search.report.layout import heat_maps
from qra_search.runs.comparison import FOUND
from qra_search.space.budgets import bits_per_weight
from qra_search.space.memory import format_bytes

SAMPLE = 400
"""Characters of a prompt or an answer that are shown."""


def facts(run: RunData) -> str:
    """Four figures that everyone asks for first."""
    found, result = run.finding, run.result
    items = []
    if found is not None:
        bits = bits_per_weight(result.space, found.memory_bytes)
        limit = f"of {format_bytes(found.budget)}; " if result.memory_budgets else ""
        items.append(
            ("Memory of the plan", format_bytes(found.memory_bytes), f"{limit}{bits:.2f} bits a searched weight")
        )
        if found.rival is not None:
            gain = f"−{percent(found.gain)}" if found.beats and not found.unproven else "none"
            gain = CHANCE if found.doubtful else gain
            items.append(("Loss against uniform", gain, f"{found.data} data, {plan_name(found.rival, found.space)}"))
    plans = len(result.candidates)
    failed = f", {len(result.failures())} failed" if result.failures() else ""
    items.append(
        ("Evaluations spent", evaluations_text(result.spent), f"{plans} plans{failed}; strategy {result.strategy}")
    )
    sensitivities = "no prior was measured"
    if result.sensitivities is not None:
        charge = evaluations_text(result.sensitivities.cost)
        sensitivities = f"{duration(result.sensitivities.seconds)} for the prior, charged as {charge} evaluations"
    items.append(("Time in evaluations", duration(run.seconds), sensitivities))
    cells = "".join(f"<div><dt>{prose(a)}</dt><dd>{prose(b)}<small>{prose(c)}</small></dd></div>" for a, b, c in items)
    return f'<dl class="facts">{cells}</dl>'


def eyebrow(run: RunData) -> str:
    """Which run it is."""
    model, task = formatting.model_and_task(run.identity)
    if "landscape" in run.identity:
        model = model or f"landscape {run.identity['landscape']}"
    elif run.config is not None:
        model, task = model or run.config.model.name, task or run.config.task.name
    parts = [f"<b>{escape(run.name)}</b>", *(escape(p) for p in (model, task) if p)]
    return " · ".join(parts)


def comparison(run: RunData) -> str:
    """The plan found against uniform plans: on test data where it was tuned, and on validation data."""
    tested, validation = tables.tested_table(run, run.tested), tables.validation_table(run)
    for record in run.records:
        within = f"Within {format_bytes(record.budget)}: {headline_of(run, record)}"
        tested += f"<h3>{prose(within)}</h3>{tables.tested_table(run, record.tested)}"
    if not tested and not validation:
        return foretold(run)
    if tested:
        say = (
            "Each plan was tuned in full and measured on test rows that the search never saw. "
            "Uniform plans take equal or fewer bytes."
        )
        more = f"<details><summary>On validation data, as the search saw them</summary>{validation}</details>"
        return _section("Against uniform", say, tested + (more if validation else "")) + samples(run)
    say = (
        "Means of the short evaluations that the search was made with. "
        "The final word is on test data: tune the plan with the command below."
    )
    return _section("Against uniform", say, validation)


def foretold(run: RunData) -> str:
    """What the sensitivities foretell of the plan against uniform plans, before anything was evaluated."""
    table = tables.forecast_table(run)
    if not table:
        return ""
    say = (
        "Predicted from the sensitivities alone, in nats of loss after a short tuning; nothing was tuned yet. The "
        "intervals hold 95% of the differences in seventeen recorded searches."
    )
    return _section("Against uniform, as foretold", say, table)


def samples(run: RunData) -> str:
    """Answers of the plan found to a few test rows, from before its tuning and after."""
    shown = next((t.samples for t in run.tested if t.role == FOUND), ())
    if not shown:
        return ""
    rows = "".join(
        f'<tr><th scope="row">{escape(one_line(s["prompt"], SAMPLE))}</th>'
        + "".join(f'<td class="text">{escape(one_line(s[k], SAMPLE))}</td>' for k in ("wanted", "before", "after"))
        + "</tr>"
        for s in shown
    )
    say = "By the quantized model with the plan, before its adapters were tuned and after."
    head = ["Prompt", "<Wanted", "<Before", "<After"]
    return _section("Answers to test rows", say, tables.table(head, rows, "Answers before and after tuning"))


def headline_of(run: RunData, record: Record) -> str:
    """The finding within another budget than the run's own."""
    return finding_headline(finding(run.result, record.tested, record.budget))


def front(run: RunData, key: str) -> str:
    """The front chart with its legend and a table of the same plans."""
    if not run.result.candidates:
        return ""
    groups = figures.front_groups(run)
    legend = charts.legend(
        [(color, shape, name) for kind, (color, shape, *_, name) in figures.FRONT_MARKS.items() if kind in groups]
    )
    count = len(run.result.front)
    table = f"<details><summary>The {count} plans on the front as a table</summary>{tables.front_table(run)}</details>"
    say = "Every mark is a plan that was evaluated; lower and further left is better. Hover or tap to see the plan."
    summary = f"{len(run.result.candidates)} plans, {count} of them on the front. {run.said}"
    chart = charts.chart(f"{key}-front", figures.front_figure, run, summary, numbers=groups)
    return _section("Loss against memory", say, chart + legend + table)


def plan(run: RunData) -> str:
    """Bits and rank of the plan by layer, beside what the prior said."""
    found = run.plan
    if found is None:
        return ""
    space, grid = run.result.space, run.layout
    heats = heat_maps(space, found, run.result.sensitivities)
    maps = "".join(f"<div>{heatmap.heat_table(grid, heat)}</div>" for heat in heats)
    which = (
        f'<p class="which"><span>Shown: <strong>{prose(plan_name(found, space))}: '
        f"{prose(bits_counts(found, space))}</strong></span>"
        '<button type="button" class="back" hidden>Back to the plan found</button></p>'
    )
    say = "Kinds of linears down, layers across. Darker (lighter on a dark screen) is more."
    if len(grid.rows) == 1:
        say = "Layers across. Darker (lighter on a dark screen) is more."
    body = f'{which}<div class="heats">{maps}</div>'
    return _section("The plan, layer by layer", say, body, kind="plan-of")


def learnt(run: RunData, key: str) -> str:
    """How the search went: best loss against evaluations, and predictions against what was seen."""
    if not any(t.points for t in run.traces):
        return ""
    names = [(*figures.origin_mark(run, o), o) for o in run.origins]
    ends = "; ".join(f"{loss_text(t.points[-1][1])} within {format_bytes(t.budget)}" for t in run.traces if t.points)
    trace = _half(
        "Best loss so far",
        "The line is the best mean loss within the budget; marks are single evaluations, by why they were proposed.",
        charts.chart(
            f"{key}-trace", figures.trace_figure, run, f"The search ended at {ends}.",
            sizes=charts.HALF if run.predictions else charts.SIZES,
        ),
    )  # fmt: skip
    predicted = ""
    if run.predictions:
        text = charts.prediction_text(run)
        chart = charts.chart(f"{key}-predicted", figures.predictions_figure, run, text, sizes=charts.HALF)
        predicted = _half("Predicted and seen", f"{text} Marks on the line were predicted exactly.", chart)
    say = "" if predicted else f"Strategy {run.result.strategy} makes no predictions, so there are none to check."
    body = f'<div class="pair{" two" if predicted else ""}">{trace}{predicted}</div>{charts.legend(names)}'
    return _section("How the search went", say, body)


def tunings(run: RunData, key: str) -> str:
    """Loss curves of the full tunings."""
    if not run.curves:
        return ""
    names = charts.legend([(f"o-{i % 8}", SHAPES[i % 8], curve.name) for i, curve in enumerate(run.curves)])
    ends = ", ".join(f"{curve.name} {loss_text(curve.loss[-1][1])}" for curve in run.curves)
    chart = charts.chart(f"{key}-tuning", figures.tuning_figure, run, f"Training losses ended at: {ends}.")
    say = "Lines are the training loss, smoothed; marks are the validation loss where it was looked at."
    return _section("How the tuning went", say, chart + names)


def costs(run: RunData) -> str:
    """Where evaluations and seconds went."""
    table = tables.cost_table(run)
    if not table:
        return ""
    bar = "".join(
        f'<i class="{tables.cost_class(run, c.part)}" style="flex:{max(c.evaluations, 0):.4f}"></i>' for c in run.costs
    )
    say = (
        "Counted in full evaluations; one at low fidelity counts as its share. Measuring the prior is charged as well."
    )
    return _section("What it cost", say, f'<div class="bar" aria-hidden="true">{bar}</div>{table}')


def failures(run: RunData) -> str:
    """Evaluations that failed, with their reasons."""
    failed = run.result.failures()
    if not failed:
        return ""
    more = f" The first {tables.FAILURES_SHOWN} are shown." if len(failed) > tables.FAILURES_SHOWN else ""
    count = f"{len(failed)} of {len(run.result.trials)}"
    say = f"{count} evaluations failed; the search did not propose these plans again.{more}"
    return _section("Failures", say, tables.failure_table(run))


def commands(run: RunData) -> str:
    """The exact commands that come next."""
    where = shlex.quote(run.folder)
    items = [
        ("Tune the plan in full and compare it with uniform on test data", f"qra finetune {where}"),
        ("Export the tuned adapter", f"qra export {where} --format peft"),
        (
            "Serve it as an ordinary model (other formats keep the plan's bits: see qra export --list)",
            f"qra export {where} --format merged --out {where}/served && vllm serve {where}/served",
        ),
        ("Look at the plan in the terminal", f"qra show {where}"),
        ("Search on from here", f"qra search {where} --evaluations {_more(run)}"),
    ]
    body = "".join(
        f'<div class="cmd"><p>{escape(a)}</p><code tabindex="0">{escape(b)}</code></div>' for a, b in items[run.tuned :]
    )
    return _section("What to do next", "", body)


def settings(run: RunData) -> str:
    """What the run was made with."""
    if run.config is not None:
        content = dump_config(run.config)
    else:
        content = yaml.safe_dump(run.identity, sort_keys=False) if run.identity else ""
    if not content:
        return ""
    return f"<details><summary>Settings of the run</summary><pre tabindex=0>{escape(content)}</pre></details>"


def overview(runs: Sequence[RunData]) -> str:
    """Several runs side by side."""
    names = charts.legend([(f"o-{i % 8}", SHAPES[i % 8], run.name) for i, run in enumerate(runs)])
    table = _section("All runs", "", tables.overview_table(runs))
    say = "Only plans that no other of the same run beats in both loss and bytes."
    counts = ", ".join(f"{run.name}: {len(run.result.front)} plans" for run in runs)
    chart = charts.chart("all-fronts", figures.fronts_figure, runs, counts)
    fronts = _section("Fronts", say, chart + names)
    say = "Best mean loss within each run's largest budget."
    chart = charts.chart("all-traces", figures.traces_figure, runs, ", ".join(r.name for r in runs))
    return table + fronts + _section("Best loss so far", say, chart + names)


def _more(run: RunData) -> str:
    planned = run.config.search.evaluations if run.config is not None else run.result.spent
    return f"{2 * max(1, math.ceil(planned))}"


def _section(title: str, say: str, body: str, *, kind: str = "") -> str:
    more = f'<p class="say">{prose(say)}</p>' if say else '<p class="say"></p>'
    return f"<section{f' class={kind}' if kind else ''}><h2>{escape(title)}</h2>{more}{body}</section>"


def _half(title: str, say: str, chart: str) -> str:
    return f'<div><h3>{escape(title)}</h3><p class="say">{prose(say)}</p>{chart}</div>'
