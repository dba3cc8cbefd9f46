"""What the damage of linears at every level of the trellis code is, and what short probes on few tokens foretell of it.

    python -m benchmarks.study.damage --data DIR [--model NAME] [--task NAME] [--every N] [--table]

Of every `--every`th decoder layer the damage at each level, by the moments of all calibration tokens; of every layer
that of the probe, by as many tokens as a plan takes and by a few other numbers. A line a model, task and number of
tokens in results/study/damage.jsonl; what is there is not measured again. The table has the constants of
`qra_backends.trellis.backend` with their deviation, and the share of a plan's lead over the best uniform plan that is
lost if it is solved from probes and constants instead of all levels, at ten budgets.
"""

from __future__ import annotations

import time
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from qra_backends import make_backend
from qra_backends.trellis.backend import DAMAGE_RATIOS, HALF_BITS

from benchmarks.common import RESULTS, append_lines, find_commit, find_cpu_name, read_lines
from qra_eval.evaluators.quantized_lora import QuantizedLoRAEvaluator
from qra_eval.quantized.build import find_modules
from qra_eval.quantized.calibration import pass_layers
from qra_eval.tasks.batches import PASS_MULTIPLE, make_pass_batches
from qra_search.allocate import knapsack

FILE = RESULTS / "study" / "damage.jsonl"
TOKENS = (1024, 2048, 4096, 8192)
PROBE = "probe"
BUDGETS = np.linspace(1.25, 3.5, 10)
"""Bits a weight."""


def main() -> None:
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="folder with the task's files")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--task", default="banking77")
    parser.add_argument("--every", type=int, default=3)
    parser.add_argument("--tokens", type=int, nargs="*", default=TOKENS)
    parser.add_argument("--out", type=Path, default=FILE)
    parser.add_argument("--table", action="store_true", help="print what is there, and measure nothing")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for line in () if options.table else measure(options):
        append_lines(options.out, line)
    print(*make_table(read_lines(options.out)), sep="\n")


def measure(options: Namespace) -> Iterator[dict[str, Any]]:
    """A line for each number of tokens, the last one with all levels."""
    name = Path(options.model).name
    known = {
        line["asked_tokens"]
        for line in read_lines(options.out)
        if (line["model"], line["task"]) == (name, options.task)
    }
    evaluator = QuantizedLoRAEvaluator(
        {
            "model": {"name": options.model},
            "task": {"name": options.task, "data": options.data},
            "quantization": {"embeddings": 16},
            "space": {"bits": (2,), "granularity": "module"},
            "training": {"max_length": 192},
        }
    )
    depth = len(evaluator.quantized_model.blocks)
    for tokens in (*options.tokens, 0):
        if tokens not in known:
            layers = range(depth) if tokens else range(0, depth, options.every)
            yield {
                "model": name,
                "task": options.task,
                "asked_tokens": tokens,
                **measure_damage(evaluator, layers, tokens),
                "commit": find_commit(),
                "cpu": find_cpu_name(),
            }


def measure_damage(evaluator: QuantizedLoRAEvaluator, layers: Sequence[int], tokens: int) -> dict[str, Any]:
    """Damage by linear and level, by about so many tokens; 0: by all that calibrate, and at every level."""
    model, backend = evaluator.quantized_model, make_backend("trellis")
    rows, taken = model.rows("train", model.calibration_row_count), 0
    for count, row in enumerate(rows, 1):
        taken += len(row)
        if taken >= tokens > 0:
            rows = rows[:count]
            break
    levels = [] if tokens else list(HALF_BITS)
    damage: dict[str, dict[str, float]] = {}
    start = time.process_time()
    passed = pass_layers(
        model.blocks,
        make_pass_batches(rows, PASS_MULTIPLE),
        lambda at: find_modules(model.bank, model.blocks, at),
        model.weighting,
        layers,
    )
    for layer, moments in passed:
        for name in model.bank.list_names(layer):
            linear = model.linears[name]
            given = {
                "hessian": moments.compute_hessian(name),
                "output_weights": moments.compute_output_weights(name),
            }
            ((probe, _),) = backend.probe_levels(linear, [2], **given)
            modules = {PROBE: probe, **backend.quantize_levels(linear, levels, **given)}
            damage[name] = {
                f"{backend.width(level):g}" if level in HALF_BITS else PROBE: moments.estimate_damage(
                    name, backend.dequantize(module).float() - linear.weight.float()
                )
                for level, module in modules.items()
            }
            moments.release_hessian(name)
    return {
        "tokens": taken,
        "shapes": {name: list(model.linears[name].weight.shape) for name in damage},
        "damage": damage,
        "cpu_seconds": round(time.process_time() - start, 1),
    }


def make_table(lines: list[dict[str, Any]]) -> list[str]:
    """The constants with their deviations; how probes by fewer tokens differ; the share of the lead that is lost."""
    full = {(line["model"], line["task"]): line["damage"] for line in lines if not line["asked_tokens"]}
    rows = ["| model, task | bits | log of damage over that of the probe | deviation |", "|---|---|---|---|"]
    for (model, task), damage in full.items():
        for bits in (b for b in next(iter(damage.values())) if b != PROBE):
            ratios = np.log([own[bits] / own[PROBE] for own in damage.values()])
            rows.append(f"| {model}, {task} | {bits} | {ratios.mean():.3f} | {ratios.std():.3f} |")
    rows += [
        "",
        "| model, task | tokens of the probe | deviation | lead lost, median | most |",
        "|---|---|---|---|---|",
    ]
    for line in lines:
        damage = full.get((line["model"], line["task"]))
        if damage is not None:
            both = [np.log(line["damage"][name][PROBE] / own[PROBE]) for name, own in damage.items()]
            lost = 100 * np.array(compute_lost_leads(line, damage))
            rows.append(
                f"| {line['model']}, {line['task']} | {line['tokens']} | {np.std(both):.3f} | {np.median(lost):.2f}% | "
                f"{lost.max():.2f}% |"
            )
    return rows


def compute_lost_leads(line: dict[str, Any], damage: dict[str, dict[str, float]]) -> list[float]:
    """At each of `BUDGETS` the share of the lead over the best uniform plan that the plan by a line's probes loses.

    Args:
        damage: of linears at every level: what is true.
    """
    bits = [b for b in next(iter(damage.values())) if b not in (PROBE, "4.5")]
    widths = np.array(list(map(float, bits)))
    true = np.array([[own[b] for b in bits] for own in damage.values()])
    probes = np.array([line["damage"][name][PROBE] for name in damage])
    foretold = probes[:, None] * np.array([DAMAGE_RATIOS[round(2 * width)] for width in widths])
    weights = np.array([np.prod(line["shapes"][name]) for name in damage])
    sizes = np.rint(weights[:, None] * widths / 8).astype(np.int64)
    lost = []
    for budget in BUDGETS:
        bytes_ = int(weights.sum() * budget / 8)
        plans = [solve(table, sizes, bytes_) for table in (true, foretold)]
        best, found = (float(true[np.arange(len(true)), plan].sum()) for plan in plans)
        uniform = float(true[:, widths <= budget].sum(0).min())
        lost.append((found - best) / (uniform - best))
    return lost


def solve(table: np.ndarray, sizes: np.ndarray, bytes_: int) -> np.ndarray:
    """The level of each linear, (G,), of the least sum of a table (G, B) within so many bytes."""
    solution = knapsack.solve(table[:, :, None], sizes[:, :, None], bytes_)
    assert solution is not None
    return solution.code[0]


if __name__ == "__main__":
    main()
