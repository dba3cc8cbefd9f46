"""`qra evaluate`: a tuned run scored by lm-evaluation-harness, beside uniform plans and the model as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, cast

from rich.markup import escape

from qra_search import plugins
from qra_search.cli import common
from qra_search.cli.common import option
from qra_search.errors import BadInput, bad_input
from qra_search.files import read_json, write_json
from qra_search.report.formatting import plan_name
from qra_search.report.table import TextTable
from qra_search.report.terminal.live import make_view
from qra_search.runs.comparison import Against
from qra_search.runs.folder import RunFolder
from qra_search.space.memory import format_bytes
from qra_search.space.space import Plan, SearchSpace
from qra_search.workflow.run import open_run

FORMAT = "qra-evaluate/1"
FILE = "evaluate.json"


def evaluate(
    run: common.Run,
    tasks: Annotated[str, option("--tasks T,T", "Tasks of the harness: arc_easy,gsm8k.")] = "",
    data: Annotated[Path | None, option("--data PATH", "Folder with TASK_test.jsonl and TASK_train.jsonl.")] = None,
    against: common.Against = "none",
    limit: Annotated[int | None, option("--limit N", "Only the first N rows.", min=1)] = None,
    shots: Annotated[int | None, option("--shots N", "Examples in the prompt; default: the task's.", min=0)] = None,
    device: Annotated[str | None, option("--device D", "auto (the default), cpu, cuda or cuda:1.")] = None,
    batch_size: Annotated[int, option("--batch N", "Rows at once.", show_default=True, min=1)] = 8,
    as_json: common.Json = False,
) -> None:
    """Score a tuned run by lm-evaluation-harness, an optional extra.

    Writes evaluate.json into the run's folder. With --against, uniform plans and the model as it was are scored too.
    Without --data the harness fetches its tasks' data from the hub.

    [bold]Example[/]

        qra evaluate runs/a --tasks arc_easy,gsm8k --data my-data --against best
    """
    names = [name.strip() for name in tasks.split(",") if name.strip()]
    if not names:
        raise BadInput("--tasks is missing: name some of lm-evaluation-harness, such as arc_easy,gsm8k")
    with bad_input():
        folder = RunFolder(run).check()
        plan = folder.plan()
        if not folder.adapter.is_dir():
            raise BadInput(f"{run} holds no tuned plan: run `qra finetune {run}` first")
        settings = {"data": None if data is None else str(data), "limit": limit, "shots": shots}
        harness = plugins.load("harnesses", "lm_eval")(
            names, data=data, limit=limit, batch_size=batch_size, shots=shots, device=device or "auto"
        )
    view = make_view(common.stderr(), quiet=as_json)
    rows: list[dict[str, Any]] = []

    def keep(role: str, plan: Plan | None, size: int | None, scores: list[Any]) -> None:
        rows.append(
            {
                "role": role,
                "plan": None if plan is None else plan.to_dict(),
                "memory_bytes": size,
                "scores": [vars(score) for score in scores],
            }
        )
        write_json(folder.path / FILE, {"format": FORMAT, "tasks": names, **settings, "rows": rows})

    with view, bad_input(), open_run(run) as run_of:
        view.say(f"scoring the tuned plan on {', '.join(names)}")
        space = folder.result().space
        keep("found", plan, space.memory_bytes(plan), harness.tuned(folder.path))
        for other, place in run_of.baselines(cast(Against, against), device=device, progress=view):
            view.say(f"scoring {place.name}")
            keep("uniform", other, space.memory_bytes(other), harness.tuned(place))
        if against != "none":
            view.say("scoring the model as it was")
            model, trust = read_json(folder.plan_file)["model"], folder.trusts_code
            keep("untuned", None, None, harness.untuned(model, trust_remote_code=trust))
    if as_json:
        common.emit(read_json(folder.path / FILE))
        return
    _print(rows, space)
    common.stdout().print(f"\nWritten to [bold]{escape(str(folder.path / FILE))}[/]", soft_wrap=True)


def _print(rows: list[dict[str, Any]], space: SearchSpace) -> None:
    heads = [f"{s['task']} {s['metric']}" for s in rows[0]["scores"]]
    cells = []
    for row in rows:
        name = "the model as it was"
        if row["plan"] is not None:
            name = ("found: " if row["role"] == "found" else "") + plan_name(Plan.from_dict(row["plan"]), space)
        size = "" if row["memory_bytes"] is None else format_bytes(row["memory_bytes"])
        cells.append((name, size, *map(_score_text, row["scores"])))
    counts = ", ".join(f"{task} {n}" for task, n in {s["task"]: s["rows"] for s in rows[0]["scores"]}.items())
    common.stdout().print(TextTable("", ("model", "size", *heads), cells, notes=[f"Rows: {counts}"]))


def _score_text(score: dict[str, Any]) -> str:
    error = "" if score["stderr"] is None else f" ± {score['stderr']:.3f}"
    return f"{score['value']:.3f}{error}"
