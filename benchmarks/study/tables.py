"""Tables and the figure of the study from its raw lines alone: `results/study/*.md` and those in `docs/study.md`.

    python benchmarks/study/tables.py

How differences and their intervals are taken: `comparison.py`.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path

import figure
import numpy as np
import protocol
from budgets_table import searched_table
from comparison import (
    CALIBRATED,
    OURS,
    SERIES,
    UNCALIBRATED,
    Comparison,
    Row,
    brief,
    change,
    interval,
    lines,
    percent,
    read,
    shown,
)
from lines import RESULTS, table_of
from scipy.stats import spearmanr

DOCS = Path(__file__).parents[2] / "docs"
FIGURE = DOCS / "images" / "study.svg"
PAGE = DOCS / "study.md"
INITS = ("loftq", "pissa", "eva", "adalora")
"""In the names of the rows of other initialisations; the figure leaves them out."""


def machines(first: list[Row], second: list[Row]) -> list[str]:
    """The uniform plans that were tuned on two machines, the same seeds on both."""
    table = ["| plan | seeds | one machine | another | change |", "|---|---|---|---|---|"]
    for here, r in both(first, second):
        seeds = sorted(set(r.losses) & set(here.losses))
        if seeds and r.budget is None:
            one, other = (float(np.mean([x.losses[s] for s in seeds])) for x in (here, r))
            table.append(f"| {r.name} | {len(seeds)} | {one:.4f} | {other:.4f} | {percent(other / one - 1)} |")
    return table


def found_again(here: Comparison, others: dict[str, list[Row]]) -> list[str]:
    """The plans that a search found, beside those that it found elsewhere, all tuned on one machine."""
    table = ["| budget | found | found again | loss | change | the latter, against the best uniform plan |"]
    table.append("|---" * 6 + "|")
    for where, rows in others.items():
        for mine, r in both(here.rows, rows):
            rival = next((b for a, b, label in here.rivals if a is mine and label == CALIBRATED), None)
            if rival is not None:
                cells = [interval(change(r, other, here.level)) for other in (mine, rival)]
                table.append(f"| {mine.budget} | {mine.loss:.4f} | {where} | {r.loss:.4f} | {' | '.join(cells)} |")
    return table


def both(first: list[Row], second: list[Row]) -> list[tuple[Row, Row]]:
    """The rows of the same name in both."""
    here = {r.name: r for r in first}
    return [(here[r.name], r) for r in second if r.name in here]


def alike(plans: list[dict], again: list[dict], before: list[dict], budgets: list[str]) -> list[str]:
    """How many linears have the same bits in two plans for one budget, and how their bits correlate in rank.

    Args:
        plans: lines of every search's plans.
        again: those of the searches that were repeated on another machine.
        before: those of an earlier version.
        budgets: the columns.
    """
    here, there, then = ({(d["search"], d["budget"]): np.array(protocol.expanded(d).bits) for d in some}
                         for some in (plans, again, before))  # fmt: skip
    mine, sensitivities = "gsm8k-qra-module-0", "gsm8k-sensitivity-module-0"
    pairs = [
        ("the search, on another machine", mine, (there, mine)),
        ("the sensitivities, on another machine", sensitivities, (there, sensitivities)),
        ("the search, by an earlier version", mine, (then, mine)),
        ("the search and the sensitivities", mine, (here, sensitivities)),
        ("the search with another seed", mine, (here, "gsm8k-qra-module-1")),
        *((f"the search on {task}", mine, (here, f"{task}-qra-module-0")) for task in protocol.TASKS[1:]),
        *((f"{name}'s search", mine, (here, f"gsm8k-{name}-module-0")) for name in ("nsga2", "autoqra", "qr_adaptor")),
    ]
    table = [f"| with what | {' | '.join(budgets)} |", "|---" * (len(budgets) + 1) + "|"]
    for label, one, (where, other) in pairs:
        cells = []
        for budget in budgets:
            a, b = here.get((one, budget)), where.get((other, budget))
            if a is None or b is None:
                cells.append("–")
                continue
            uniform = len(set(a)) == 1 or len(set(b)) == 1  # nothing to correlate with
            cells.append(f"{(a == b).sum()}" + ("" if uniform else f", {spearmanr(a, b)[0]:.2f}"))
        if set(cells) != {"–"}:
            table.append(f"| {label} | {' | '.join(cells)} |")
    return table


def fill(page: Path, tables: dict[str, list[str]]) -> None:
    """Put tables into a page, each between `<!-- made: NAME -->` and `<!-- end -->`."""
    text = page.read_text()
    for name, table in tables.items():
        start, before, rest = text.partition(f"<!-- made: {name} -->\n")
        if before:
            _, end, after = rest.partition("<!-- end -->")
            text = start + before + "\n" + "\n".join(table) + "\n\n" + end + after
    page.write_text(text)


def fitted(results: Path, task: str) -> list[str]:
    """What plans that a search found win over those of the sensitivities alone: after tunings as long as an evaluation,
    with the seed that the search evaluated with and with others, and after the final tuning."""
    evaluated = results / f"final-{protocol.EVALUATION.steps}.jsonl"
    short, full = ({r.name: r for r in read(path, task)} for path in (evaluated, results / "final.jsonl"))
    pairs = [(name, name.replace("qra", "sensitivity", 1)) for name in full if name.startswith(OURS)]
    pairs = [pair for pair in pairs if set(pair) <= set(short) & set(full)]
    ways = {
        f"{protocol.EVALUATION.steps} steps, the search's seed": (short, [0]),
        f"{protocol.EVALUATION.steps} steps, other seeds": (short, [s for s in protocol.SEEDS if s]),
        f"{protocol.FINETUNE.steps} steps": (full, list(protocol.SEEDS)),
    }
    level = 1 - 0.05 / max(1, len(pairs) * len(ways))
    return table_of(
        ["budget", *ways],
        (
            [name.partition(" @ ")[2]]
            + [interval(change(rows[name], rows[rival], level, seeds=seeds)) for rows, seeds in ways.values()]
            for name, rival in pairs
        ),
    )


def longer(results: Path, task: str, steps: int, reference: str) -> list[str]:
    """Plans after the final tuning and after `steps`, with the same seeds; how they then differ from one of them."""
    full, rows = ({r.name: r for r in read(results / name, task)} for name in ("final.jsonl", f"final-{steps}.jsonl"))
    if reference not in rows:
        return []
    level = 1 - 0.05 / max(1, len(rows) - 1)
    body = []
    for name, row in rows.items():
        before = [full[name].losses[seed] for seed in row.losses if name in full and seed in full[name].losses]
        cells = [f"{row.bytes / 2**20:.1f}", shown(float(np.mean(before)) if before else None), f"{row.loss:.4f}"]
        against = "–" if name == reference else interval(change(row, rows[reference], level))
        body.append([name, *cells, against])
    settled = f"{protocol.FINETUNE.steps} steps"
    return table_of(["plan", "MiB", settled, f"{steps} steps", f"the latter, against {reference}"], body)


def beginnings(pace: list[dict], rows: list[Row]) -> list[str]:
    """Uniform 4-bit plans of rank 8, by where their adapters begin: validation loss by rate, test loss at the best."""
    found: dict[str, dict[float, float]] = defaultdict(dict)
    for d in (d for d in pace if (d["bits"], d["rank"], d["alpha"]) == (4, 8, 16)):
        found[d.get("init", "default")][d["learning_rate"]] = d["validation_loss"]
    table = ["| beginning | validation loss at each rate | test loss at the best | seeds |", "|---|---|---|---|"]
    named = {r.name: r for r in rows}
    for init, losses in found.items():
        best = min(losses, key=losses.__getitem__)
        own = best if best != protocol.TRAINING.learning_rate else None
        row = named.get(protocol.Uniform(protocol.BACKEND, 4, 8, init, rate=own).name)
        cells = (f"{loss:.3f} at {rate:g}" for rate, loss in sorted(losses.items()))
        shown_best = f"{losses[best]:.3f} at {best:g}"
        tested = ["–", "–"] if row is None else [f"{row.loss:.4f}", str(len(row.losses))]
        by_rate = ", ".join(cells).replace(shown_best, f"**{shown_best}**")
        table.append(f"| {init} | {by_rate} | {' | '.join(tested)} |")
    return table


def calibration(found: list[dict]) -> list[str]:
    """Loss of uniform plans by how many rows the quantizer was calibrated on, untuned and after an evaluation."""
    losses = {(d["quantizer_rows"], d["bits"]): d for d in found if "quantizer_rows" in d}
    widths = sorted({bits for _, bits in losses})
    table = [
        f"| calibration rows | {' | '.join(f'{bits} bits' for bits in widths)} |",
        "|---" * (len(widths) + 1) + "|",
    ]
    for rows in sorted({rows for rows, _ in losses}):
        cells = []
        for bits in widths:
            d = losses.get((rows, bits))
            cells.append("–" if d is None else f"{d['untuned']:.3f}, {np.mean(d['tuned']):.3f}")
        table.append(f"| {rows} | {' | '.join(cells)} |")
    return table


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    if not (options.results / "final.jsonl").is_file():
        parser.error(f"{options.results} has no final.jsonl: give the folder that final.py wrote it to")
    compared = [Comparison(options.results, task) for task in protocol.TASKS]
    compared = [c for c in compared if c.rows]
    for c in compared:
        (options.results / f"{c.task}.md").write_text(c.text())
        print(c.text())
    main_task, *others = compared
    second = options.results / "second-machine"
    again, refound = read(second / "final.jsonl", main_task.task), lines(second / "plans.jsonl")
    earlier = options.results / "one-start"
    eight, low = (Comparison(options.results, main_task.task, series) for series in SERIES)
    usual = {CALIBRATED: "best calibrated uniform plan", UNCALIBRATED: "best uncalibrated"}
    sixteen = main_task.sixteen.name if main_task.sixteen is not None else ""
    tables = {
        "embeddings": apart(
            eight,
            usual | {"gptq 4-bit r8, embeddings 8-bit": "uniform 4-bit, the same embeddings"} | {sixteen: sixteen},
        ),
        "low": apart(
            low,
            {CALIBRATED: usual[CALIBRATED], "hqq 3-bit r8": "hqq 3-bit r8", sixteen: sixteen}
            | {"sensitivity-module-0-low": "sensitivities"},
        ),
        "against": [main_task.together, "", *main_task.against_uniform()],
        "found": searched_table(lines(options.results / "budgets.jsonl")),
        "searches": main_task.against_searches(),
        "tasks": other_tasks(others),
        "beginnings": beginnings(lines(options.results / "pace.jsonl"), main_task.rows),
        "calibration": calibration(lines(options.results / "calibration.jsonl")),
        "fitted": fitted(options.results, main_task.task),
        "longer": longer(options.results, main_task.task, protocol.LONGER, "gptq 3-bit r8"),
        "machines": machines(main_task.rows, again),
        "alike": alike(
            [d for c in compared for d in c.plans],
            refound,
            lines(earlier / "plans.jsonl"),
            [str(r.budget) for r in main_task.ours],
        ),
        "found_again": found_again(
            main_task,
            {
                "on another machine": again,
                "by an earlier version": read(earlier / "final.jsonl", main_task.task),
            },
        ),
    }
    for page in (PAGE, options.results / "details.md"):
        fill(page, tables)
    plain = [r for r in main_task.uniform if not any(f" {init}" in r.name for init in INITS)]
    found = {r.name for r in main_task.ours + low.ours}
    drawn = [r for r in main_task.rows if r.name in found or r.embeddings == 8 or r in plain]
    FIGURE.write_text(figure.draw(drawn, main_task.sixteen))


if __name__ == "__main__":
    main()
