"""Appends what a demo found, and the uniform plans beside it, to the rows that the docs' figure is drawn from.

qra demo --out runs/demo && python benchmarks/cli/demo_rows.py runs/demo "qra demo"
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from statistics import mean

OUT = Path(__file__).parents[1] / "results" / "demo.jsonl"


def main(run: Path, command: str) -> None:
    tested, result = (json.loads((run / name).read_text()) for name in ("test.json", "result.json"))
    rows = [
        {
            "command": command,
            "role": plan["role"],
            "mean_bits": round(mean(plan["plan"]["bits"]), 2),
            "mean_rank": round(mean(plan["plan"]["ranks"]), 1),
            "memory_bytes": plan["memory_bytes"],
            "test_loss": round(plan["test_loss"], 4),
            "seed": plan["seed"],
            "steps": plan["steps"],
        }
        for plan in tested["tuned"]
    ]
    for budget in result["budgets"]:
        row = {"command": command, "role": "search", "budget": budget["budget"]}
        row |= {"validation_loss": round(budget["best"]["loss"], 4), "spent": round(result["spent"], 2)}
        rows.append(row | {"uniform_validation_loss": round(budget["best_uniform"]["loss"], 4)})
    kept = [line for line in OUT.read_text().splitlines() if json.loads(line)["command"] != command]
    OUT.write_text("\n".join([*kept, *map(json.dumps, rows)]) + "\n")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit(f"usage: {sys.argv[0]} RUN COMMAND")
    main(Path(sys.argv[1]), sys.argv[2])
