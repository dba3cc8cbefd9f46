"""How spaces, results and comparisons are shown by rich, in a terminal and in a notebook."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Sequence
from typing import Any

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from qra_search.display import register
from qra_search.report.finding import finding, headline, said
from qra_search.report.formatting import evaluations_text
from qra_search.report.tables import comparison_table, tested_table
from qra_search.runs.comparison import TestResult
from qra_search.space.levels import level_words
from qra_search.space.memory import format_bytes
from qra_search.space.space import SearchSpace
from qra_search.study.result import SearchResult

WIDTH = 110
"""Columns in a notebook."""
FORMAT = '<pre style="white-space:pre;overflow-x:auto;line-height:1.35;font-family:monospace">{code}</pre>'


def space_rich(space: SearchSpace) -> Table:
    """Groups, choices, and the sizes of the cheapest, the dearest and the uniform plans."""
    kinds = Counter(group.kind or "group" for group in space.groups)
    uniform = [f"{level_words(p.bits[0])}, rank {p.ranks[0]}: {format_bytes(space.memory_bytes(p))}"
               for p in space.uniform_plans() if p.ranks[0] == space.uniform_ranks[-1]]  # fmt: skip
    table = Table.grid(padding=(0, 2))
    for name, text in (
        ("groups", f"{len(space)} ({', '.join(f'{n} {kind}' for kind, n in kinds.items())})"),
        ("weights", f"{space.weights:,} in {sum(len(g.linears) for g in space.groups)} linears"),
        ("bits", ", ".join(map(str, space.bits))),
        ("ranks", ", ".join(map(str, space.ranks))),
        ("not searched", format_bytes(space.fixed_bytes)),
        ("smallest plan", format_bytes(space.memory.minimum)),
        ("largest plan", format_bytes(space.memory.maximum)),
        ("uniform plans", "; ".join(uniform) or "none is allowed"),
    ):
        table.add_row(Text(name, style="dim"), Text(text))
    return table


def result_rich(result: SearchResult) -> Group:
    """The finding in a sentence, and for every budget the best plan beside the best uniform one."""
    failed = len(result.failures())
    spent = f"{len(result.trials)} evaluations" + (f", {failed} failed" if failed else "")
    spent += f"; spent {evaluations_text(result.spent)}; strategy {result.strategy}, seed {result.seed}."
    parts: list[Any] = [Text(said(result), style="bold"), Text()]
    if result.comparisons:
        parts += [comparison_table(result), Text()]
    return Group(*parts, Text(spent, style="dim"))


def tested_rich(result: SearchResult, tested: Sequence[TestResult], limit: int) -> Group:
    """A comparison on test data: the finding in a sentence, and every plan that was tuned.

    Args:
        limit: bytes that the comparison keeps to.
    """
    said = headline(finding(result, tested, limit))
    return Group(Text(said, style="bold"), Text(), tested_table(tested, result.space))


def as_html(thing: Any) -> str:
    """What rich prints of an object, as HTML for a notebook."""
    console = Console(file=io.StringIO(), width=WIDTH, record=True, force_jupyter=False)
    console.print(thing)
    return console.export_html(inline_styles=True, code_format=FORMAT)


register(SearchSpace, space_rich, as_html)
register(SearchResult, result_rich, as_html)
