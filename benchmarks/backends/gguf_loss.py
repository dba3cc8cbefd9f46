"""Test loss of plans found for llama.cpp beside uniform quants by its own quantizer, before and after the same tuning.

    python benchmarks/backends/gguf_loss.py --data DIR --out benchmarks/results/gguf_loss.jsonl

The rivals are what `llama-quantize` makes with an importance matrix: its library rounds every linear
(`ggml_quantize_chunk`), and the matrix is of the rows that our codes are calibrated on. As there, SmolLM2's table of
embeddings, which is its head too, is Q8_0 (Q6_K does not fit rows of 576); `pure` has it in the type of the linears,
like `--pure`. Budgets are the bytes of uniform Q4_0, and 85% of these, adapters included; plans are the exact optima
for our sensitivities. SmolLM2 comes as a Q4_1 file, whose weights Q4_1 holds nearly as they are: it is a rival, and no
choice of ours. What is in the results is not measured again. Needs llama-cpp-py-sync.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from llama_cpp_py_sync import __llama_cpp_tag__

from qra_eval.evaluators.quantized_lora import QuantizedLoRAEvaluator
from qra_eval.tasks.losses import row_losses
from qra_search.config import QuantizationConfig, SpaceConfig, TaskConfig, TrainingConfig
from qra_search.space.space import Plan, SearchSpace
from qra_search.strategies.additive import additive_plan
from qra_search.surrogates.prior_table import prior_table

OURS = ("Q2_K", "IQ3_XXS", "Q3_K", "IQ4_XS", "IQ4_NL", "Q4_0", "Q5_0", "Q8_0")
THEIRS = ("IQ4_NL", "Q4_0", "Q4_1", "Q5_0", "Q8_0")
TABLE = "Q8_0"
RANK = 8
SHARE = 0.85


class Case(NamedTuple):
    """A row to be measured: whose codes, and the plan; a type names a uniform one, a share is one of Q4_0's bytes."""

    codes: str
    plan: str | float
    table: str = TABLE
    tuned: bool = False
    scales: bool = False
    """Whether the blocks' scales are trained along."""


