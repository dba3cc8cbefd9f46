"""`qra plan`: the plan that the sensitivities choose for a budget, in minutes and without any training."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any

from qra_search.cli import common
from qra_search.cli.common import WHERE, option
from qra_search.config import RunConfig
from qra_search.report import formatting
from qra_search.report.engine_support import takers_text
from qra_search.report.finding import said
from qra_search.report.tables import forecast_table
from qra_search.report.terminal.live import make_view
from qra_search.report.terminal.tables import next_steps
from qra_search.runs.folder import RunFolder
from qra_search.space.budgets import bits_per_weight
from qra_search.space.memory import format_bytes
from qra_search.study.result import SearchResult
from qra_search.workflow.costs import Costs, foretold_costs, worth_text
from qra_search.workflow.plan import check_plannable, plan_with
from qra_search.workflow.run import new_folder, opened


def plan(
    config: common.ConfigFile = None,
    model: common.Model = None,
    task: common.Task = None,
    data: common.Data = None,
    columns: common.Columns = None,
    memory: common.Memory = None,
    bits: common.Bits = None,
    ranks: common.Ranks = None,
    granularity: common.Granularity = None,
    engine: common.Engine = None,
    backend: common.Backend = None,
    seed: common.Seed = None,
    device: common.Device = None,
    evaluator: common.EvaluatorName = None,
    sets: common.Set = None,
    out: Annotated[
        Path | None, option("--out -o RUN", "Folder of the run; default: a new one below runs/.", WHERE)
    ] = None,
    as_json: common.Json = False,
) -> None:
    """Choose bits and ranks for a budget from measured sensitivities alone: minutes, no training.

    Quantizes, measures how sensitive every group is, solves the choice exactly, and says what is predicted to be
    gained over uniform plans of the same bytes. The run it leaves is tuned by `qra finetune` and searched further by
    `qra search RUN`.

    [bold]Example[/]

        qra plan --model smollm2 --task arithmetic --memory 95MiB --out runs/a
    """
    flags: dict[str, Any] = {
        "model": model, "task": task, "data": data, "columns": columns, "memory": memory, "bits": bits, "ranks": ranks,
        "granularity": granularity, "engine": engine, "backend": backend, "seed": seed, "device": device,
        "evaluator": evaluator,
    }  # fmt: skip
    settings = common.settings(config, sets=sets, **flags)
    check_plannable(settings)
    folder = RunFolder(out or new_folder(settings))
    view = make_view(common.stderr(), quiet=as_json)
    if folder.exists and folder.config_file.is_file() and "evaluations" not in settings.search.model_fields_set:
        known = folder.config().search.evaluations  # of the search that has begun here
        settings = settings.model_copy(update={"search": settings.search.model_copy(update={"evaluations": known})})
    with opened(settings, folder, view, resume=folder.exists) as (built, _):
        result = plan_with(built, settings, folder, view)
        costs = foretold_costs(built, settings.search.evaluations, result.sensitivities)
    if as_json:
        common.emit({"folder": str(folder.path), **result.to_dict()})
    else:
        print_planned(folder, settings, result, costs)


def print_planned(folder: RunFolder, config: RunConfig, result: SearchResult, costs: Costs | None) -> None:
    """What is foretold for every budget, and the commands that go on from there."""
    console, space, sensitivities = common.stdout(), result.space, result.sensitivities
    console.print(f"\n[bold]{said(result)}[/]")
    for budget in result.memory_budgets:
        foretold = result.forecast(budget)
        if foretold is None:
            continue
        weight = f"{bits_per_weight(space, budget):.2f} bits a weight"
        console.print(f"\nWithin [bold]{format_bytes(budget)}[/] ({weight})\n")
        console.print(forecast_table(foretold, space))
    console.print(
        "\nGain: by how many nats of loss the planned one is predicted to end lower, after a short tuning. Chance: the "
        "interval holds zero. These intervals held 95% of the differences in seventeen recorded searches.",
        style="dim",
    )
    if sensitivities is not None and sensitivities.seconds:
        console.print(
            f"Sensitivities of {len(space)} groups, measured in {formatting.duration(sensitivities.seconds)}."
        )
    if (chosen := result.chosen()) is not None:
        console.print(takers_text(config, space, chosen), soft_wrap=True)
    quoted, evaluations = shlex.quote(str(folder.path)), formatting.evaluations_text(config.search.evaluations)
    next_steps(console, folder, more=[("search on from here", f"qra search {quoted} --evaluations {evaluations}")])
    if costs is not None:
        console.print(f"What a search takes: {costs.text}.")
    console.print(f"What it may gain: {worth_text(result.forecast())}.")
