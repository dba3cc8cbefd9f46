"""`qra finetune`: the plan of a run tuned in full, and compared with uniform plans on test data."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path
from typing import Annotated, cast

from qra_search.cli import common
from qra_search.cli.common import option
from qra_search.errors import BadInput, bad_input
from qra_search.report import words
from qra_search.report.terminal.live import make_view
from qra_search.report.terminal.tables import next_steps, tested_table
from qra_search.runs.final_test import Against, Tested
from qra_search.runs.folder import RunFolder
from qra_search.workflow.evaluator import build_evaluator, on_device
from qra_search.workflow.finetune import check_reloads, chosen_plan, tune_with


def finetune(
    run: common.Run,
    plan: Annotated[Path | None, option("--plan FILE", "Another plan than the run's own plan.json.")] = None,
    memory: Annotated[
        str | None, option("--memory SIZE", "Tune the best plan within this budget; default: the run's largest.")
    ] = None,
    steps: Annotated[
        int | None, option("--steps N", "Optimizer steps; default: training.final_steps of the run.", min=1)
    ] = None,
    seeds: Annotated[
        int, option("--seeds N", "Tune every plan with so many seeds, for intervals.", show_default=True, min=1)
    ] = 1,
    against: common.Against = "best",
    device: Annotated[str | None, option("--device D", "auto, cpu, cuda or cuda:1; default: the run's.")] = None,
    as_json: common.Json = False,
) -> None:
    """Tune the plan of a run in full, save the adapter, and test it against uniform plans.

    Writes adapter/ (an ordinary PEFT adapter), plan.json and test.json into the run's folder, and the report anew.

    [bold]Example[/]

        qra finetune runs/a --against all
    """
    if plan is not None and memory is not None:
        raise BadInput("--plan and --memory both choose a plan: give one of them")
    with bad_input():
        folder = RunFolder(run).check()
        config = on_device(folder.config(), device)
        chosen = chosen_plan(folder, memory) if plan is None else common.read_plan(folder.result().space, plan)
    view = make_view(common.stderr(), quiet=as_json)
    with view, closing(build_evaluator(config, view.progress)) as evaluator:
        tested = tune_with(
            evaluator, config, folder, view, chosen, against=cast(Against, against), seeds=seeds, steps=steps
        )  # fmt: skip
    if as_json:
        common.emit(json.loads(folder.test_file.read_text()))
    else:
        print_tested(folder, tested)
    check_reloads(folder, tested)


def print_tested(folder: RunFolder, tested: list[Tested]) -> None:
    """The finding, the table of the comparison, and what to do next."""
    console = common.stdout()
    result = folder.result()
    console.print(f"\n[bold]{words.headline(words.finding(result, tested))}[/]\n")
    console.print(tested_table(tested, result.space))
    console.print()
    next_steps(console, folder)
