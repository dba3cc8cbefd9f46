"""How small may the model be? The curve of `qra finetune --against ladder`: right answers over memory, and its minutes.

    python -m benchmarks.study.ladder --data DIR --task banking77 --run FOLDER
    python -m benchmarks.study.ladder --table

A line for each rung that was tuned, and one for the ladder: how many rungs there are, how many of them were tuned until
the curve was known to be flat, and the seconds of these, without encoding. Resumable, as any run.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import MIB, RESULTS, append_lines, find_commit, find_cpu_name, read_lines
from benchmarks.study.intervals import make_markdown_table
from qra_search.app.baselines import list_rungs
from qra_search.app.config import make_config
from qra_search.app.report.formatting import format_plan
from qra_search.app.run import Run

OUT = RESULTS / "study" / "ladder.jsonl"
BUDGET = "34.6MiB"
RATE, BATCH_SIZE, TEST_ROWS = 0.004, 8, 256


def main() -> None:
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="folder with the task's files")
    parser.add_argument("--task", default="banking77")
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--run", type=Path, help="folder of the run; default: runs/ladder-TASK")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument(
        "--table", action="store_true", help="print the lines that there are, and measure nothing"
    )
    options = parser.parse_args()
    if not options.table:
        if options.data is None:
            parser.error("--data is needed")
        measure(options)
    lines = read_lines(options.out)
    for task in dict.fromkeys(line["task"] for line in lines):
        print(task, *make_table([line for line in lines if line["task"] == task]), sep="\n")


def measure(options: Namespace) -> None:
    torch.set_num_threads(options.threads)
    config = make_config(
        {
            "model": {"name": "smollm2"},
            "task": {"name": options.task, "data": options.data},
            "search": {"memory": [BUDGET]},
            "training": {"learning_rate": RATE, "batch_size": BATCH_SIZE},
            "finetune": {
                "steps": options.steps,
                "test_rows": TEST_ROWS,
                "scored_rows": TEST_ROWS,
                "sample_answers": 0,
            },
        }
    )
    with Run(options.run or Path(f"runs/ladder-{options.task}"), config) as run:
        result = run.make_plan(progress=True)
        comparison = run.finetune(against="ladder", progress=True)
        rungs = list_rungs(result.space, run.plan, result)
    tuned = [t for t in comparison.tunings if t.plan in rungs]
    machine = {"commit": find_commit(), "cpu": find_cpu_name(), "threads": options.threads}
    shared = {"task": options.task, "steps": options.steps, "learning_rate": RATE}
    metric = comparison.judging_metric
    for own in tuned:
        rung = {
            "plan": format_plan(own.plan, result.space),
            "memory_bytes": own.memory_bytes,
            "test_loss": round(own.loss, 4),
            "metric": metric,
            "score": round(own.metrics[metric], 4) if metric else None,
            "interval": own.compute_metric_interval(metric) if metric else None,
            "scored": TEST_ROWS,
            "deployed": own is comparison.deployed,
            "seconds": round(own.seconds, 1),
        }
        append_lines(options.out, {**shared, **rung, **machine})
    ladder = {
        "rungs": len(rungs),
        "tuned": len(tuned),
        "seconds": round(sum(t.seconds for t in tuned), 1),
        "seconds_of_all": round(sum(t.seconds for t in tuned) / len(tuned) * len(rungs), 1),
    }
    append_lines(options.out, {**shared, **ladder, **machine})


def make_table(lines: list[dict[str, Any]]) -> list[str]:
    """The rungs of a task, cheapest first."""
    rungs = sorted((line for line in lines if "plan" in line), key=lambda line: line["memory_bytes"])
    body = []
    for line in rungs:
        low, high = line["interval"] or (line["score"],) * 2
        share = f"{line['score']:.1%} ({low:.0%} to {high:.0%})" if line["score"] is not None else ""
        mark = "yes" if line["deployed"] else ""
        size = f"{line['memory_bytes'] / MIB:.1f}"
        body.append([line["plan"], size, share, f"{line['test_loss']:.4f}", mark])
    found = [
        f"{line['tuned']} of {line['rungs']} rungs were tuned, in {line['seconds'] / 60:.0f} minutes without encoding; "
        f"all would have taken {line['seconds_of_all'] / 60:.0f}"
        for line in lines
        if "rungs" in line
    ]
    return [*make_markdown_table(["plan", "MiB", "right", "test loss", "deployed"], body), "", *found]


if __name__ == "__main__":
    main()
