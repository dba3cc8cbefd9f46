"""Plans and the prior as heat maps: real tables with headers, which screen readers read and print keeps."""

from __future__ import annotations

import math
from collections.abc import Sequence

from qra_search.report.html.markup import escape
from qra_search.report.layout import Layout

HEADERS_SHOWN = 17
"""Column headers that are printed; of more, every second, fifth or tenth is."""


def heat_table(
    layout: Layout,
    kind: str,
    caption: str,
    remark: str,
    levels: Sequence[int],
    labels: Sequence[str],
) -> str:
    """A table of the grid: a group's level colours it on the ramp of this kind, its label is what the cell says."""
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
            else f'<td data-g="{g}" class="{kind}-{levels[g]}">{escape(labels[g])}</td>'
            for g in cells
        )
        rows.append(f'<tr><th scope="row">{escape(name)}</th>{body}</tr>')
    return (
        f'<div class="heat-box"><table class="heat cols-{size}" data-of="{kind}">'
        f"<caption><b>{escape(caption)}</b> <span>{escape(remark)}</span></caption>"
        f'<thead><tr><td class="corner"></td>{heads}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'
    )


def ramp_legend(ramp: str, labels: Sequence[str]) -> str:
    """The colours of a ramp with what they mean."""
    items = "".join(f'<li><i class="{ramp}-{i}"></i>{escape(text)}</li>' for i, text in enumerate(labels))
    return f'<ul class="ramp">{items}</ul>'
