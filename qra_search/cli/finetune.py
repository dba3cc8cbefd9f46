"""`qra finetune`: the plan of a run tuned in full, and compared with uniform plans on test data."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any, cast

from qra_search.cli import common
from qra_search.cli.common import option
from qra_search.config import RunConfig, make_config
from qra_search.errors import BadInput, bad_input
from qra_search.integrations.hub import check_hub, push_tuned
from qra_search.integrations.trackers import check_tracker
from qra_search.report.finding import finding, headline
from qra_search.report.tables import tested_table
from qra_search.report.terminal.live import make_view
from qra_search.report.terminal.tables import next_steps, print_samples
from qra_search.runs.comparison import Against, TestResult
from qra_search.runs.folder import RunFolder
from qra_search.space.budgets import uniform_in
from qra_search.space.space import Plan
from qra_search.workflow.evaluator import build_evaluator, on_device
from qra_search.workflow.finetune import check_reloads, chosen_plan, limit_of, place_of, training_changes, tune_with


def finetune(
    run: common.Run,
    plan: Annotated[
        str | None, option("--plan FILE|uniform2r4", "Another plan than the run's own plan.json, or a uniform one.")
    ] = None,
    memory: Annotated[
        str | None, option("--memory SIZE", "Tune the best plan within this budget; default: the run's largest.")
    ] = None,
    steps: Annotated[
        int | None, option("--steps N", "Optimizer steps; default: training.final_steps of the run.", min=1)
    ] = None,
    epochs: Annotated[float | None, option("--epochs N", "Passes over the rows to tune on, in place of steps.")] = None,
    evaluate_every: Annotated[
        int | None,
        option("--evaluate-every N", "Look at the validation loss every N steps, and keep the best adapters."),
    ] = None,
    patience: Annotated[
        int | None, option("--patience N", "End after N looks at the validation loss without a lower one.")
    ] = None,
    seeds: Annotated[
        int,
        option(
            "--seeds N",
            "Tune every plan with so many seeds, each on rows of its own, for intervals.",
            show_default=True,
            min=1,
        ),
    ] = 1,
    against: common.Against = "best",
    device: Annotated[str | None, option("--device D", "auto, cpu, cuda or cuda:1; default: the run's.")] = None,
    sets: Annotated[
        list[str] | None,
        option("--set training.FIELD=VALUE", "Any setting of training, such as training.schedule=cosine."),
    ] = None,
    track: common.Track = None,
    push_to_hub: common.Push = None,
    as_json: common.Json = False,
) -> None:
    """Tune the plan of a run in full, save the adapter, and test it against uniform plans.

    Writes adapter/ (an ordinary PEFT adapter), plan.json and test.json into the run's folder, and the report anew; of
    another budget than the run's largest into a folder of its own in it. If it is broken off, the same command goes on
    from the last checkpoint.

    [bold]Example[/]

        qra finetune runs/a --against all --epochs 3 --evaluate-every 50
    """
    if steps is not None and epochs is not None:
        raise BadInput("--steps and --epochs both say how long to tune: give one of them")
    if plan is not None and memory is not None:
        raise BadInput("--plan and --memory both choose a plan: give one of them")
    common.check_unit(memory)
    with bad_input():
        folder = RunFolder(run).check()
        config = on_device(folder.config(), device)
        flags = {"final_epochs": epochs, "evaluate_every": evaluate_every, "patience": patience}
        config = with_training(config, {k: v for k, v in flags.items() if v is not None}, sets or [])
        training_changes(folder.config(), config)
        for spec in track or []:
            check_tracker(spec)
        if push_to_hub is not None:
            check_hub(push_to_hub)
        chosen = chosen_plan(folder, memory) if plan is None else _plan(folder, plan)
    view = make_view(common.stderr(), quiet=as_json)
    with view, closing(build_evaluator(config, view.progress)) as evaluator:
        tested = tune_with(
            evaluator, config, folder, view, chosen, memory=memory, against=cast(Against, against), seeds=seeds,
            steps=steps, track=track or (),
        )  # fmt: skip
    result = folder.result()
    limit = limit_of(result, chosen, memory)
    place = place_of(folder, result, limit, memory)
    if as_json:
        common.emit(json.loads(place.test_file.read_text()))
    else:
        print_tested(folder, tested, limit, place)
    check_reloads(place, tested)
    if push_to_hub is not None:
        common.stderr().print(f"uploaded: {push_tuned(place, push_to_hub)}", soft_wrap=True)


def with_training(config: RunConfig, fields: dict[str, Any], sets: list[str]) -> RunConfig:
    """The config with other settings of training; those of `sets` are `training.FIELD=VALUE`."""
    given = {f"training.{name}": value for name, value in fields.items()} | dict(map(common.pair, sets))
    return make_config(config.model_dump(mode="json"), given, source="options")


def print_tested(
    folder: RunFolder, tested: list[TestResult], limit: int, place: RunFolder, *, more: Sequence[tuple[str, str]] = ()
) -> None:
    """The finding, the table of the comparison, a few answers, and what to do next.

    Args:
        limit: bytes that the comparison keeps to.
        place: where the tuned plan is kept.
        more: further steps, each in words and as a command.
    """
    console = common.stdout()
    result = folder.result()
    found = finding(result, tested, limit)
    console.print(f"\n[bold]{headline(found)}[/]\n")
    console.print(tested_table(tested, result.space))
    if rows := max((len(t.row_tokens) for t in tested), default=0):
        base = "Lower by: how much the loss of the plan found is lower, as a share of the other's"
        console.print(f"\n{base}; 95% intervals from {rows} test rows.", style="dim")
    print_samples(console, tested)
    console.print()
    next_steps(console, folder, found, place=place, more=more)


def _plan(folder: RunFolder, text: str) -> Plan:
    """The plan of a file or a run's folder, or a uniform one by name."""
    space = folder.result().space
    return uniform_in(space, text) or common.read_plan(space, Path(text))
