"""Puts the report of a run together: one HTML file that needs nothing else."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from qra_search.app.config import RunConfig, dump_config
from qra_search.app.folder import RunFolder
from qra_search.app.report import formatting, tables
from qra_search.app.report.canvas import DAMAGE_STEPS, choose_text_color, get_palette, make_ramp, to_svg
from qra_search.app.report.charts import draw_charts
from qra_search.app.report.data import RunData
from qra_search.app.report.finding import list_findings, list_next_steps, make_headline
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
from qra_search.errors import BadInput, one_line
from qra_search.files import write_text
from qra_search.space.memory import format_bytes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SAMPLE = 400
"""Characters of a prompt or an answer that are shown."""
HEADERS_SHOWN, HEADER_EVERY = 12, 5
"""Headers of a heat map's columns that are printed; of more, every fifth is."""


def write_page(run: RunFolder, path: str | Path | None = None) -> Path:
    """Write the report of a run, and return its path.

    Args:
        path: default: `report.html` in the run's folder.

    Raises:
        NoRun: the folder holds no run.
        BadInput: the path is a folder's.
    """
    path = Path(path or run.report_file)
    if path.is_dir():
        raise BadInput(f"{path} is a folder: say which file to write, such as {path / 'report.html'}")
    content = render_page(RunData.read(run))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, content)
    return path


def render_page(run: RunData) -> str:
    result = run.result
    headline = make_headline(result, run.comparison)
    findings = [
        text for text in list_findings(result, run.comparison) if text.rstrip(".") != headline.rstrip(".")
    ]
    ramps = {"bits": len(result.space.bits), "rank": len(result.space.ranks), "damage": DAMAGE_STEPS}
    identity = yaml.safe_dump(run.identity, sort_keys=False) if run.identity else ""
    return (
        _load_templates()
        .get_template("page.html")
        .render(
            run=run,
            where=_describe_model_and_task(run),
            headline=headline,
            lead=findings[0] if findings else "",
            findings=" ".join(findings[1:]),
            facts=_list_key_figures(run),
            allocation=result.allocation() if result.memory_budgets else None,
            charts={name: _render_chart(figure, headline) for name, figure in draw_charts(run).items()},
            samples=() if run.comparison is None else run.comparison.chosen.samples,
            layout=arrange_groups(result.space),
            heats=() if run.plan is None else make_heat_maps(result.space, run.plan, result.sensitivities),
            commands=list_next_steps(run.folder, result, run.finding),
            settings=identity if run.config is None else dump_config(run.config),
            themes=[_list_css_properties(ramps, dark=dark) for dark in (False, True)],
            ramps=[(name, i) for name, count in ramps.items() for i in range(count)],
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
    environment.globals |= {"tables": tables, "words": formatting}
    environment.filters |= {
        "unbroken": lambda text: formatting.use_nonbreaking_spaces(text).replace("`", ""),
        "line": lambda text: one_line(text, SAMPLE),
    }
    return environment


def _describe_model_and_task(run: RunData) -> list[str]:
    """Names of what was searched on, by the log, or by the settings of a run that has none yet."""
    given = [run.identity.get("model") or run.identity.get("landscape"), run.identity.get("task")]
    names = [value.get("name") or value.get("spec") if isinstance(value, dict) else value for value in given]
    if run.config is not None and run.config.evaluator == RunConfig().evaluator:
        names = [names[0] or run.config.model.name, names[1] or run.config.task.name]
    return [str(name) for name in names if name]


def _render_chart(figure: Figure, summary: str) -> dict[str, str | Markup]:
    """A chart and its words; matplotlib escapes the texts in it."""
    label = str(figure.get_label())
    svg = Markup(to_svg(figure, theme="page", key=label))  # noqa: S704
    return {"svg": svg, "label": f"{label}. {summary}"}


def _list_key_figures(run: RunData) -> list[tuple[str, str, str]]:
    """The figures that everyone asks for first: name, figure, and what it is of."""
    found, result, comparison = run.finding, run.result, run.comparison
    items = []
    metrics = () if comparison is None else comparison.metric_names
    for name in metrics:
        assert comparison is not None
        tuned, uniform = comparison.chosen, comparison.baseline
        rows = len(tuned.row_scores[name])
        figure, interval = format_metric_parts(name, tuned.metrics[name], tuned.metric_interval(name))
        more = f"{interval} on {rows} test row{'s' * (rows != 1)}".strip()
        if uniform is not None and uniform is not tuned:
            more += f"; best uniform plan: {format_metric(name, uniform.metrics[name])}"
        items.append((format_metric_name(name).capitalize(), figure, more))
    if found is not None:
        share = found.chosen.memory_bytes / result.space.unquantized.memory.minimum
        items.append(
            ("Size", format_bytes(found.chosen.memory_bytes), f"{share:.0%} of the model in 16 bits")
        )
        if found.baseline is not None and found.change is not None:
            change, ends = format_change_parts(found.change)
            name = format_plan(found.baseline.plan, result.space)
            items.append(("Against uniform", change, f"{found.data} loss{ends and f', {ends}'}; {name}"))
    if result.trials:
        running = len(result.trials) - len(result.ended_trials)
        counts = {"failed": len(result.failures()), "not finished": running}
        more = "".join(f", {count} {what}" for what, count in counts.items() if count)
        more = f"{format_time(run.seconds)}; {len(result.candidates)} plans{more}; strategy {result.strategy}"
        items.append(("Evaluations", format_evaluations(result.spent), more))
    if run.records:
        seconds = sum(record.seconds for record in run.records)
        more = f"{len(run.records)} tunings, with their tests"
        items.append(("Time of tuning", format_time(seconds), more))
    return items


def _list_css_properties(ramps: dict[str, int], *, dark: bool) -> dict[str, str]:
    """Custom properties of the page in a theme: its colours, and those of the ramps with the text on them."""
    found = get_palette(dark=dark)
    for name, count in ramps.items():
        for i, color in enumerate(make_ramp(name, count, dark=dark)):
            found |= {f"{name}-{i}": color, f"{name}-{i}-text": choose_text_color(color)}
    return found
