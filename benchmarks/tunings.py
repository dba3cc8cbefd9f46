"""A table of real tunings of a small model: bits, ranks, learning rate and steps, one line a tuning, resumable.

    python -m benchmarks.tunings --data DIR
    python -m benchmarks.tunings --data DIR --task banking77 --count 10
    python -m benchmarks.tunings --out FOLDER/tunings.jsonl --pack
    python -m benchmarks.tunings --draw

The design was drawn once (`--draw`) and is committed: `results/tunings/design.jsonl`, in an order of which every
prefix covers the whole. A tuning that diverges is a row as any other. Seconds are of a tuning and its measurements;
loading the model and encoding what a plan asks for the first time are not among them. `--pack` puts the rows made so
far, and the sensitivities beside them, into the package (docs/table-of-tunings.md).
"""

from __future__ import annotations

import os
import time
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import qmc

from benchmarks.common import RESULTS, append_lines, find_commit, find_cpu_name, read_lines
from qra_eval.evaluators.quantized_lora import QuantizedLoRAEvaluator
from qra_eval.landscapes.tunings import DATA
from qra_search.allocate.solve import build_additive_table, solve_table
from qra_search.schemas import Plan, Sensitivities
from qra_search.space.memory import UNQUANTIZED_BITS
from qra_search.space.serialization import read_sensitivities, write_sensitivities
from qra_search.space.space import SearchSpace

FOLDER = RESULTS / "tunings"
TASKS = ("banking77", "restaurant8k")
BITS = (1, 1.5, 2, 3, 4, 16)
RANKS = (2, 8, 32)
RATES = (0.001, 0.002, 0.004, 0.008, 0.016)
STEPS = {30: 0.48, 120: 0.34, 480: 0.18}
"""Optimizer steps of 8 rows, and their shares of the tunings."""
KINDS = ("uniform", "sensitivities", "changed")
SEEDS = 3
TUNINGS, BLOCK = 192, 12
"""Tunings of a task, a multiple of the block; one of each block is made twice, with another seed."""
MAX_CHANGED = 1 / 3
VALIDATION_ROWS, TEST_ROWS = 128, 500


def draw_design(task: str) -> list[dict[str, Any]]:
    """The tunings of a task: a scrambled Sobol' sequence over everything that is varied, with its repetitions."""
    draws = qmc.Sobol(d=7, seed=TASKS.index(task)).random_base2(8)[:TUNINGS]
    design: list[dict[str, Any]] = []
    for number, draw in enumerate(draws):
        kind = _pick(KINDS, draw[0])
        line: dict[str, Any] = {"task": task, "kind": kind}
        if kind == "uniform":
            line["bits"] = _pick(BITS, draw[1])
        else:
            line["budget_bits"] = round(1 + 2 * draw[1], 3)
        if kind == "changed":
            line |= {"changed": round(MAX_CHANGED * (0.1 + 0.9 * draw[6]), 3), "change_seed": number}
        length = int(np.searchsorted(np.cumsum(list(STEPS.values())), draw[4]))
        line |= {
            "rank": _pick(RANKS, draw[2]),
            "learning_rate": _pick(RATES, draw[3]),
            "steps": list(STEPS)[length],
            "seed": _pick(range(SEEDS), draw[5]),
        }
        design.append(line)
        block, place = divmod(number, BLOCK)
        if place == BLOCK - 1:
            again = design[-BLOCK + block % BLOCK]
            design.append({**again, "seed": (again["seed"] + 1) % SEEDS})
    return design


def _pick(values: Any, draw: float) -> Any:
    """One of some values by a number from 0 to 1."""
    return values[min(int(draw * len(values)), len(values) - 1)]


def make_plan(space: SearchSpace, table: np.ndarray, line: dict[str, Any]) -> Plan:
    """The plan of a line of the design.

    Args:
        table: float (G, B, R), the additive table of the sensitivities.
    """
    rank = line["rank"]
    if line["kind"] == "uniform":
        plan = space.uniform(line["bits"], rank)
        assert plan is not None
        return plan
    low, high = (space.memory_bytes(plan) for bits in (1, 3) if (plan := space.uniform(bits, rank)))
    budget = low + int((high - low) * (line["budget_bits"] - 1) / 2)
    of_rank = np.full_like(table, np.inf)
    kept = space.ranks.index(rank)
    of_rank[:, :, kept] = table[:, :, kept]
    embeddings = [i for i, group in enumerate(space.groups) if group.is_embedding]
    of_rank[embeddings] = table[embeddings]
    plan = solve_table(space, of_rank, budget)
    return change_plan(space, plan, line) if line["kind"] == "changed" else plan


def change_plan(space: SearchSpace, plan: Plan, line: dict[str, Any]) -> Plan:
    """The plan with a share of its linears at widths below 16 bits and at ranks that are drawn at random."""
    generator = np.random.default_rng(line["change_seed"])
    names = [
        space.level(width).name for width in BITS if width < UNQUANTIZED_BITS
    ]  # half bits have names of text
    linears = [i for i, group in enumerate(space.groups) if not group.is_embedding]
    bits, ranks = list(plan.bits), list(plan.ranks)
    for i in generator.choice(linears, round(line["changed"] * len(linears)), replace=False):
        bits[i] = names[generator.integers(len(names))]
        ranks[i] = RANKS[generator.integers(len(RANKS))]
    return Plan(tuple(bits), tuple(ranks))


