"""A chosen plan quantized once more: layer by layer on quantized inputs, or with tokens weighed by the loss.

    python benchmarks/study/requantized.py --data DIR --cache BANK

The bank's codes are chosen on the inputs of the unquantized model, every token alike, so that they serve every plan. Is
it worth it to quantize the winner anew, in sequence on the inputs that it will see? Or guided: a token counts in the
Hessian of a linear by the square of the loss's gradient at its output (Kim et al. 2025, with one group of outputs).
Validation loss before tuning, and test loss after it, beside the bank's; adapters start as usual. Each plan and side is
a line of `requantized.jsonl`; what is there is not measured again.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import budgets
import protocol
import torch
from lines import read
from pieces import measured
from qra_backends import SecondMoment
from torch.nn import functional as F

from qra_eval.evaluators.quantized_lora import QuantizedLoRAEvaluator
from qra_eval.quantized.blocks import Blocks, Flow
from qra_eval.quantized.calibration import LayerMoments
from qra_eval.sensitivities.fisher import LABELS
from qra_search.space.levels import LevelName
from qra_search.space.memory import UNQUANTIZED_BITS
from qra_search.space.space import Plan

PLANS = ("sensitivities 62 MiB", "sensitivities 50 MiB")
FLOOR = 0.1
"""Least weight of a token, as a share of the mean: no gradient says nothing of what other rows do there."""


def main() -> None:
    parser = protocol.options(__doc__, seeds=1)
    parser.add_argument("--plans", nargs="+", default=PLANS)
    options = parser.parse_args()
    path = options.out / "requantized.jsonl"
    if options.table:
        for line in read(path):
            print(line["plan"], line["side"], line["seed"], line["untuned_validation_loss"], line["test_loss"])
        return
    until, commit = protocol.begin(parser, options)
    made = budgets.evaluator(options.data, "default", False, options.cache)
    plans = budgets.plans(made)
    done = [(line["plan"], line["side"], line["seed"]) for line in read(path)]
    for seed, name, side in itertools.product(range(options.seeds), options.plans, SIDES):
        if (name, side, seed) in done:
            continue
        if until is not None and time.monotonic() > until:
            raise SystemExit(protocol.LEFT)
        made.workbench.apply(plans[name], seed)
        start = time.perf_counter()
        SIDES[side](made, plans[name])
        seconds = round(time.perf_counter() - start, 1)
        key: dict[str, Any] = {"plan": name, "side": side, "seed": seed, "quantize_seconds": seconds}
        line = {**key, **measured(made, seed), "commit": commit}
        with path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(name, side, line["untuned_validation_loss"], line["test_loss"], flush=True)
        made.quantized.unquantize()


@torch.no_grad()
def quantize_in_sequence(evaluator: QuantizedLoRAEvaluator, plan: Plan) -> None:
    """Put bases in place, each calibrated on what the quantized layers before it put out; tables stay the bank's."""
    model, blocks = evaluator.quantized, evaluator.quantized.blocks
    levels = levels_of(evaluator, plan)
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


def quantize_guided(evaluator: QuantizedLoRAEvaluator, plan: Plan) -> None:
    """Put bases in place whose Hessians weigh tokens by the loss; gradients go back through the unquantized model."""
    model, blocks = evaluator.quantized, evaluator.quantized.blocks
    levels = levels_of(evaluator, plan)
    for wrapper in model.wrapped.values():
        wrapper.set_base()
    bases: dict[str, torch.Tensor] = {}
    inputs: list[list[torch.Tensor]] = []
    with blocks.running():
        flows = [blocks.enter(batch) for batch in model.calibration_batches()]
        for layer in range(len(blocks)):
            inputs.append([flow.hidden for flow in flows])
            with blocks.placed(layer), torch.no_grad():
                blocks.advance(layer, flows)
        gradients = [label_gradient(blocks, flow) for flow in flows]
        for layer in reversed(range(len(blocks))):
            names = model.bank.names(layer)
            moments = {name: SecondMoment() for name in names}
            with blocks.placed(layer):
                for n, flow in enumerate(flows):
                    start = inputs[layer][n].to(blocks.device).requires_grad_(True)
                    with weighed({name: model.wrapped[name] for name in names}, moments):
                        output = blocks.step(layer, flow, start)
                        (gradients[n],) = torch.autograd.grad(output, start, gradients[n])
                for name in names:
                    if levels[name] != UNQUANTIZED_BITS:
                        linear = model.bank.linears[name]
                        with torch.no_grad():
                            module = model.backend.quantize(linear, levels[name], hessian=moments[name].hessian())
                            bases[name] = model.backend.dequantize(module).to(model.compute)
            inputs.pop()
    for name, weight in bases.items():
        model.wrapped[name].set_base(weight=weight)


def label_gradient(blocks: Blocks, flow: Flow) -> torch.Tensor:
    """Gradient of the loss, summed over the labels, at the last layer's output (N, T, H)."""
    hidden = flow.hidden.to(blocks.device).requires_grad_(True)
    total = torch.zeros_like(hidden)
    places = torch.arange(len(flow.batch.positions)).split(LABELS)
    for some in places:
        part = replace(flow, batch=replace(flow.batch, positions=flow.batch.positions[some]))
        loss = F.cross_entropy(blocks.logits(part, hidden).float(), flow.batch.targets[some], reduction="sum")
        total += torch.autograd.grad(loss, hidden)[0]
    return total


@contextmanager
def weighed(linears: dict[str, Any], moments: dict[str, SecondMoment]) -> Iterator[None]:
    """While the context lasts, backward passes add inputs to moments, each token by the gradient at the output."""
    handles = []

    def hook(name: str) -> Any:
        def read(module: Any, args: tuple[torch.Tensor, ...], out: torch.Tensor) -> None:
            x = args[0].detach().flatten(0, -2)

            def add(gradient: torch.Tensor) -> None:
                weight = gradient.flatten(0, -2).float().square().sum(-1)
                weight = weight / weight.mean() + FLOOR
                moments[name].update(x * weight.sqrt()[:, None])

            out.register_hook(add)

        return read

    for name, linear in linears.items():
        handles.append(linear.register_forward_hook(hook(name)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def levels_of(evaluator: QuantizedLoRAEvaluator, plan: Plan) -> dict[str, LevelName]:
    """The level of every linear."""
    chosen = zip(evaluator.space.groups, plan.bits, strict=True)
    return {linear.name: level for group, level in chosen for linear in group.linears}


SIDES: dict[str, Callable[[QuantizedLoRAEvaluator, Plan], None]] = {
    "bank": lambda evaluator, plan: None,
    "in sequence": quantize_in_sequence,
    "guided": quantize_guided,
}


if __name__ == "__main__":
    main()
