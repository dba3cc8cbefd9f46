"""Does what a rank cannot repair tell evaluations apart? The damage of (bits, rank), measured, in the prior's table.

    python benchmarks/study/residual.py --data DIR --cache BANK

The best adapter of a rank makes up for a share of what a width loses of a linear: the leading singular values of
(W - Q) C, squared, of all of them (H = C C', the Hessian). A plan's score takes a part of that share, 0 to 1, from each
group's damage; with the prior's gain of rank, which rests on constants, or without it. As in `in_context.py`, scores
are held against recorded searches: rank correlation, and the error of a line fitted to the other searches. The captured
shares are kept in `--shares FILE`, if given. A line of `residual.jsonl` is a run.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import protocol
import torch
from in_context import SEARCHES, held_out, trials
from lines import RESULTS
from scipy.stats import spearmanr

from qra_eval.evaluators.quantized_lora import QuantizedLoRAEvaluator
from qra_eval.quantized.adapter_init import metric
from qra_eval.quantized.calibration import pass_through
from qra_search.space.memory import UNQUANTIZED_BITS

PARTS = (0.0, 0.25, 0.5, 0.75, 1.0)


def main() -> None:
    parser = protocol.options(__doc__, seeds=1)
    parser.add_argument("--shares", type=Path, help="NumPy file of the captured shares, read if it is there")
    options = parser.parse_args()
    _, commit = protocol.begin(parser, options)
    evaluator = protocol.evaluator("gsm8k", options.data, cache=options.cache)
    sensitivities = evaluator.sensitivities()
    if options.shares is not None and options.shares.exists():
        captured = np.load(options.shares)
    else:
        captured = captured_shares(evaluator)
        if options.shares is not None:
            np.save(options.shares, captured)
    recorded = {name: trials(name, evaluator) for name in SEARCHES}
    losses = {name: found[2] for name, found in recorded.items()}
    row: dict[str, Any] = {"commit": commit, "searches": {name: len(y) for name, y in losses.items()}}
    space = evaluator.space
    row["mean_captured"] = {
        str(bits): {str(rank): round(float(captured[:, i, j].mean()), 4) for j, rank in enumerate(space.ranks)}
        for i, bits in enumerate(space.bits)
    }
    for gained in (True, False):
        for part in PARTS:
            table = sensitivities.bits_damage[:, :, None] * (1 - part * captured)
            table = table - sensitivities.rank_gain[:, None, :] * gained
            scores = {name: score(table, bits, ranks) for name, (bits, ranks, _) in recorded.items()}
            row[f"{part:g} of the residual, {'with' if gained else 'without'} the gain of rank"] = {
                "rank": {n: round(float(spearmanr(scores[n], losses[n]).statistic), 4) for n in SEARCHES},
                "held-out error, line": held_out(scores, losses, "line"),
            }
    print(json.dumps(row, indent=1))
    with (RESULTS / "residual.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")


@torch.no_grad()
def captured_shares(evaluator: QuantizedLoRAEvaluator) -> np.ndarray:
    """float (G, B, R): the share of a linear's output error that the best adapter of a rank makes up for."""
    model, space, blocks = evaluator.quantized, evaluator.space, evaluator.quantized.blocks
    model.prepare()
    model.unquantize()
    at = {linear.name: g for g, group in enumerate(space.groups) for linear in group.linears}
    captured = np.zeros((len(space), len(space.bits), len(space.ranks)))
    with blocks.running():
        flows = [blocks.enter(batch) for batch in model.calibration_batches()]
        for layer in range(len(blocks)):
            linears = {name: model.wrapped[name] for name in model.bank.names(layer)}
            with blocks.placed(layer):
                moments = pass_through(blocks, layer, flows, linears)
            for name in linears:
                root = metric(moments.hessian(name))
                weight = model.bank.linears[name].weight.detach().float()
                for i, bits in enumerate(space.bits):
                    if bits != UNQUANTIZED_BITS:
                        lost = (weight - model.bank.weight(name, bits).float()) @ root
                        energy = torch.linalg.svdvals(lost).double().square()
                        shares = energy.cumsum(0) / energy.sum()
                        captured[at[name], i] = [float(shares[rank - 1]) for rank in space.ranks]
            print(f"layer {layer + 1} of {len(blocks)}", file=sys.stderr, flush=True)
    return captured


def score(table: np.ndarray, bits: np.ndarray, ranks: np.ndarray) -> np.ndarray:
    """Of plans (N,), given as indices (N, G), by a table (G, B, R)."""
    return table[np.arange(len(table)), bits, ranks].sum(1)


if __name__ == "__main__":
    main()
