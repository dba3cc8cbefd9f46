"""`qra profile`: how sensitive every group is, measured once and shown before anything is searched."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qra_search.cli import common
from qra_search.cli.errors import BadInput, bad_input

if TYPE_CHECKING:
    from qra_search.evaluation import Prior
    from qra_search.space import SearchSpace

SHOWN = 10


def profile(
    config: common.ConfigFile = None,
    model: common.Model = None,
    task: common.Task = None,
    data: common.Data = None,
    bits: common.Bits = None,
    ranks: common.Ranks = None,
    granularity: common.Granularity = None,
    backend: common.Backend = None,
    seed: common.Seed = None,
    device: common.Device = None,
    evaluator: common.EvaluatorName = None,
    sets: common.Set = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="FILE",
            rich_help_panel=common.WHERE,
            show_default=False,
            help="Write the prior as JSON.",
        ),
    ] = None,  # fmt: skip
    as_json: common.Json = False,
) -> None:
    """Measure how much each group suffers from few bits and gains from rank.

    [bold]Example[/]

        qra profile --model smollm2 --task arithmetic --out prior.json
    """
    from qra_search.report.live import make_view
    from qra_search.result import write_json

    settings = common.settings(
        config, sets=sets, model=model, task=task, data=data, bits=bits, ranks=ranks, granularity=granularity,
        backend=backend, seed=seed, device=device, evaluator=evaluator,
    )  # fmt: skip
    with (
        make_view(common.stderr(), quiet=as_json) as view,
        closing(common.build_evaluator(settings, view)) as built,
    ):
        with bad_input():
            built.describe()  # reads the task's data: what is wrong with it shows here
        prior = built.prior()
        space = built.space
    if prior is None:
        raise BadInput(f"evaluator {settings.evaluator!r} measures no prior: search with another one, or without")
    facts = {"groups": list(space.names), "bits": list(space.bits), "ranks": list(space.ranks), **prior.to_dict()}
    if out is not None:
        with bad_input():
            out.parent.mkdir(parents=True, exist_ok=True)
            write_json(out, facts)
    if as_json:
        common.emit(facts)
    else:
        _print(space, prior, out)


def _print(space: SearchSpace, prior: Prior, out: Path | None) -> None:
    from rich.table import Table

    from qra_search.report import words

    console = common.stdout()
    charge = words.evaluations_text(prior.cost)
    console.print(
        f"[bold]Prior[/] of {len(space)} groups ({prior.source}), measured in {words.duration(prior.seconds)};"
    )
    console.print(f"a search is charged {charge} evaluations for it.\n")
    rank = space.ranks[-1]
    table = Table(box=None, header_style="dim", pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("most sensitive", no_wrap=True)
    for b in space.bits:
        table.add_column(f"{b} bits", justify="right")
    table.add_column(f"rank {rank}", justify="right")
    for g in (-prior.bits_damage[:, 0]).argsort()[:SHOWN]:
        damages: list[Any] = [f"+{value:.4f}" for value in prior.bits_damage[g]]
        table.add_row(space.names[g], *damages, f"-{prior.rank_gain[g, -1]:.4f}")
    console.print(table)
    console.print("\nRise (+) and fall (-) of the loss in nats, one group at a time.")
    if out is not None:
        console.print(f"Written to [bold]{out}[/]")
