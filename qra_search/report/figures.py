"""The charts of a report as files of their own: SVG with its own style, and PNG where a renderer is installed."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from qra_search.report.colors import PRIOR_STEPS, ramp, text_on
from qra_search.report.data import RunData
from qra_search.report.html import charts, svg
from qra_search.report.html.heatmap import damage_steps
from qra_search.report.html.page import style_sheet
from qra_search.report.words import headline, plan_name
from qra_search.space.levels import level_words

RENDERER = "resvg_py"
EXTRA = "figures"
ZOOM = 2.0
"""Pixels of a PNG for each unit of the SVG."""
FONTS = "'Segoe UI', Roboto, 'Helvetica Neue', Arial, 'DejaVu Sans', sans-serif"
CELL, MARGIN = 26, 16
_RULE = re.compile(r"([^{}]+)\{([^{}]*)\}")
_VARIABLE = re.compile(r"--([\w-]+):\s*([^;}]+)")
_USE = re.compile(r"var\(--([\w-]+)\)")


def figures(runs: Sequence[RunData], *, dark: bool = False) -> dict[str, str]:
    """Charts by name, each a whole SVG document: of one run its front, trace, predictions and plan; of several their
    fronts and traces together. What a run has nothing to show for is left out."""
    if len(runs) > 1:
        drawn = {"fronts": charts.fronts_chart(runs), "traces": charts.traces_chart(runs)}
    else:
        (run,) = runs
        drawn = {}
        if run.result.candidates:
            drawn["front"] = charts.front_chart(run, "f")
        if any(t.points for t in run.traces):
            drawn["trace"] = charts.trace_chart(run, "f", half=False)
        if run.predictions:
            drawn["predictions"] = charts.prediction_chart(run, "f")
    colours = _variables(runs, dark)
    made = {name: _alone(_largest(chart), colours, _rules(runs)) for name, chart in drawn.items()}
    if len(runs) == 1 and runs[0].plan is not None:
        made["plan"] = plan_figure(runs[0], colours, dark=dark)
    return made


def write_figures(runs: Sequence[RunData], folder: Path, *, dark: bool = False) -> list[Path]:
    """Write every figure as SVG, and as PNG where `resvg_py` is installed; returns the files.

    Raises:
        OSError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    render = renderer()
    written = []
    for name, text in figures(runs, dark=dark).items():
        path = folder / f"{name}.svg"
        path.write_text(text, encoding="utf-8")
        written.append(path)
        if render is not None:
            path = folder / f"{name}.png"
            path.write_bytes(render(text))
            written.append(path)
    return written


def renderer() -> Callable[[str], bytes] | None:
    """From SVG to PNG with the fonts that matplotlib brings, so that every machine draws alike; None without either."""
    fonts = importlib.util.find_spec("matplotlib")
    if importlib.util.find_spec(RENDERER) is None or fonts is None or fonts.origin is None:
        return None
    import resvg_py

    folder = Path(fonts.origin).parent / "mpl-data" / "fonts" / "ttf"

    def render(text: str) -> bytes:
        return bytes(
            resvg_py.svg_to_bytes(
                svg_string=text, zoom=ZOOM, skip_system_fonts=True, font_dirs=[str(folder)],
                font_family="DejaVu Sans", sans_serif_family="DejaVu Sans",
            )
        )  # fmt: skip

    return render