CASES = (
    Case("ours", 1.0, tuned=True),
    Case("ours", SHARE, tuned=True),
    Case("ours", 1.0, tuned=True, scales=True),
    Case("ours", SHARE, tuned=True, scales=True),
    Case("ours", "Q4_0", tuned=True),
    Case("llama.cpp", "Q4_0", tuned=True),
    Case("llama.cpp", "Q4_0", "Q4_0"),
    Case("llama.cpp", "IQ4_NL", tuned=True),
    Case("llama.cpp", "Q4_1", tuned=True),
    Case("llama.cpp", "Q5_0", tuned=True),
)
"""All are measured untuned before any is tuned."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True)
    parser.add_argument("--steps", type=int, default=36)
    parser.add_argument("--rows", type=int, default=128, help="test rows")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="only rows in whose `codes: plan` this regular expression is found")
    parser.add_argument("--cache", default=None, help="folder of the bank of quantized weights")
    parser.add_argument("--runs", type=Path, default=None, help="folder to keep the tuned runs in")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/gguf_loss.jsonl"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    for tuning in (False, True):
        steps = given.steps if tuning else 0
        for codes, scales in (("ours", False), ("llama.cpp", False), ("ours", True)):
            wanted = [case for case in CASES if (case.codes, case.scales) == (codes, scales)]
            wanted = [case for case in wanted if (case.tuned if tuning else not scales)]
            wanted = [case for case in wanted if re.search(given.only, f"{codes}: {label(case)}")]
            missing = [case for case in wanted if (codes, label(case), steps, given.seed) not in done(given.out)]
            if not missing:
                continue
            evaluator = make_evaluator(codes, scales, given)
            for case in missing:
                row = measured(evaluator, case, steps, given)
                print(json.dumps({**row, "row_nats": None}), flush=True)
                with given.out.open("a") as file:
                    file.write(json.dumps(row) + "\n")
            evaluator.close()
    print(table([json.loads(line) for line in given.out.read_text().splitlines()]))


def done(out: Path) -> set[tuple[Any, ...]]:
    """What the results have already."""
    rows: Iterable[dict[str, Any]] = map(json.loads, out.read_text().splitlines()) if out.is_file() else ()
    return {(row["codes"], row["plan"], row["steps"], row["seed"]) for row in rows}


def label(case: Case) -> str:
    if isinstance(case.plan, float):
        return f"found at {case.plan:.0%} of Q4_0's bytes{', scales trained' if case.scales else ''}"
    return f"uniform {case.plan}{'' if case.table == TABLE else ', pure'}"


def make_evaluator(codes: str, scales: bool, given: argparse.Namespace) -> QuantizedLoRAEvaluator:
    ours = codes == "ours"
    return QuantizedLoRAEvaluator(
        "smollm2",
        TaskConfig(name="gsm8k", data=given.data),
        quantization=QuantizationConfig(
            backend={"name": "gguf", "types": OURS if ours else THEIRS, "feedback": ours},
            embeddings=(4, 5, 8) if ours else (4, 8),
            cache=given.cache,
        ),
        space=SpaceConfig(bits=(2, 3, 4, 5, 8) if ours else (4, 5, 8), ranks=(RANK,), granularity="module"),
        training=TrainingConfig(batch_size=8, test_rows=given.rows, sample_answers=0, scales=scales),
    )


def measured(evaluator: QuantizedLoRAEvaluator, case: Case, steps: int, given: argparse.Namespace) -> dict[str, Any]:
    """One plan, tuned for so many steps, on the test rows."""
    space, workbench = evaluator.space, evaluator.workbench
    plan = uniform(space, case.plan, case.table) if isinstance(case.plan, str) else found(evaluator, case.plan)
    if steps:
        folder = (
            None if given.runs is None else given.runs / f"{case.codes}-{case.plan}{'-scales' if case.scales else ''}"
        )
        tuned = evaluator.tune(plan, steps=steps, seed=given.seed, folder=folder, kept=folder)
        nats, tokens = tuned.row_nats, tuned.row_tokens
    else:
        workbench.apply(plan, given.seed)
        rows = workbench.rows("test", given.rows)
        nats, tokens = map(
            tuple, row_losses(workbench.model, rows, 2 * workbench.settings.batch_size, workbench.device)
        )
    return {
        "codes": case.codes,
        "plan": label(case),
        "steps": steps,
        "seed": given.seed,
        "loss": round(sum(nats) / sum(tokens), 4),
        "bytes": space.memory_bytes(plan),
        "weight_bytes": weight_bytes(space, plan),
        "types": {kind: plan.bits.count(kind) for kind in space.bits if kind in plan.bits},
        "table": plan.bits[-1],
        "rank": RANK,
        "test_rows": given.rows,
        "llama.cpp": __llama_cpp_tag__,
        "row_tokens": list(tokens),
        "row_nats": [round(value, 2) for value in nats],
    }


def uniform(space: SearchSpace, kind: str, table: str) -> Plan:
    """A type for every linear, and another for the table."""
    return Plan(
        tuple(table if group.is_embedding else kind for group in space.groups),
        tuple(0 if group.is_embedding else RANK for group in space.groups),
    )


def found(evaluator: QuantizedLoRAEvaluator, share: float) -> Plan:
    """The exact optimum for the sensitivities at a share of the bytes of uniform Q4_0."""
    space = evaluator.space
    budget = int(share * space.memory_bytes(uniform(space, "Q4_0", TABLE)))
    plan = additive_plan(space, prior_table(space, evaluator.sensitivities()), budget)
    if plan is None:
        raise RuntimeError(f"no plan takes {budget} bytes")
    return plan


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: bytes as a share of uniform Q4_0's, and losses less its own with twice their standard errors.

    Both are of the same rows: the error is that of a ratio estimated over them.
    """
    plans = list(dict.fromkeys((row["codes"], row["plan"]) for row in rows))
    by_key = {(row["codes"], row["plan"], row["steps"]): row for row in rows}
    steps = sorted({row["steps"] for row in rows})
    lines = ["| codes | plan | bytes | " + " | ".join(f"{n} steps" for n in steps) + " |"]
    lines.append("|---|---|---:|" + "---:|" * len(steps))
    for codes, plan in plans:
        cells = []
        for n in steps:
            row, rival = by_key.get((codes, plan, n)), by_key.get(("llama.cpp", "uniform Q4_0", n))
            cells.append("" if row is None else f"{row['loss']:.4f}" + ("" if rival is None else beside(row, rival)))
        taken = next(row["bytes"] for row in rows if (row["codes"], row["plan"]) == (codes, plan))
        share = taken / by_key["llama.cpp", "uniform Q4_0", steps[0]]["bytes"]
        lines.append(f"| {codes} | {plan} | {share:.1%} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def beside(row: dict[str, Any], rival: dict[str, Any]) -> str:
    if row is rival:
        return ""
    tokens = torch.tensor(row["row_tokens"], dtype=torch.float64)
    apart = torch.tensor(row["row_nats"], dtype=torch.float64) - torch.tensor(rival["row_nats"], dtype=torch.float64)
    mean = apart.sum() / tokens.sum()
    count = len(tokens)
    error = ((apart - mean * tokens).square().sum() * count / (count - 1)).sqrt() / tokens.sum()
    return f" ({float(mean):+.4f} ± {2 * float(error):.4f})"


def weight_bytes(space: SearchSpace, plan: Plan) -> int:
    """Bytes of the searched weights alone, as the file holds them."""
    b, _ = space.encode(plan)
    return int(space.memory.weight[range(len(b)), b].sum())


if __name__ == "__main__":
    main()
