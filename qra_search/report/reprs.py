"""How results and comparisons are shown by rich, in a terminal and in a notebook."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from rich.console import Console, Group
from rich.text import Text

from qra_search.report.finding import finding, headline, said
from qra_search.report.formatting import evaluations_text
from qra_search.report.tables import comparison_table, tested_table
from qra_search.runs.comparison import TestResult
from qra_search.study.result import SearchResult

WIDTH = 110
"""Columns in a notebook."""
FORMAT = '<pre style="white-space:pre;overflow-x:auto;line-height:1.35;font-family:monospace">{code}</pre>'


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
