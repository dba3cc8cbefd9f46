"""Tables of the study and the README's picture from raw lines alone: `results/study/*.md`, those of `docs/study.md`.

    python -m benchmarks.study.tables

What is compared with what, and how intervals are taken: `comparison.py`.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from benchmarks.common import read
from benchmarks.study import answers_table, protocol
from benchmarks.study.budgets_table import searched_table, trellis_table
from benchmarks.study.comparison import CALIBRATED, SERIES, UNCALIBRATED, Comparison, brief
from benchmarks.study.intervals import table_of

DOCS = Path(__file__).parents[2] / "docs"
FIGURE = DOCS / "images" / "answers.svg"
PAGE = DOCS / "study.md"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=protocol.RESULTS)
    results: Path = parser.parse_args().results
    if not (results / "final.jsonl").is_file():
        parser.error(f"{results} has no final.jsonl: give the study's")
    compared = [c for c in (Comparison(results, task) for task in protocol.TASKS) if c.rows]
    for c in compared:
        (results / f"{c.task}.md").write_text(c.text())
        print(c.text())
    main_task, *others = compared
    eight, low = (Comparison(results, main_task.task, series) for series in SERIES)
    sixteen = main_task.sixteen.name if main_task.sixteen is not None else ""
    usual = {CALIBRATED: "best calibrated uniform plan", UNCALIBRATED: "best uncalibrated"}
    same = {"gptq 4-bit r8, embeddings 8-bit": "uniform 4-bit, the same embeddings"}
    below = {CALIBRATED: usual[CALIBRATED], "hqq 3-bit r8": "hqq 3-bit r8", sixteen: sixteen}
    answers = read(results / answers_table.FILE)
    tables = {
        "embeddings": apart(eight, usual | same | {sixteen: sixteen}),
        "low": apart(low, below | {"sensitivity-module-0-low": "sensitivities"}),
        "against": [main_task.together, "", *main_task.against_uniform()],
        "found": searched_table(read(results / "budgets.jsonl")),
        "trellis": trellis_table(read(results / "budgets.jsonl")),
        "searches": main_task.against_searches(),
        "tasks": other_tasks(others),
        **{re.sub(r"\W", "_", name): answers_table.table(answers, name) for name in {d["model"] for d in answers}},
        "chosen": answers_table.chosen(answers, "gemma-270m"),
    }
    for page in (PAGE, results / "details.md"):
        fill(page, tables)
    FIGURE.write_text(answers_table.draw(answers))


def fill(page: Path, tables: dict[str, list[str]]) -> None:
    """Put tables into a page, each between `<!-- made: NAME -->` and `<!-- end -->`."""
    text = page.read_text()
    for name, table in tables.items():
        start, before, rest = text.partition(f"<!-- made: {name} -->\n")
        if before:
            _, end, after = rest.partition("<!-- end -->")
            text = start + before + "\n" + "\n".join(table) + "\n\n" + end + after
    page.write_text(text)


def apart(c: Comparison, rivals: dict[str, str]) -> list[str]:
    """What the plans of one series win, by the rivals' names and what they are called there."""
    return [c.together, "", *table_of(["budget", "MiB", "test loss", *rivals.values()], brief(c, list(rivals)))]


def other_tasks(compared: list[Comparison]) -> list[str]:
    """What the plans found on each other task win against the closest rivals, in one table."""
    rivals = {
        CALIBRATED: "best calibrated uniform plan",
        "nf4 4-bit r8": "nf4 4-bit r8",
        "16-bit r8": "16-bit r8",
        "gsm8k's qra-module-0": "plan of GSM8K",
        "sensitivity-module-0": "sensitivities",
    }
    body = [[c.task, budget, *rest] for c in compared for budget, _, *rest in brief(c, list(rivals))]
    return table_of(["task", "budget", "test loss", *rivals.values()], body)


if __name__ == "__main__":
    main()
