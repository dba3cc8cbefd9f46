"""What whole-number zero points cost: output error of every linear, beside free 16-bit offsets, at the bytes of each.

    python benchmarks/backends/whole_zeros.py --data DIR --out benchmarks/results/whole_zeros.jsonl

Every way sees the same calibration rows of GSM8K; the error is the mean square of the change of a linear's output over
that of the output, on rows not calibrated on. A row of the result has the geometric mean over the linears, and the bits
a weight of all, scales and indices included. SmolLM2 comes as a Q4_1 file, whose weights 4 bits with offsets for
groups of 32 hold as they are: that is left out. Of its rows 128 divides those of 1536, and not those of 576.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from gguf_layers import error, hessians
from qra_backends import make_backend
from torch import nn

from qra_eval.models.linears import find_linears
from qra_eval.models.load import load_model

WAYS: dict[str, dict[str, Any]] = {
    "offsets of 16 bits, groups of 32": {"name": "reference-gptq", "group_size": 32},
    "offsets of 16 bits, groups of 64": {"name": "reference-gptq", "group_size": 64},
    "offsets of 16 bits, groups of 96": {"name": "reference-gptq", "group_size": 96},
    "offsets of 16 bits, groups of 128": {"name": "reference-gptq", "group_size": 128},
    "whole zeros, groups of 32": {"name": "gptq", "group_size": 32},
    "whole zeros, groups of 64": {"name": "gptq", "group_size": 64},
    "whole zeros, groups of 128 or 64": {"name": "gptq", "group_size": 128},
    "symmetric, groups of 32": {"name": "compressed-tensors", "group_size": 32, "symmetric": True},
    "symmetric, groups of 64": {"name": "compressed-tensors", "group_size": 64, "symmetric": True},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--calibration", type=int, default=48, help="rows that are calibrated on")
    parser.add_argument("--held-out", type=int, default=16, help="rows on which the error is measured")
    parser.add_argument("--every", type=int, default=1, help="only every so many-th layer")
    parser.add_argument("--last-layer", type=int, help="the model is cut after it; default: all layers")
    parser.add_argument("--bits", type=int, nargs="*", default=[2, 3, 4])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/whole_zeros.jsonl"))
    parser.add_argument("--only", default="", help="ways whose name holds this text; rows are added to the file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    loaded = load_model("smollm2")
    if options.last_layer is not None:
        loaded.model.model.layers = loaded.model.model.layers[: options.last_layer + 1]
    names = [f.name for f in find_linears(loaded.model) if f.layer % options.every == 0]
    lines = (options.data / "gsm8k_train.jsonl").read_text().splitlines()[: options.calibration + options.held_out]
    texts = [f"{row['question']} {row['answer']}" for row in map(json.loads, lines)]
    seen, unseen = (
        hessians(loaded.model, loaded.tokenizer, names, part)
        for part in (texts[: options.calibration], texts[options.calibration :])
    )
    options.out.parent.mkdir(parents=True, exist_ok=True)
    if not options.only:
        options.out.write_text("")
    for way, spec in ((way, spec) for way, spec in WAYS.items() if options.only in way):
        backend = make_backend(spec)
        if backend.unavailable() is not None:
            continue
        own = [bits for bits in options.bits if bits in backend.bits]
        errors: dict[int, list[float]] = {bits: [] for bits in own}
        stored, weights = dict.fromkeys(own, 0), 0
        for name in names:
            linear: nn.Linear = loaded.model.get_submodule(name)
            shape = linear.out_features, linear.in_features
            weights += linear.weight.numel()
            for bits, module in backend.quantize_levels(linear, own, hessian=seen[name]).items():
                errors[bits].append(error(backend.dequantize(module), linear.weight.detach(), unseen[name]))
                stored[bits] += backend.storage(bits).bytes(*shape)
        for bits in own:
            if bits == 4 and spec == WAYS["offsets of 16 bits, groups of 32"]:
                continue
            row = {
                "bits": bits,
                "way": way,
                "bits_per_weight": round(8 * stored[bits] / weights, 3),
                "error": float(f"{torch.tensor(errors[bits]).log().mean().exp():.4g}"),
                "mean_error": float(f"{fmean(errors[bits]):.4g}"),
                "linears": len(names),
            }
            print(json.dumps(row), flush=True)
            with options.out.open("a") as file:
                file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