def make_evaluator(task: str, data: str) -> QuantizedLoRAEvaluator:
    """The evaluator of a task, whose space has every plan of the design."""
    return QuantizedLoRAEvaluator(
        {
            "model": {"name": "smollm2", "compute": "bfloat16"},
            "task": {"name": task, "data": data},
            "quantization": {"backend": "mixed-calibrated", "embeddings": list(BITS)},
            "space": {"bits": list(BITS), "ranks": list(RANKS)},
            "training": {"batch_size": 8},
            "evaluation": {"validation_rows": VALIDATION_ROWS},
            "finetune": {"test_rows": TEST_ROWS, "scored_rows": TEST_ROWS, "sample_answers": 0},
        }
    )


def measure(evaluator: QuantizedLoRAEvaluator, plan: Plan, line: dict[str, Any]) -> dict[str, Any]:
    """The figures of a tuning; without losses if it diverged."""
    quantized = evaluator.quantized_model
    quantized.settings = quantized.settings.model_copy(update={"learning_rate": line["learning_rate"]})
    evaluator.tuner.switcher.put_plan(plan, line["seed"])  # encodes what is asked for the first time
    start, processor_start = time.perf_counter(), time.process_time()
    trained_at = [start]

    def note_time(*_: Any) -> None:
        trained_at[0] = time.perf_counter()

    record = evaluator.tune(plan, seed=line["seed"], steps=line["steps"], on_step=note_time)
    figures: dict[str, Any] = {
        "memory_bytes": record.memory_bytes,
        "seconds": round(time.perf_counter() - start, 1),
        "train_seconds": round(trained_at[0] - start, 1),
        "processor_seconds": round(time.process_time() - processor_start, 1),
    }
    if record.failed:
        return {**figures, "failed": record.failed}
    assert record.validation_loss is not None
    metrics = record.metrics
    figures |= {
        "validation_loss": round(record.validation_loss, 5),
        "test_loss": round(record.test_loss, 5),
        "right": round(metrics["exact_match"] * TEST_ROWS),
        "answered": TEST_ROWS,
    }
    return figures | ({"f1": round(metrics["f1"], 5)} if "f1" in metrics else {})


def main() -> None:
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="folder with the tasks' files")
    parser.add_argument("--task", nargs="+", choices=TASKS, default=TASKS)
    parser.add_argument("--count", type=int, help="make at most so many tunings, then end")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--design", type=Path, default=FOLDER / "design.jsonl")
    parser.add_argument("--out", type=Path, default=FOLDER / "tunings.jsonl")
    parser.add_argument("--draw", action="store_true", help="write the design, and tune nothing")
    parser.add_argument(
        "--pack", action="store_true", help="copy the rows into the package, and tune nothing"
    )
    options = parser.parse_args()
    if options.pack:
        pack(options)
        return
    if options.draw:
        options.design.unlink(missing_ok=True)
        for pair in zip(*map(draw_design, TASKS), strict=True):
            append_lines(options.design, *pair)
        return
    if options.data is None:
        parser.error("--data is needed")
    make_rows(options)


def pack(options: Namespace) -> None:
    """Copy the rows and each task's sensitivities into the package."""
    rows = read_lines(options.out)
    DATA.mkdir(exist_ok=True)
    for task in {row["task"] for row in rows}:
        space, sensitivities, evaluator = read_sensitivities(
            options.out.parent / f"sensitivities-{task}.json"
        )
        write_sensitivities(DATA / f"sensitivities-{task}.json", space, sensitivities, evaluator)
    (DATA / "tunings.jsonl").unlink(missing_ok=True)
    append_lines(DATA / "tunings.jsonl", *rows)


def read_or_measure(evaluator: QuantizedLoRAEvaluator, file: Path) -> Sensitivities:
    """The sensitivities by which the first plans were made, so that all are made by the same; kept in a file."""
    if not file.is_file():
        write_sensitivities(file, evaluator.space, evaluator.sensitivities(), evaluator.describe())
    space, sensitivities, _ = read_sensitivities(file)
    if space.signature != evaluator.space.signature:
        raise SystemExit(
            f"{file} is of another space: remove it and the rows made by it, or use another --out"
        )
    return sensitivities


def make_rows(options: Namespace) -> None:
    """Tune what the design has and the results lack, in the design's order."""
    torch.set_num_threads(options.threads)
    done = read_lines(options.out)
    missing = [
        line
        for line in read_lines(options.design)
        if line["task"] in options.task and not any(line.items() <= row.items() for row in done)
    ]
    evaluators: dict[str, tuple[QuantizedLoRAEvaluator, np.ndarray]] = {}
    machine = {"commit": find_commit(), "cpu": find_cpu_name(), "threads": options.threads}
    for line in missing[: options.count]:
        task = line["task"]
        if task not in evaluators:
            evaluator = make_evaluator(task, options.data)
            sensitivities = read_or_measure(evaluator, options.out.parent / f"sensitivities-{task}.json")
            evaluators[task] = evaluator, build_additive_table(evaluator.space, sensitivities)
        evaluator, table = evaluators[task]
        plan = make_plan(evaluator.space, table, line)
        load = os.getloadavg()[0]
        row = {**line, "plan": plan.key, **measure(evaluator, plan, line), "load": round(load, 1), **machine}
        append_lines(options.out, row)
        shown = ("kind", "rank", "learning_rate", "steps", "test_loss", "right", "seconds", "train_seconds")
        print(task, *(f"{name} {row[name]}" for name in shown if name in row), flush=True)


if __name__ == "__main__":
    main()
