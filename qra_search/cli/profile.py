"""`qra profile`: how sensitive every group is, measured once and shown before anything is searched."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from qra_search.bench.rank_correlation import RankCorrelation, by_prior, correlation, plans_of_like_size, score
from qra_search.cli import common
from qra_search.cli.common import option
from qra_search.config import RunConfig
from qra_search.errors import BadInput, bad_input
from qra_search.evaluation.evaluator import Evaluator
from qra_search.evaluation.prior import Prior
from qra_search.files import write_json
from qra_search.report import words
from qra_search.report.terminal.columns import columns
from qra_search.report.terminal.live import View, make_view
from qra_search.space.sizes import budget_in
from qra_search.space.space import SearchSpace
from qra_search.workflow.evaluator import build_evaluator

SHOWN = 10
FEWEST_PLANS = 3


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
    out: Annotated[Path | None, option("--out -o FILE", "Write the prior as JSON.", common.WHERE)] = None,
    plans: Annotated[
        int,
        option(
            "--plans N",
            "Also evaluate N random plans at every fidelity, and print how well each ranks them.",
            common.HOW,
            min=0,
        ),
    ] = 0,  # fmt: skip
    as_json: common.Json = False,
) -> None:
    """Measure how much each group suffers from few bits and gains from rank.

    With --plans, also how well cheap scores rank plans of about one size (the first memory budget, or
    else the uniform plan in the middle) as full evaluations do: the prior and every fidelity.

    [bold]Example[/]

        qra profile --model smollm2 --task arithmetic --plans 12 --out prior.json
    """
    settings = common.settings(
        config, sets=sets, model=model, task=task, data=data, bits=bits, ranks=ranks, granularity=granularity,
        backend=backend, seed=seed, device=device, evaluator=evaluator,
    )  # fmt: skip
    with (
        make_view(common.stderr(), quiet=as_json) as view,
        closing(build_evaluator(settings, view.progress)) as built,
    ):
        with bad_input():
            built.describe()  # reads the task's data: what is wrong with it shows here
        if 0 < plans < FEWEST_PLANS:
            raise BadInput(f"--plans is {plans}: a rank correlation needs at least {FEWEST_PLANS}")
        prior = built.prior()
        space = built.space
        ranked = _rank(built, prior, settings, plans, view) if prior is not None and plans else []
    if prior is None:
        raise BadInput(f"evaluator {settings.evaluator!r} measures no prior: search with another one, or without")
    facts = {"groups": list(space.names), "bits": list(space.bits), "ranks": list(space.ranks), **prior.to_dict()}
    if ranked:
        facts["rank_correlations"] = [asdict(row) for row in ranked]
    if out is not None:
        with bad_input():
            out.parent.mkdir(parents=True, exist_ok=True)
            write_json(out, facts)
    if as_json:
        common.emit(facts)
    else:
        _print(space, prior, out)
        if ranked:
            _print_ranked(ranked)


def _rank(evaluator: Evaluator, prior: Prior, settings: RunConfig, count: int, view: View) -> list[RankCorrelation]:
    """How well the prior and each lower fidelity rank `count` random plans as their full losses do."""
    space = evaluator.space
    with bad_input():
        if settings.search.memory:
            budget = budget_in(space, settings.search.memory[0])
        else:
            uniform = space.uniform_plans()
            budget = space.memory_bytes(uniform[len(uniform) // 2]) if uniform else space.memory.maximum
        chosen = plans_of_like_size(space, budget, count, settings.search.seed)
    losses, costs = score(
        evaluator, chosen, seed=settings.search.seed, progress=lambda n, of: view.progress("compare fidelities", n, of)
    )
    full = losses[evaluator.fidelities[-1]]
    rows = [correlation("the prior alone", full, by_prior(space, prior, chosen), 0.0)]
    return rows + [correlation(f"fidelity {f:g}", full, losses[f], costs[f]) for f in evaluator.fidelities[:-1]]


def _print_ranked(rows: Sequence[RankCorrelation]) -> None:
    console = common.stdout()
    table = columns("score", "cost", "rank correlation", "95% interval", "plans", left=("score",))
    for r in rows:
        table.add_row(r.name, f"{r.cost:.3g}", f"{r.rho:.2f}", f"{r.low:.2f} to {r.high:.2f}", str(r.plans))
    console.print()
    console.print(table)
    console.print("\nSpearman's correlation with the full loss, over random plans of about one size; costs in full")
    console.print("evaluations. A score is worth its cost only where its interval is well above that of the prior.")


def _print(space: SearchSpace, prior: Prior, out: Path | None) -> None:
    console = common.stdout()
    charge = words.evaluations_text(prior.cost)
    console.print(
        f"[bold]Prior[/] of {len(space)} groups ({prior.source}), measured in {words.duration(prior.seconds)};"
    )
    console.print(f"a search is charged {charge} evaluations for it.\n")
    rank = space.ranks[-1]
    table = columns("most sensitive", *map(str, space.levels), f"rank {rank}", left=("most sensitive",))
    table.columns[0].no_wrap = True
    for g in (-prior.bits_damage[:, 0]).argsort()[:SHOWN]:
        damages: list[Any] = [f"+{value:.4f}" for value in prior.bits_damage[g]]
        table.add_row(space.names[g], *damages, f"-{prior.rank_gain[g, -1]:.4f}")
    console.print(table)
    console.print("\nRise (+) and fall (-) of the loss in nats, one group at a time.")
    if out is not None:
        console.print(f"Written to [bold]{out}[/]")
