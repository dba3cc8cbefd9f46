"""`qra profile`: how sensitive every group is, measured once and shown before anything is searched."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Annotated

from rich.markup import escape

from qra_search.cli import common
from qra_search.cli.common import option
from qra_search.errors import BadInput, bad_input
from qra_search.evaluation.sensitivities import Sensitivities
from qra_search.files import write_json
from qra_search.report import formatting
from qra_search.report.table import TextTable
from qra_search.report.terminal.live import make_view
from qra_search.space.levels import level_words
from qra_search.space.space import SearchSpace
from qra_search.workflow.evaluator import build_evaluator
from qra_search.workflow.settings import check_task

LAYERS = "model.layers."
"""Begins nearly every name, and is left out so that a row fits 80 columns."""
SHOWN = 10


@common.with_settings("memory", "engine", *common.OF_SEARCH)
def profile(
    given: common.Given,
    out: Annotated[Path | None, option("--out -o FILE", "Write them as JSON.", common.WHERE)] = None,
    as_json: common.Json = False,
) -> None:
    """Measure how much each group suffers from few bits and gains from rank.

    [bold]Example[/]

        qra profile --model smollm2 --task arithmetic --out sensitivities.json
    """
    settings = given.settings()
    check_task(settings)
    with (
        make_view(common.stderr(), quiet=as_json) as view,
        closing(build_evaluator(settings, view.progress)) as built,
    ):
        with bad_input():
            built.describe()  # reads the task's data: what is wrong with it shows here
            if out is not None:
                out.parent.mkdir(parents=True, exist_ok=True)  # before minutes of measuring
        sensitivities = built.sensitivities()
        space = built.space
    if sensitivities is None:
        raise BadInput(
            f"evaluator {settings.evaluator!r} measures no sensitivities: search with another one, or without"
        )
    facts = {
        "groups": list(space.names),
        "bits": list(space.bits),
        "ranks": list(space.ranks),
        **sensitivities.to_dict(),
    }
    if out is not None:
        with bad_input():
            write_json(out, facts)
    if as_json:
        common.emit(facts)
    else:
        _print(space, sensitivities, out)


def _print(space: SearchSpace, sensitivities: Sensitivities, out: Path | None) -> None:
    console = common.stdout()
    charge = formatting.evaluations_text(sensitivities.cost)
    took = formatting.duration(sensitivities.seconds)
    console.print(f"[bold]Sensitivities[/] of {len(space)} groups ({sensitivities.source}), measured in {took};")
    console.print(f"a search is charged {charge} evaluations for it.\n")
    rank = space.uniform_ranks[-1]
    levels = [level_words(name).removesuffix(" bits") for name in space.bits]
    rows = []
    for g in (-sensitivities.bits_damage[:, 0]).argsort()[:SHOWN]:
        damages = [f"{1000 * value:+.1f}" for value in sensitivities.bits_damage[g]]
        gain = f"{-1000 * sensitivities.rank_gain[g, -1]:+.1f}"
        rows.append((space.names[g].removeprefix(LAYERS), *damages, gain))
    note = "Rise (+) and fall (-) of the loss, in thousandths of a nat, one group at a time."
    console.print(TextTable("", ("most sensitive at", *levels, f"rank {rank}"), rows, notes=[note]))
    if out is not None:
        console.print(f"Written to [bold]{escape(str(out))}[/]")
