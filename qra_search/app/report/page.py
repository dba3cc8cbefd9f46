"""Puts a report together: one HTML file that needs nothing else, for one run or several."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from qra_search.app.config import RunConfig, dump_config
from qra_search.app.folder import RunFolder
from qra_search.app.report import formatting, tables
from qra_search.app.report.colors import DAMAGE_STEPS, choose_text_color, get_palette, make_ramp
from qra_search.app.report.data import RunData
from qra_search.app.report.figures.canvas import to_svg
from qra_search.app.report.figures.charts import draw_figures, plot_fronts
from qra_search.app.report.finding import summarize_run, write_verdict
from qra_search.app.report.formatting import (
    format_change_parts,
    format_evaluations,
    format_metric,
    format_metric_name,
    format_metric_parts,
    format_plan,
    format_time,
)
from qra_search.app.report.layout import arrange_groups, make_heat_maps
from qra_search.app.report.terminal import list_next_steps
from qra_search.errors import BadInput, one_line
from qra_search.files import write_text
from qra_search.space.memory import format_bytes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SAMPLE = 400
"""Characters of a prompt or an answer that are shown."""
HEADERS_SHOWN, HEADER_EVERY = 12, 5
"""Headers of a heat map's columns that are printed; of more, every fifth is."""


def write_page(runs: Sequence[RunFolder], path: str | Path | None = None) -> Path:
    """Write the report of some runs, and return its path.

    Args:
        path: default: `report.html` in the folder of a run, or `compare.html` for several.

    Raises:
        NoRun: one of the folders holds no run.
        BadInput: the path is a folder's.
    """
    path = Path(path) if path else runs[0].report_file if len(runs) == 1 else Path("compare.html")
    if path.is_dir():
        raise BadInput(f"{path} is a folder: say which file to write, such as {path / 'report.html'}")
    content = render_page([RunData.read(run) for run in runs])
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, content)
    return path


def render_page(runs: Sequence[RunData]) -> str:
    counts = {
        "bits": max(len(run.result.space.bits) for run in runs),
        "rank": max(len(run.result.space.ranks) for run in runs),
        "damage": DAMAGE_STEPS,
    }
    if len({run.name for run in runs}) < len(runs):
        runs = [replace(run, name=run.folder) for run in runs]
    names = ", ".join(run.name for run in runs)
    return (
        _load_templates()
        .get_template("page.html")
        .render(
            views=[_make_view(run, f"r{i}") for i, run in enumerate(runs)],
            overview=tables.make_overview_table(runs) if len(runs) > 1 else None,
            fronts=_render_chart(plot_fronts(runs), names, "all") if len(runs) > 1 else None,
            themes=[_list_css_properties(counts, dark=dark) for dark in (False, True)],
            ramps=[(name, i) for name, count in counts.items() for i in range(count)],
            every=lambda count: 1 if count <= HEADERS_SHOWN else HEADER_EVERY,
        )
    )


@functools.cache
def _load_templates() -> Environment:
    environment = Environment(
        loader=PackageLoader("qra_search.app", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {"tables": tables, "words": formatting, "size": format_bytes}
    environment.filters |= {
        "unbroken": formatting.use_nonbreaking_spaces,
        "line": lambda text: one_line(text, SAMPLE),
    }
    return environment


def _make_view(run: RunData, key: str) -> dict[str, Any]:
    """A run with its charts and all else that the template cannot get from it."""
    identity = yaml.safe_dump(run.identity, sort_keys=False) if run.identity else ""
    sentence, result = summarize_run(run.result, run.comparison), run.result
    verdict = write_verdict(result, run.comparison)
    charts = {
        name: _render_chart(figure, sentence, f"{key}-{name}") for name, figure in draw_figures(run).items()
    }
    return {
        "run": run,
        "where": _describe_model_and_task(run),
        "verdict": verdict,
        "finding": sentence.removeprefix(verdict).strip(),
        "allocation": result.allocation() if result.memory_budgets else None,
        "layout": arrange_groups(result.space),
        "facts": _list_key_figures(run),
        "charts": charts,
        "samples": () if run.comparison is None else run.comparison.chosen.samples,
        "heats": [] if run.plan is None else make_heat_maps(result.space, run.plan, result.sensitivities),
        "commands": list_next_steps(run.folder, result, run.finding),
        "settings": identity if run.config is None else dump_config(run.config),
    }


def _describe_model_and_task(run: RunData) -> list[str]:
    """Names of what was searched on, by the log, or by the settings of a run that has none yet."""
    given = [run.identity.get("model") or run.identity.get("landscape"), run.identity.get("task")]
    names = [value.get("name") or value.get("spec") if isinstance(value, dict) else value for value in given]
    if run.config is not None and run.config.evaluator == RunConfig().evaluator:
        names = [names[0] or run.config.model.name, names[1] or run.config.task.name]
    return [str(name) for name in names if name]


def _render_chart(figure: Figure, summary: str, key: str) -> dict[str, str | Markup]:
    """A chart and its words; matplotlib escapes the texts in it."""
    label = f"{figure.get_label()}. {summary}"
    return {"svg": Markup(to_svg(figure, theme="page", key=key)), "label": label}  # noqa: S704


def _list_key_figures(run: RunData) -> list[tuple[str, str, str]]:
    """The figures that everyone asks for first: name, figure, and what it is of."""
    found, result, items = run.finding, run.result, []
    if run.comparison is not None:
        tuned, uniform = run.comparison.chosen, run.comparison.baseline
        for name in run.comparison.metric_names:
            rows = len(tuned.row_scores[name])
            figure, interval = format_metric_parts(name, tuned.metrics[name], tuned.metric_interval(name))
            more = f"{interval} on {rows} test row{'s' * (rows != 1)}".strip()
            if uniform is not None and uniform is not tuned:
                more += f"; best uniform plan: {format_metric(name, uniform.metrics[name])}"
            items.append((format_metric_name(name).capitalize(), figure, more))
    if found is not None:
        whole = result.space.unquantized.memory.minimum
        share = f"{found.chosen.memory_bytes / whole:.0%} of the model in 16 bits"
        items.append(("Size", format_bytes(found.chosen.memory_bytes), share))
        if found.baseline is not None and found.change is not None:
            share, ends = format_change_parts(found.change)
            name = format_plan(found.baseline.plan, result.space)
            items.append(("Against uniform", share, f"{found.data} loss{ends and f', {ends}'}; {name}"))
    if result.trials:
        failed = f", {len(result.failures())} failed" if result.failures() else ""
        running = len(result.trials) - len(result.ended_trials)
        failed += f", {running} not finished" if running else ""
        plans = f"{len(result.candidates)} plans{failed}; strategy {result.strategy}"
        items.append(
            ("Evaluations", format_evaluations(result.spent), f"{format_time(run.seconds)}; {plans}")
        )
    elif result.sensitivities is not None:
        groups = f"{len(result.space)} groups"
        items.append(("Time of the sensitivities", format_time(result.sensitivities.seconds), groups))
    if run.records:
        seconds = sum(record.seconds for record in run.records)
        items.append(
            ("Time of tuning", format_time(seconds), f"{len(run.records)} tunings, with their tests")
        )
    return items


def _list_css_properties(counts: dict[str, int], *, dark: bool) -> dict[str, str]:
    """Custom properties of the page in a theme: its colours, and those of the ramps with the text on them."""
    found = get_palette(dark=dark)
    for name, count in counts.items():
        for i, color in enumerate(make_ramp(name, count, dark=dark)):
            found |= {f"{name}-{i}": color, f"{name}-{i}-text": choose_text_color(color)}
    return found
