"""Puts the report of a run together: one HTML file that needs nothing else."""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import yaml

from qra_search.app.compare import Comparison, list_deployable
from qra_search.app.config import RunConfig, dump_config
from qra_search.app.folder import Snapshot
from qra_search.app.report import formatting, tables
from qra_search.app.report.charts import (
    DAMAGE_STEPS,
    choose_text_color,
    get_palette,
    make_ramp,
    plot_front,
    plot_predicted_loss,
    plot_rates,
    plot_tuned,
    to_svg,
)
from qra_search.app.report.finding import (
    Finding,
    drop_repeated,
    find_evaluated_comparison,
    list_findings,
    list_next_steps,
    make_headline,
)
from qra_search.app.report.formatting import (
    format_change,
    format_evaluations,
    format_metric,
    format_metric_name,
    format_plan,
)
from qra_search.errors import BadInput, one_line
from qra_search.files import write_text
from qra_search.schemas import Plan, Sensitivities, format_level, format_level_label
from qra_search.space.memory import format_bytes
from qra_search.space.space import SearchSpace

if TYPE_CHECKING:
    from jinja2 import Environment
    from matplotlib.figure import Figure

SAMPLE_CHARACTERS = 400
"""Characters of a prompt or an answer that are shown."""
DAMAGE_SCALE = 1e3
"""Damage is shown in thousandths of a nat."""
HEADERS_SHOWN, HEADER_EVERY = 12, 5
"""Headers of a heat map's columns that are printed; of more, every fifth is."""


def write_page(run: Snapshot, path: str | Path | None = None) -> Path:
    """Write the report of a run, and return its path.

    Raises:
        BadInput: the path is a folder's.
    """
    path = Path(path or run.folder.report_file)
    if path.is_dir():
        raise BadInput(f"{path} is a folder: say which file to write, such as {path / 'report.html'}")
    content = render_page(run)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, content)
    return path


def render_page(run: Snapshot) -> str:
    """The report of a run; the plan that it shows is the tuned one, or the run's."""
    result, comparison = run.result, run.comparison()
    found = comparison or find_evaluated_comparison(result)
    plan = run.plan if found is None else found.chosen.plan
    headline = make_headline(result, comparison)
    findings = drop_repeated(list_findings(result, comparison), headline)
    foretold, where = run.find_rate_forecast(), _describe_model_and_task(run)
    if comparison is not None:
        own = comparison.chosen.records[0]
        where.append(f"tunings of {own.steps} steps, {len(own.row_tokens)} test rows")
    has_curve = comparison is not None and len(list_deployable(comparison.tunings)) > 2
    has_sizes = result.sensitivities is not None and not result.candidates
    ramps = {"bits": len(result.space.bits), "rank": len(result.space.ranks), "damage": DAMAGE_STEPS}
    identity = yaml.safe_dump(run.identity, sort_keys=False) if run.identity else ""
    page = _load_templates().get_template("page.html")
    return page.render(
        name=run.folder.path.resolve().name,
        where=where,
        result=result,
        records=run.records,
        comparison=comparison,
        plan=plan,
        headline=headline,
        lead=findings[0] if findings else "",
        findings=" ".join(findings[1:]),
        facts=_list_key_figures(run, found, plan),
        allocation=result.allocation() if result.memory_budgets else None,
        chart=_render_chart(plot_front(result, plan), headline) if result.candidates else None,
        sizes=_render_chart(plot_predicted_loss(result, plan), headline) if has_sizes and plan else None,
        curve=_render_chart(plot_tuned(comparison), headline) if comparison and has_curve else None,
        rates=_render_chart(plot_rates(foretold), str(foretold)) if foretold else None,
        foretold="" if foretold is None else str(foretold),
        samples=() if comparison is None else (comparison.deployed or comparison.chosen).samples,
        layout=tables.arrange_groups(result.space),
        heats=() if plan is None else make_heat_maps(result.space, plan, result.sensitivities),
        commands=list_next_steps(run, found),
        settings=identity if run.config is None else dump_config(run.config),
        themes=[_list_css_properties(ramps, dark=dark) for dark in (False, True)],
        ramps=[(name, i) for name, count in ramps.items() for i in range(count)],
        every=lambda count: 1 if count <= HEADERS_SHOWN else HEADER_EVERY,
    )


