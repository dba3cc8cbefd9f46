"""`qra finetune`: the plan of a run tuned in full, and compared with uniform plans on test data."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any, cast

from qra_search.cli import common
from qra_search.cli.common import option
from qra_search.errors import bad_input
from qra_search.integrations.hub import check_hub, push_tuned
from qra_search.report.finding import finding, headline
from qra_search.report.tables import tested_table
from qra_search.report.terminal.live import make_view
from qra_search.report.terminal.tables import next_steps, print_samples
from qra_search.runs.comparison import Against
from qra_search.runs.folder import RunFolder
from qra_search.workflow.finetune import Finetuned, check_reloads
from qra_search.workflow.run import open_run


def finetune(
    run: common.Run,
    plan: Annotated[
        str | None, option("--plan FILE|uniform2r4", "Another plan than the run's own plan.json, or a uniform one.")
    ] = None,
    memory: Annotated[
        str | None, option("--memory SIZE", "Tune the best plan within this budget; default: the run's largest.")
    ] = None,
    steps: Annotated[
        int | None, option("--steps N", "Optimizer steps; default: finetune.steps of the run.", min=1)
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
        option("--set FIELD=VALUE", "Any setting of training or finetune, such as training.schedule=cosine."),
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
    common.check_unit(memory)
    changes: dict[str, Any] = dict(map(common.pair, sets or []))
    flags = {"finetune.evaluate_every": evaluate_every, "finetune.patience": patience}
    changes = {name: value for name, value in flags.items() if value is not None} | changes
    if push_to_hub is not None:
        with bad_input():
            check_hub(push_to_hub)
    view = make_view(common.stderr(), quiet=as_json)
    with open_run(run) as opened:
        done = opened.finetune(
            plan, memory=memory, steps=steps, epochs=epochs, seeds=seeds, against=cast(Against, against),
            device=device, settings=changes, track=track or (), progress=view, check=False,
        )  # fmt: skip
    if as_json:
        common.emit(json.loads(done.folder.test_file.read_text()))
    else:
        print_tested(opened.folder, done)
    check_reloads(done)
    if push_to_hub is not None:
        common.stderr().print(f"uploaded: {push_tuned(done.folder, push_to_hub)}", soft_wrap=True)


def print_tested(folder: RunFolder, done: Finetuned, *, more: Sequence[tuple[str, str]] = ()) -> None:
    """The finding, the table of the comparison, a few answers, and what to do next.

    Args:
        folder: of the run.
        more: further steps, each in words and as a command.
    """
    console, tested = common.stdout(), list(done.tested)
    found = finding(done.result, tested, done.limit)
    console.print(f"\n[bold]{headline(found)}[/]\n")
    console.print(tested_table(tested, done.result.space))
    if rows := max((len(t.row_tokens) for t in tested), default=0):
        base = "Lower by: how much the loss of the plan found is lower, as a share of the other's"
        console.print(f"\n{base}; 95% intervals from {rows} test rows.", style="dim")
    print_samples(console, tested)
    console.print()
    next_steps(console, folder, found, place=done.folder, more=more)
