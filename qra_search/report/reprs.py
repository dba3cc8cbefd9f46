"""How spaces and results are shown in a terminal, by rich, and in a notebook, as HTML."""

from __future__ import annotations

import base64
from collections import Counter
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from qra_search.display import register
from qra_search.report import formatting
from qra_search.report.data import RunData
from qra_search.report.figures import to_svg
from qra_search.report.figures.charts import front_figure
from qra_search.report.finding import said
from qra_search.report.html.markup import escape, prose
from qra_search.report.terminal.tables import comparison_table
from qra_search.space.levels import level_words
from qra_search.space.memory import format_bytes
from qra_search.space.space import SearchSpace
from qra_search.study.result import SearchResult


def space_rich(space: SearchSpace) -> Table:
    """Groups, choices, and the sizes of the cheapest, the dearest and the uniform plans."""
    table = Table.grid(padding=(0, 2))
    for name, text in _space_facts(space):
        table.add_row(Text(name, style="dim"), text)
    return table


def space_html(space: SearchSpace) -> str:
    """The same as HTML."""
    rows = "".join(
        f'<tr><th style="text-align:left">{escape(a)}</th><td style="text-align:left">{prose(b)}</td></tr>'
        for a, b in _space_facts(space)
    )
    return f"<table>{rows}</table>"


def result_rich(result: SearchResult) -> Group:
    """The finding in a sentence, and for every budget the best plan beside the best uniform one."""
    parts: list[Any] = [Text(_finding(result), style="bold"), Text()]
    if result.comparisons:
        parts += [comparison_table(result), Text()]
    return Group(*parts, Text(_spent(result), style="dim"))


def result_html(result: SearchResult) -> str:
    """The same as HTML, with the chart of losses against memory."""
    table = ""
    if result.comparisons:
        drawn = comparison_table(result)
        cells = [[str(cell) for cell in column.cells] for column in drawn.columns]
        head = "".join(f"<th>{escape(column.header)}</th>" for column in drawn.columns)
        rows = "".join(f"<tr>{''.join(f'<td>{prose(c)}</td>' for c in row)}</tr>" for row in zip(*cells, strict=True))
        table = f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
    chart = ""
    if result.candidates:
        front = to_svg(front_figure(RunData("", "search", result, {}, None, (), False)))
        data = base64.b64encode(front.encode()).decode()
        style = 'alt="Loss against memory" style="max-width:44em;width:100%"'
        chart = f'<img {style} src="data:image/svg+xml;base64,{data}">'
    return f"<div><p><b>{prose(_finding(result))}</b></p>{table}<p>{prose(_spent(result))}</p>{chart}</div>"


def _finding(result: SearchResult) -> str:
    return said(result)


def _spent(result: SearchResult) -> str:
    failed = len(result.failures())
    text = f"{len(result.trials)} evaluations" + (f", {failed} failed" if failed else "")
    return f"{text}; spent {formatting.evaluations_text(result.spent)}; strategy {result.strategy}, seed {result.seed}."


def _space_facts(space: SearchSpace) -> list[tuple[str, Any]]:
    kinds = Counter(group.kind or "group" for group in space.groups)
    uniform = [f"{level_words(p.bits[0])}, rank {p.ranks[0]}: {format_bytes(space.memory_bytes(p))}"
               for p in space.uniform_plans() if p.ranks[0] == space.uniform_ranks[-1]]  # fmt: skip
    return [
        ("groups", f"{len(space)} ({', '.join(f'{n} {kind}' for kind, n in kinds.items())})"),
        ("weights", f"{space.weights:,} in {sum(len(g.linears) for g in space.groups)} linears"),
        ("bits", ", ".join(map(str, space.bits))),
        ("ranks", ", ".join(map(str, space.ranks))),
        ("not searched", format_bytes(space.fixed_bytes)),
        ("smallest plan", format_bytes(space.memory.minimum)),
        ("largest plan", format_bytes(space.memory.maximum)),
        ("uniform plans", "; ".join(uniform) or "none is allowed"),
    ]


register(SearchSpace, space_rich, space_html)
register(SearchResult, result_rich, result_html)