@functools.cache
def _load_templates() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("qra_search.app", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {"tables": tables, "words": formatting}
    environment.filters |= {
        "plain": lambda text: str(text).replace("`", ""),
        "line": lambda text: one_line(text, SAMPLE_CHARACTERS),
    }
    return environment


def _describe_model_and_task(run: Snapshot) -> list[str]:
    """Names of what was searched on, by the log, or by the settings of a run that has none yet."""
    given = [run.identity.get("model") or run.identity.get("landscape"), run.identity.get("task")]
    names = [value.get("name") or value.get("spec") if isinstance(value, dict) else value for value in given]
    if run.config is not None and run.config.evaluator == RunConfig().evaluator:
        names = [names[0] or run.config.model.name, names[1] or run.config.task.name]
    return [str(name) for name in names if name]


def _render_chart(figure: Figure, summary: str) -> dict[str, str]:
    """A chart and its words."""
    label = str(figure.get_label())
    return {"svg": to_svg(figure, theme="page", key=label), "label": f"{label}. {summary}"}


def _list_key_figures(run: Snapshot, found: Finding | None, plan: Plan | None) -> list[tuple[str, str, str]]:
    """The figures that everyone asks for first, of what is to be deployed: name, figure, and what it is of."""
    result = run.result
    items = []
    if isinstance(found, Comparison):
        tuned, uniform = found.deployed or found.chosen, found.baseline
        plan = tuned.plan
        for name in found.metric_names:
            rows = len(tuned.row_scores[name])
            figure = format_metric(name, tuned.metrics[name], tuned.compute_metric_interval(name))
            more = f"on {rows} test row{'s' * (rows != 1)}"
            if tuned is not found.chosen:
                more += f"; the plan: {format_metric(name, found.chosen.metrics[name])}"
            elif uniform is not None and uniform is not tuned:
                more += f"; best uniform plan: {format_metric(name, uniform.metrics[name])}"
            items.append((format_metric_name(name).capitalize(), figure, more))
    if plan is not None:
        size = result.space.find_space(plan).memory_bytes(plan)
        share = size / result.space.unquantized.memory.minimum
        resident = ""
        if run.config is not None:
            resident = formatting.format_resident_memory(run.config, size, result.space.weights)
        more = f"{share:.0%} of the model in 16 bits. {resident}"
        items.append(("Size", format_bytes(size), more.rstrip(". ")))
    if found is not None and found.baseline is not None and found.change is not None:
        name = format_plan(found.baseline.plan, result.space)
        items.append(("The plan against uniform", format_change(found.change), f"{found.data} loss; {name}"))
    if result.trials:
        more = f"{len(result.candidates)} plans; strategy {result.strategy}"
        items.append(("Evaluations", format_evaluations(result.spent), more))
    return items


def _list_css_properties(ramps: dict[str, int], *, dark: bool) -> dict[str, str]:
    """Custom properties of the page in a theme: its colours, and those of the ramps with the text on them."""
    found = get_palette(dark=dark)
    for name, count in ramps.items():
        for i, color in enumerate(make_ramp(name, count, dark=dark)):
            found |= {f"{name}-{i}": color, f"{name}-{i}-text": choose_text_color(color)}
    return found


@dataclass(frozen=True)
class HeatMap:
    """What the groups of a space are coloured by: steps of a ramp and labels of cells, one for each group."""

    ramp: str
    title: str
    remark: str
    levels: Sequence[int]
    labels: Sequence[str]
    legend: Sequence[str]


def make_heat_maps(
    space: SearchSpace, plan: Plan, sensitivities: Sensitivities | None = None
) -> list[HeatMap]:
    """Bits of a plan, its ranks unless nearly all are the same, and the damage by the sensitivities if they were
    measured."""
    bits, ranks = (levels.tolist() for levels in space.encode(plan))
    shown = [format_level_label(name) for name in plan.bits]
    ranked = [
        "" if g.is_embedding and not rank else str(rank)
        for g, rank in zip(space.groups, plan.ranks, strict=True)
    ]
    levels, steps = [*map(str, space.levels)], [f"rank {rank}" for rank in space.ranks]
    maps = [
        HeatMap("bits", "Bits", "of the frozen weights", bits, shown, levels),
    ]
    linears = [rank for group, rank in zip(space.groups, ranks, strict=True) if not group.is_embedding]
    if max(Counter(linears).values(), default=0) < tables.EQUAL_RANKS_SHARE * len(linears):
        maps.append(HeatMap("rank", "Rank", "of the adapter", ranks, ranked, steps))
    if sensitivities is not None:
        maps.append(_make_damage_map(space, sensitivities))
    return maps


def _make_damage_map(space: SearchSpace, known: Sensitivities) -> HeatMap:
    """The damage of each group alone at its fewest bits."""
    fewest = space.bits_allowed.argmax(1)
    at = format_level(space.bits[fewest[0]]) if len({*fewest.tolist()}) == 1 else "its fewest bits"
    damage = DAMAGE_SCALE * np.maximum(np.take_along_axis(known.bits_damage, fewest[:, None], 1)[:, 0], 0.0)
    levels, legend = compute_damage_steps(damage)
    remark = f"rise of the loss with one group alone at {at}, in thousandths of a nat"
    labels = [_format_value(value) for value in damage]
    return HeatMap("damage", "Sensitivity", remark, levels.tolist(), labels, legend)


def compute_damage_steps(values: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Levels (G,) of non-negative values on a logarithmic ramp, and a label for each level.

    What is below a thousandth of the largest value shares the first level.
    """
    values = np.maximum(np.asarray(values, dtype=float), 0.0)
    top = float(values.max(initial=0.0))
    low = max(float(values.min(initial=top)), top / 1000)
    if top <= 1.01 * low:
        return np.zeros(len(values), dtype=int), [_format_value(top)]
    edges = np.exp(np.linspace(math.log(low), math.log(top), DAMAGE_STEPS + 1))
    levels = np.clip(np.searchsorted(edges, values, side="right") - 1, 0, DAMAGE_STEPS - 1)
    ends = zip(edges[:-1], edges[1:], strict=True)
    return levels, [f"{_format_value(a)} to {_format_value(b)}" for a, b in ends]


def _format_value(value: float) -> str:
    """Rounded to two figures, and written without an exponent from a thousandth to a million."""
    return f"{float(f'{value:.2g}'):.6g}"
