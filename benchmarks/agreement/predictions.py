"""What `qra plan` predicts of plans before they are tuned, beside what is measured: divergence from the 16-bit model.

    python -m benchmarks.agreement.predictions --data DIR [--tasks banking77 gsm8k] [--table]

SmolLM2. For every budget the allocated plan, three shuffles of it, and uniform plans of every width; each is a line of
`results/predictions.jsonl`, and is not measured again: the damage that the sensitivities predict, and the mean KL
divergence of its predictions from those of the model in 16 bits, nats a labelled token of validation rows. The table
has differences to the plan.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.common import MIB, RESULTS, append_lines, find_commit, find_cpu_name, read_lines
from benchmarks.study.finetune_rows import make_evaluator
from benchmarks.study.finetune_settings import Row, read_settings
from qra_eval.evaluators.quantized_lora import QuantizedLoRAEvaluator
from qra_eval.sensitivities.measure import compute_divergence
from qra_eval.tasks.batches import collate
from qra_search.allocate.solve import Z_90, estimate_gain_std, solve
from qra_search.app.baselines import shuffle_plan

FILE = RESULTS / "predictions.jsonl"
ROWS = {"banking77": 64, "gsm8k": 16}
"""Validation rows; those of GSM8K are longer."""
BATCH, SHUFFLES, RANK = 8, 3, 8
SETTINGS: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "banking77": ((), {"embeddings": 3, "bits": [1, 1.5, 2, 2.5, 3, 4]}),
    "gsm8k": (
        (
            "max_length=160",
            "batch_size=4",
            "learning_rate=0.002",
            "scales=true",
            "compute=float32",
            "steps=36",
            "loss_rows=96",
        ),
        {"embeddings": [2, 2.5, 3, 4, 5, 6, 8, 16], "bits": [1.5, 2, 2.5, 3, 4, 8]},
    ),
}
"""Settings of the study that differ from its usual ones, and those of this package's plans."""
BUDGETS = {"banking77": (29, 31, 33, 34.6, 36, 38, 41, 44, 48), "gsm8k": (36, 38, 40, 43, 47, 50, 54, 58, 62)}
"""MiB."""


def main() -> None:
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="folder with the tasks' files")
    parser.add_argument("--tasks", nargs="+", default=[*BUDGETS], choices=BUDGETS)
    parser.add_argument("--out", type=Path, default=FILE)
    parser.add_argument(
        "--table", action="store_true", help="print differences of what is there, and measure nothing"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    for task in [] if options.table else options.tasks:
        known = {
            (line["budget_mib"], line["plan"]) for line in read_lines(options.out) if line["task"] == task
        }
        for line in measure(task, options.data, known):
            append_lines(options.out, line)
    print(*make_table(read_lines(options.out)), sep="\n")


def measure(task: str, data: str, known: set[tuple[float, str]]) -> Iterator[dict[str, Any]]:
    """A line for every plan, known ones left out: its budget, predicted damage and measured divergence."""
    changes, plans = SETTINGS[task]
    settings, _ = read_settings(changes)
    settings["plans"] |= plans
    row = Row(kind="plan", budget=f"{max(BUDGETS[task])}MiB")
    evaluator = make_evaluator(Namespace(model="smollm2", task=task, data=data), row, settings)
    space, sensitivities, tuner = evaluator.space, evaluator.sensitivities(), evaluator.tuner
    uniform = {
        f"uniform {space.widths[k]:g}-bit": space.uniform(bits, RANK) for k, bits in enumerate(space.bits)
    }
    plans = [(0.0, name, plan) for name, plan in uniform.items() if plan is not None]
    for budget in BUDGETS[task]:
        plan = solve(space, sensitivities, round(budget * MIB)).plan
        shuffled = [(f"shuffled {seed}", shuffle_plan(space, plan, seed)) for seed in range(1, 1 + SHUFFLES)]
        plans += [(budget, name, plan) for name, plan in [("plan", plan), *shuffled]]
    tuner.switcher.prepare()
    with tuner.switcher.use_unquantized():
        reference = compute_logits(evaluator, ROWS[task])
    likely, machine = reference.softmax(-1), {"commit": find_commit(), "cpu": find_cpu_name()}
    damage = sensitivities.bits_damage
    for budget, name, plan in (plan for plan in plans if plan[:2] not in known):
        tuner.switcher.put_plan(plan, 0)
        divergence = compute_divergence(reference, likely, compute_logits(evaluator, ROWS[task]))
        yield {
            "task": task,
            "budget_mib": budget,
            "plan": name,
            "memory_bytes": space.memory_bytes(plan),
            "predicted": round(
                float(damage[np.arange(len(space)), space.encode_many([plan])[0, 0]].sum()), 5
            ),
            "measured": round(divergence, 5),
            **machine,
        }


def compute_logits(evaluator: QuantizedLoRAEvaluator, count: int) -> Tensor:
    """Logits (M, vocabulary) at the labelled positions of validation rows, in float32."""
    rows, found = evaluator.tuner.rows("validation", count), []
    with torch.no_grad():
        for start in range(0, len(rows), BATCH):
            batch = collate(rows[start : start + BATCH])
            found.append(
                evaluator.tuner.model(input_ids=batch.input_ids).logits.flatten(0, 1)[batch.positions].float()
            )
    return torch.cat(found)


def make_table(lines: list[dict[str, Any]]) -> list[str]:
    """A row a budget: the plan beside the best uniform plan that fits and beside its shuffles; below, how many hold."""
    rows = ["| task | MiB | beside | predicted lead | measured |", "|---|---|---|---|---|"]
    pairs: list[tuple[str, float, float]] = []
    for plan in (line for line in lines if line["plan"] == "plan"):
        same = [line for line in lines if line["task"] == plan["task"] and line is not plan]
        fits = [x for x in same if not x["budget_mib"] and x["memory_bytes"] <= plan["budget_mib"] * MIB]
        others = fits + [x for x in same if x["budget_mib"] == plan["budget_mib"]]
        best = min(fits, key=lambda x: x["predicted"], default=None)
        for other in others:
            lead = other["predicted"] - plan["predicted"], other["measured"] - plan["measured"]
            pairs.append(("uniform" if other in fits else "shuffled", *lead))
            if other is best or other["plan"] == "shuffled 1":
                cells = [plan["task"], f"{plan['budget_mib']:g}", other["plan"], *(f"{x:.3f}" for x in lead)]
                rows.append(f"| {' | '.join(cells)} |")
    for kind in ("uniform", "shuffled"):
        own = np.array([pair[1:] for pair in pairs if pair[0] == kind])
        inside = sum(abs(true - lead) <= Z_90 * estimate_gain_std(lead) for lead, true in own)
        sure = [true for lead, true in own if lead > Z_90 * estimate_gain_std(lead)]
        share = np.sum(own[:, 0] * own[:, 1]) / np.sum(own[:, 0] ** 2)
        rows.append(
            f"Beside {kind} plans: {inside} of {len(own)} within the interval; {sum(true > 0 for true in sure)} of "
            f"{len(sure)} whose interval is above zero are; measured over predicted {share:.2f}."
        )
    return rows


if __name__ == "__main__":
    main()
