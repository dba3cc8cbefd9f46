"""`qra demo`: the whole path on a small real model, with nothing to prepare."""

from __future__ import annotations

from pathlib import Path
from textwrap import indent
from typing import Annotated, Any

from qra_search.app.baselines import can_shuffle
from qra_search.app.cli import common
from qra_search.app.cli.common import option
from qra_search.app.cli.finetune import print_comparison
from qra_search.app.config import make_config, read_pairs
from qra_search.app.evaluator import render_row
from qra_search.app.folder import RunFolder
from qra_search.app.report.finding import summarize_run
from qra_search.app.report.live import make_listener
from qra_search.app.run import Run

DEMO_SETTINGS: dict[str, Any] = {
    "model": {"name": "smollm2"},
    "task": {"name": "arithmetic", "options": {"kinds": ["total"], "digits": [1, 2]}},
    "quantization": {
        "backend": {"name": "trellis", "L": 10},
        "embeddings": 1.5,
        "calibration_tokens": 4096,
    },
    "space": {"granularity": "module", "bits": [1, 1.5, 2], "ranks": [4, 8, 16]},
    "training": {"batch_size": 8, "learning_rate": 2.5e-3},
    "evaluation": {"steps": 12, "validation_rows": 32},
    "finetune": {"steps": 24, "test_rows": 64},
    "search": {"evaluations": 16, "memory": ["25MiB"]},
}
"""Settings of the demo: sums that a model of 135M learns in a minute or two, in bytes midway between uniform plans of 1
and of 1.5 bits. States of 10 bits quantize four times as fast as the usual 12. The codes are chosen on the tokens that
the plan is measured on, so one pass serves both."""

STEPS_TEXT = """\
qra demo: {model} on the task {task}, within {memory}.
1. measure how sensitive each linear is, by one short probe of it
2. plan: choose bits and rank of every linear, exactly, by these sensitivities
3. tune the plan, the best uniform plan that fits, 16-bit LoRA, and the plan shuffled over linears of one shape; compare
   them on test data"""


def demo(
    out: Annotated[Path, option("--out -o RUN", "Folder of the run.", show_default=True)] = Path("runs/demo"),
    sets: common.SetOption = None,
    as_json: common.JsonOption = False,
) -> None:
    """Plan, tune and compare on SmolLM2-135M and made-up word problems.

    Takes about four minutes on two cores. Chooses a plan of 25 MiB, tunes it, and compares it on test data with the
    best uniform plan that fits, with the plan itself shuffled over linears of the same shape, and with 16-bit LoRA. A
    demo that was interrupted is resumed.

    [bold]Example[/]

        qra demo --out runs/demo
    """
    config = make_config(DEMO_SETTINGS, read_pairs(sets), source="options")
    view = make_listener(not as_json)
    folder = RunFolder(out)
    folder.check_can_begin(config, resume=folder.has_run)  # before much is said
    if folder.has_run:
        view.say(f"Resuming the demo in {out}.")
    memory = ", ".join(map(str, config.search.memory))
    view.say(STEPS_TEXT.format(model=config.model.name, task=config.task.name, memory=memory))
    with Run(out, config) as run:
        with view:
            row = "".join(text for text, _ in render_row(run.evaluator(view)))
        if row:
            view.say("A problem of the task, with its answer:\n" + indent(row, "    "))
        result = run.make_plan(progress=view)
        view.say(f"Planned. {summarize_run(result)}")
        comparison = run.finetune(with_16_bit=True, progress=view)
        if can_shuffle(result.space, run.plan):
            comparison = run.finetune(against="shuffled", progress=view)
        if as_json:
            common.print_json({"folder": str(out), "comparison": comparison.to_dict(), **result.to_dict()})
        else:
            print_comparison(run, comparison)
