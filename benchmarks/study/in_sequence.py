"""A chosen plan quantized once more, layer by layer on what the layers before it, already quantized, put out.

    python benchmarks/study/in_sequence.py --data DIR --cache BANK

The bank's codes are chosen on the inputs of the unquantized model, so that they serve every plan. Is it worth it to
quantize the winner anew on the inputs that it will see? Validation loss before tuning, and test loss after it, beside
the bank's; adapters start as usual. Each plan and side is a line of `in_sequence.jsonl`; what is there is not measured
again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import time
from typing import Any

import budgets
import protocol
import torch
from pieces import RESULTS, measured

from qra_eval.evaluators.quantized_lora import QuantizedLoRAEvaluator
from qra_eval.quantized.calibration import LayerMoments
from qra_search.space.memory import UNQUANTIZED_BITS
from qra_search.space.space import Plan

PLANS = ("sensitivities 62 MiB", "sensitivities 50 MiB")
SIDES = ("bank", "in sequence")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, type=protocol.data_folder, help="folder with gsm8k_train.jsonl")
    parser.add_argument("--cache", help="folder of the bank")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    path = RESULTS / "in_sequence.jsonl"
    made = budgets.evaluator(options.data, "default", False, options.cache)
    plans = budgets.plans(made)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    for name in PLANS:
        for side in SIDES:
            key = {"plan": name, "side": side, "seed": options.seed}
            if any(all(line[k] == key[k] for k in key) for line in budgets.read(path)):
                continue
            made.workbench.apply(plans[name], options.seed)
            start = time.perf_counter()
            if side == "in sequence":
                quantize_in_sequence(made, plans[name])
            seconds = round(time.perf_counter() - start, 1)
            line: dict[str, Any] = {
                **key,
                "quantize_seconds": seconds,
                **measured(made, options.seed),
                "commit": commit,
            }
            with path.open("a") as file:
                file.write(json.dumps(line) + "\n")
            print(name, side, line["untuned_validation_loss"], line["test_loss"], flush=True)
            made.quantized.unquantize()


@torch.no_grad()
def quantize_in_sequence(evaluator: QuantizedLoRAEvaluator, plan: Plan) -> None:
    """Put bases in place, each calibrated on what the quantized layers before it put out; tables stay the bank's."""
    model, blocks = evaluator.quantized, evaluator.quantized.blocks
    levels = {
        m.name: bits for group, bits in zip(evaluator.space.groups, plan.bits, strict=True) for m in group.linears
    }
    with blocks.running():
        flows = [blocks.enter(batch) for batch in model.calibration_batches()]
        for layer in range(len(blocks)):
            wrapped = {name: model.wrapped[name] for name in model.bank.names(layer)}
            for wrapper in wrapped.values():
                wrapper.set_base()
            moments = LayerMoments(wrapped)
            with blocks.placed(layer):
                with moments.gathered():
                    for flow in flows:
                        moments.width = flow.batch.width
                        blocks.step(layer, flow)
                for name, wrapper in wrapped.items():
                    if levels[name] != UNQUANTIZED_BITS:
                        linear = model.bank.linears[name]
                        module = model.backend.quantize(linear, levels[name], hessian=moments.hessian(name))
                        wrapper.set_base(weight=model.backend.dequantize(module).to(model.compute))
                blocks.advance(layer, flows)


if __name__ == "__main__":
    main()
