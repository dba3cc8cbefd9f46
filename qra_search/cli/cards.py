"""`qra doctor --model M`: which graphics cards a run on a model fits, and with which settings."""

from __future__ import annotations

from contextlib import closing

from rich.table import Table

from qra_search.cli import common
from qra_search.config import RunConfig
from qra_search.errors import BadInput
from qra_search.report.terminal.live import make_view
from qra_search.space.memory import format_bytes
from qra_search.workflow.evaluator import build_evaluator


def print_cards(config: RunConfig, *, as_json: bool) -> None:
    """Print a line for each card; weights are neither read nor needed.

    Raises:
        BadInput: the evaluator cannot say.
    """
    with (
        make_view(common.stderr(), quiet=as_json) as view,
        closing(build_evaluator(config, view.progress, weights=False)) as evaluator,
    ):
        found = list(evaluator.cards())
    if not found:
        raise BadInput(f"evaluator {config.evaluator!r} does not say which cards a run fits")
    if as_json:
        common.emit(found)
        return
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for title in ("card", "settings that fit", "highest peak", "memory beside it"):
        table.add_column(title)
    for card in found:
        if card["settings"] is None:
            table.add_row(card["name"], "none: choose a smaller model, or --bits 2,3 and --ranks 4", "", "")
        else:
            peak = f"{format_bytes(card['peak_bytes'])} ({card['phase']})"
            table.add_row(card["name"], card["settings"], peak, format_bytes(card["host_bytes"]))
    common.stdout().print(table)
