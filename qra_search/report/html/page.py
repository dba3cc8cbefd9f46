"""Puts a report together: one HTML file that needs nothing else, for one run or several."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from qra_search.files import write_text
from qra_search.report.colors import PRIOR_STEPS, palette, ramp_css
from qra_search.report.data import RunData
from qra_search.report.figures.canvas import page_rules
from qra_search.report.formatting import plan_name
from qra_search.report.html import sections
from qra_search.report.html.headline import headline, lead
from qra_search.report.html.markup import escape
from qra_search.runs.folder import RunFolder

LEVELS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
"""One character for each level of bits or rank, so that a plan is a short text."""


def write_page(runs: Sequence[RunFolder], path: Path) -> Path:
    """Write the report of some runs.

    Raises:
        NoRun: one of the folders holds no run.
    """
    content = page([RunData.read(run) for run in runs])
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, content)
    return path


def page(runs: Sequence[RunData]) -> str:
    """The report as a text."""
    if not runs:
        raise ValueError("a report needs at least one run")
    title = runs[0].said if len(runs) == 1 else f"{len(runs)} runs compared"
    body = _article(runs[0], 0) if len(runs) == 1 else _several(runs)
    data = json.dumps([embedded(run) for run in runs], allow_nan=False, separators=(",", ":"))
    # Inside a script element only these could end it or begin a comment.
    data = data.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{escape(title)}</title><style>{_asset('page.css')}{_palette(runs)}{page_rules()}</style></head>"
        f"<body><main>{body}</main>"
        "<footer>Made by qra. Losses are in nats and lower is better; sizes are exact and count quantized weights with "
        "their metadata, adapters, and all that is not searched.</footer>"
        f'<div id="tip" role="status" hidden></div><script type="application/json" id="data">{data}</script>'
        f"<script>{_asset('page.js')}</script></body></html>\n"
    )


def embedded(run: RunData) -> dict[str, Any]:
    """What the script needs of a run: the grid, and the plans of the chart as texts of levels."""
    space, sensitivities = run.result.space, run.result.sensitivities
    bit = {b: LEVELS[i] for i, b in enumerate(space.bits)}
    rank = {r: LEVELS[i] for i, r in enumerate(space.ranks)}
    points = []
    for c in run.shown:
        trial = run.first_trial[c.plan.key]
        expected = trial.proposal.predicted_loss
        points.append(
            {
                "t": plan_name(c.plan, space),
                "b": "".join(bit[b] for b in c.plan.bits),
                "r": "".join(rank[r] for r in c.plan.ranks),
                "l": f"{c.loss:.4f}",
                "s": f"{c.loss_std:.2g}" if math.isfinite(c.loss_std) else "",
                "m": c.memory_bytes,
                "o": trial.proposal.origin or "proposal",
                "e": "" if expected is None else f"{expected:.4f}",
                "n": c.evaluations,
            }
        )
    return {
        "bits": list(map(str, space.bits)),
        "ranks": list(space.ranks),
        "grid": [[-1 if g is None else g for g in row] for row in run.layout.cells],
        "groups": list(space.names),
        "damage": [f"{v:.3g}" for v in sensitivities.bits_damage[:, 0]] if sensitivities else None,
        "gain": [f"{v:.3g}" for v in sensitivities.rank_gain[:, -1]] if sensitivities else None,
        "points": points,
        "best": next((i for i, c in enumerate(run.shown) if c.plan == run.plan), -1),
    }


def _several(runs: Sequence[RunData]) -> str:
    head = f'<header><p class="eyebrow">qra report</p><h1>{len(runs)} runs compared</h1></header>'
    articles = (_article(run, i, f'class="run" id="run-{i}" ', 'h2 class="big"') for i, run in enumerate(runs))
    return head + sections.overview(runs) + "".join(articles)


def _article(run: RunData, number: int, attributes: str = "", heading: str = "h1") -> str:
    key = f"r{number}"
    body = (
        sections.comparison(run), sections.front(run, key), sections.plan(run), sections.learnt(run, key),
        sections.tunings(run, key), sections.costs(run), sections.failures(run), sections.commands(run),
        sections.settings(run),
    )  # fmt: skip
    return (
        f'<article {attributes}data-run="{number}"><header><p class="eyebrow">{sections.eyebrow(run)}</p>'
        f"<{heading}>{headline(run)}</{heading.split()[0]}>"
        f'<p class="lead">{lead(run)}</p>{sections.facts(run)}</header>{"".join(body)}</article>'
    )


def _asset(name: str) -> str:
    return resources.files("qra_search.report").joinpath(name).read_text(encoding="utf-8")


def _palette(runs: Sequence[RunData]) -> str:
    """Custom properties of the colours and ramps in both themes, and the classes that use them."""
    counts = {
        "bits": max(len(run.result.space.bits) for run in runs),
        "rank": max(len(run.result.space.ranks) for run in runs),
        "prior": PRIOR_STEPS,
    }
    light, dark = (
        "".join(f"--{name}:{color};" for name, color in palette(dark=dark).items())
        + "".join(ramp_css(name, count, dark=dark) for name, count in counts.items())
        for dark in (False, True)
    )
    classes = "".join(
        f".{name}-{i}{{--cell:var(--{name}-{i});--on:var(--{name}-{i}-text)}}"
        for name, count in counts.items()
        for i in range(count)
    )
    classes += "".join(f".o-{i}{{--o:var(--o-{i})}}" for i in range(8))
    classes += ".o-uniform{--o:var(--uniform)}.o-prior{--o:var(--o-7)}"
    return f":root{{{light}}}@media (prefers-color-scheme:dark){{:root{{{dark}}}}}{classes}"