def plan_figure(run: RunData, colours: dict[str, str], *, dark: bool = False) -> str:
    """Bits and rank of the plan found, and the prior where there is one, kinds down and layers across."""
    plan, space, grid = run.plan, run.result.space, run.layout
    assert plan is not None
    maps: list[tuple[str, Sequence[int], Sequence[Any], list[str]]] = [
        ("Bits of the frozen weights", [space.bits.index(b) for b in plan.bits], plan.bits,
         ramp("bits", len(space.bits), dark=dark)),
        ("Rank of the adapter", [space.ranks.index(r) for r in plan.ranks], plan.ranks,
         ramp("rank", len(space.ranks), dark=dark)),
    ]  # fmt: skip
    prior = run.result.prior
    if prior is not None:
        steps, _ = damage_steps(prior.bits_damage[:, 0])
        title = f"Sensitivity by the prior: one group alone at {level_words(space.bits[0])}; darker suffers more"
        maps.append((title, steps.tolist(), [""] * len(space), ramp("prior", PRIOR_STEPS, dark=dark)))
    names = max(len(row) for row in grid.rows)
    left = MARGIN + 10 + round(7.2 * names)
    width = max(left + CELL * len(grid.columns) + MARGIN, 420)
    y, parts = MARGIN + 14, [svg.text(MARGIN, MARGIN + 14, f"{run.name}: {plan_name(plan, space)}", kind="mark strong")]
    for title, levels, labels, ramp_of in maps:
        y += 34
        parts.append(svg.text(MARGIN, y, title, kind="label"))
        y += 8
        for row, cells in zip(grid.rows, grid.cells, strict=True):
            parts.append(svg.text(left - 8, y + 18, row, anchor="end"))
            for column, g in enumerate(cells):
                if g is None:
                    continue
                x, color = left + CELL * column, ramp_of[levels[g]]
                parts.append(f'<rect x="{x}" y="{y}" width="{CELL - 1}" height="{CELL - 1}" rx="2" fill="{color}"/>')
                if labels[g] != "":
                    style = f'style="fill:{text_on(color)};font-size:11px"'
                    parts.append(
                        f'<text x="{x + CELL / 2 - 0.5:g}" y="{y + 17}" text-anchor="middle" {style}>{labels[g]}</text>'
                    )
            y += CELL
    step = 1 if len(grid.columns) <= 17 else 5
    for column in range(0, len(grid.columns), step):
        parts.append(svg.text(left + CELL * column + CELL / 2, y + 14, grid.columns[column], anchor="middle"))
    drawing = (
        f'<svg viewBox="0 0 {width} {y + 30}" role="img" aria-label="{svg.escape(headline(run.finding))}">'
        f"{''.join(parts)}</svg>"
    )
    return _alone(drawing, colours, _rules([run]))


def _largest(chart: str) -> str:
    """The widest of the drawings that a chart holds."""
    return max(re.findall(r"<svg class=.*?</svg>", chart, re.DOTALL), key=lambda text: float(_box(text)[2]))


def _alone(drawing: str, colours: dict[str, str], rules: str) -> str:
    """A drawing of a page as a document: with its symbols, its style, and the page's colour behind it."""
    box = _box(drawing)
    style = _USE.sub(lambda m: colours[m[1]], rules)
    inner = drawing[drawing.index(">") + 1 :]
    symbols = re.sub(r"</?svg[^>]*>", "", svg.symbols())
    label = re.search(r'(role="img"[^>]*)>', drawing)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{" ".join(box)}" width="{box[2]}" height="{box[3]}" '
        f"{label[1] if label else ''}><style>svg{{font-family:{FONTS}}}{style}</style>"
        f'<defs>{symbols}</defs><rect width="100%" height="100%" fill="{colours["paper"]}"/>{inner}\n'
    )


def _box(drawing: str) -> list[str]:
    found = re.search(r'viewBox="([^"]+)"', drawing)
    assert found is not None
    return found[1].split()


def _rules(runs: Sequence[RunData]) -> str:
    """The page's rules for what is inside charts; a file is not hovered over."""
    chosen = []
    for selector, body in _RULE.findall(style_sheet(runs)):
        selector = selector.strip()
        if selector.startswith(("svg ", ".point", ".dot", ".o-")) and ":" not in selector:
            # Not every renderer reads a rule on that sets custom properties.
            kept = [part for part in body.split(";") if not part.strip().startswith(("--", "font-family"))]
            chosen.append(f"{selector}{{{';'.join(kept)}}}")
    return "".join(chosen)


def _variables(runs: Sequence[RunData], dark: bool) -> dict[str, str]:
    """The page's colours in one of its themes, by name; those that rules set themselves are of no use here."""
    css = style_sheet(runs)
    blocks = re.findall(r"(?m)^:root\s*\{([^}]*)\}", css)
    if dark:
        blocks += re.findall(r"prefers-color-scheme:\s*dark\)\s*\{\s*:root\s*\{([^}]*)\}", css)
    return {name: value.strip() for block in blocks for name, value in _VARIABLE.findall(block)}
