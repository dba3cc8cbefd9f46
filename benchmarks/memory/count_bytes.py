"""Counts every tensor of a tuned run's live model, and compares with the bytes that its plan was searched with.

python -m benchmarks.memory.count_bytes runs/demo
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch
from qra_backends import make_backend

from benchmarks.common import append_lines
from qra_eval import load
from qra_eval.quantized.bank import count_tensor_bytes
from qra_search.app.folder import RunFolder
from qra_search.space.serialization import read_plan_file


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, help="append the figures to this JSONL file")
    options = parser.parse_args()
    run = RunFolder(options.run)
    data, result = read_plan_file(run.read().find_tuning().path), run.read().result.to_dict()
    backend = make_backend(data["backend"])
    model, _ = load(options.run)
    base = model.get_base_model()
    quantized = 0
    for group in data["groups"]:
        for name in group["linears"]:
            wrapper = base.get_submodule(name)
            module = getattr(wrapper, "base_layer", wrapper)
            if group["bits"] == 16:
                continue
            quantized += sum(t.nbytes for t in backend.to_tensors(module).values())
            # What was counted is taken out, so that the rest can be counted whole.
            for table in (module._parameters, module._buffers):
                for key in [k for k in table if k != "bias"]:
                    del table[key]
    adapters = sum(p.nbytes for n, p in model.named_parameters() if ".lora_" in n)
    rest = count_tensor_bytes(model) - adapters
    sizes = [c["memory_bytes"] for c in result["front"]] + [
        b["best"]["memory_bytes"] for b in result["budgets"]
    ]
    report = {
        "quantized": quantized,
        "adapters": adapters,
        "rest": rest,
        "counted": quantized + adapters + rest,
        "plan": data["memory_bytes"],
        "in_result": data["memory_bytes"] in sizes,
        "backend": data["backend"],
        "torch": torch.__version__,
    }
    print(json.dumps(report))
    if options.out:
        append_lines(options.out, report)
    sys.exit(0 if report["counted"] == report["plan"] and report["in_result"] else 1)


if __name__ == "__main__":
    main()
