"""`qra finetune`: the plan of a run tuned in full, and compared with uniform plans on test data."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qra_search.cli import common
from qra_search.errors import BadInput, bad_input

if TYPE_CHECKING:
    from qra_search.config import RunConfig
    from qra_search.evaluation.evaluator import Evaluator
    from qra_search.report.terminal.live import View
    from qra_search.runs.final_test import Tested
    from qra_search.runs.folder import RunFolder
    from qra_search.space.space import Plan, SearchSpace

AGAINST = ("all", "best", "none")


def finetune(
    run: common.Run,
    plan: Annotated[
        Path | None,
        typer.Option("--plan", metavar="FILE", show_default=False, help="Another plan than the run's own plan.json."),
    ] = None,
    memory: Annotated[
        str | None,
        typer.Option(
            "--memory",
            metavar="SIZE",
            show_default=False,
            help="Tune the best plan within this budget; default: the run's largest.",
        ),
    ] = None,  # fmt: skip
    steps: Annotated[
        int | None,
        typer.Option(
            "--steps",
            metavar="N",
            min=1,
            show_default=False,
            help="Optimizer steps; default: training.final_steps of the run.",
        ),
    ] = None,  # fmt: skip
    seeds: Annotated[
        int, typer.Option("--seeds", metavar="N", min=1, help="Tune every plan with so many seeds, for intervals.")
    ] = 1,
    against: Annotated[
        str,
        typer.Option(
            "--against",
            metavar="|".join(AGAINST),
            help="Uniform plans to tune as well: all that fit, the best of them, or none.",
        ),
    ] = "best",  # fmt: skip
    as_json: common.Json = False,
) -> None:
    """Tune the plan of a run in full, save the adapter, and test it against uniform plans.

    Writes adapter/ (an ordinary PEFT adapter), plan.json and test.json into the run's folder, and the report anew.

    [bold]Example[/]

        qra finetune runs/a --against all
    """
    from qra_search.report.terminal.live import make_view
    from qra_search.runs.folder import RunFolder

    if against not in AGAINST:
        raise typer.BadParameter(f"{against!r} is not one of {', '.join(AGAINST)}", param_hint="--against")
    with bad_input():
        folder = RunFolder(run).check()
        config = folder.config()
        chosen = _chosen(folder, plan, memory)
    view = make_view(common.stderr(), quiet=as_json)
    with view, closing(common.build_evaluator(config, view)) as evaluator:
        tested = tune_with(evaluator, config, folder, view, chosen, against=against, seeds=seeds, steps=steps)
    if as_json:
        common.emit(json.loads(folder.test_file.read_text()))
        return
    print_tested(folder, tested)


def tune_with(
    evaluator: Evaluator,
    config: RunConfig,
    folder: RunFolder,
    view: View,
    plan: Plan,
    *,
    against: Any = "best",
    seeds: int = 1,
    steps: int | None = None,
) -> list[Tested]:
    """Tune a plan and its uniform opponents, write `test.json`, the adapter and the report.

    Raises:
        BadInput: the evaluator cannot tune.
    """
    from qra_search.cli.search import write_report
    from qra_search.runs.final_test import compare_on_test, opponents

    common.require_tuning(evaluator, config)
    result = folder.result()
    limit = max([*result.memory_budgets[-1:], result.space.memory_bytes(plan)])
    others = opponents(result.space, limit, against, result)
    view.say(f"tuning the plan{f' and {len(others)} uniform plans' if others else ''}, {seeds} seed(s) each")

    def told(tested: Tested, done: int, total: int) -> None:
        view.say(f"[{done}/{total}] {tested_text(tested, result.space)}")

    try:
        tested = compare_on_test(
            evaluator, plan, others, folder.test_file, limit=limit, seeds=range(seeds), steps=steps,
            rows=config.training.test_rows, save=folder.path, progress=view.progress, told=told,
        )  # fmt: skip
    except KeyboardInterrupt:
        view.say("What was tuned so far is kept: give the same command again to go on.")
        raise
    write_report(folder)
    return tested


def print_tested(folder: RunFolder, tested: list[Tested]) -> None:
    """The finding, the table of the comparison, and what to do next."""
    from qra_search.report import words
    from qra_search.report.terminal.tables import next_steps, tested_table

    console = common.stdout()
    result = folder.result()
    console.print(f"\n[bold]{words.headline(words.finding(result, tested))}[/]\n")
    console.print(tested_table(tested, result.space))
    console.print()
    next_steps(console, folder)


def tested_text(tested: Tested, space: SearchSpace) -> str:
    """A tuned plan in one line."""
    from qra_search.report import words
    from qra_search.space.memory import format_bytes

    metrics = "".join(f", {name.replace('_', ' ')} {value:.4g}" for name, value in tested.metrics.items())
    return (
        f"{words.plan_name(tested.plan, space)}: test loss {words.loss_text(tested.loss, tested.loss_error)}{metrics}, "
        f"{format_bytes(tested.memory_bytes)}, {words.duration(tested.seconds)}"
    )


def _chosen(folder: RunFolder, plan: Path | None, memory: str | None) -> Plan:
    from qra_search.space.sizes import size_in

    if plan is not None and memory is not None:
        raise BadInput("--plan and --memory both choose a plan: give one of them")
    result = folder.result()
    if plan is not None:
        return common.read_plan(result.space, plan)
    if memory is None:
        return folder.plan()
    best = result.best(size_in(result.space, memory))
    if best is None:
        raise BadInput(f"no plan of {folder.path} fits {memory}: search with this budget first")
    return best.plan
