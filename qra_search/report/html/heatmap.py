"""Plans and the prior as heat maps: real tables with headers, which screen readers read and print keeps."""

from __future__ import annotations

import math

from qra_search.report.html.markup import escape
from qra_search.report.layout import HeatMap, Layout

HEADERS_SHOWN = 17
"""Column headers that are printed; of more, every second, fifth or tenth is."""


def heat_table(layout: Layout, heat: HeatMap) -> str:
    """A table of the grid and the legend of its colours."""
    count = len(layout.columns)
    size = "s" if count <= 14 else "m" if count <= 36 else "l" if count <= 64 else "xl"
    step = next(s for s in (1, 2, 5, 10, 20, 50, 10**9) if math.ceil(count / s) <= HEADERS_SHOWN)
    heads = "".join(
        f'<th scope="col"{"" if i % step == 0 else " class=skip"}><span>{escape(name)}</span></th>'
        for i, name in enumerate(layout.columns)
    )
    rows = []
    for name, cells in zip(layout.rows, layout.cells, strict=True):
        body = "".join(
            '<td class="none"></td>'
            if g is None
            else f'<td data-g="{g}" class="{heat.ramp}-{heat.levels[g]}">{escape(heat.labels[g])}</td>'
            for g in cells
        )
        rows.append(f'<tr><th scope="row">{escape(name)}</th>{body}</tr>')
    legend = "".join(f'<li><i class="{heat.ramp}-{i}"></i>{escape(text)}</li>' for i, text in enumerate(heat.legend))
    return (
        f'<div class="heat-box"><table class="heat cols-{size}" data-of="{heat.ramp}">'
        f"<caption><b>{escape(heat.title)}</b> <span>{escape(heat.remark)}</span></caption>"
        f'<thead><tr><td class="corner"></td>{heads}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'
        f'<ul class="ramp">{legend}</ul>'
    )
