"""What a layer's output loses in trellis codes and in the default before, on rows that were not calibrated on.

    python -m benchmarks.agreement.trellis_layers --data DIR

15 linears of SmolLM2. The error is tr(E H Eᵀ) / tr(W H Wᵀ) with H of held-out rows of GSM8K: the mean square of the
change of the output over that of the output. A line a backend and level, with the geometric mean.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import torch
from qra_backends import SecondMoment, make_backend
from torch import Tensor, nn

from benchmarks.common import RESULTS
from qra_eval.models.load import load_model

BACKENDS: dict[str, Any] = {
    "trellis": "trellis",
    "trellis, L 10": {"name": "trellis", "L": 10},
    "trellis, damping 0.1": {"name": "trellis", "damping": 0.1},
    "mixed-calibrated": {
        **dict.fromkeys((2, 3, 4, 5, 6), "reference-gptq"),
        8: "bitsandbytes-int8",
    },  # until trellis
    "reference-gptq, damping 0.03": {"name": "reference-gptq", "damping": 0.03},
}
LAYERS = (2, 8, 14)
LINEARS = ("self_attn.q_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of gsm8k_train.jsonl")
    parser.add_argument("--calibration", type=int, default=48, help="rows that are calibrated on")
    parser.add_argument("--held-out", type=int, default=16, help="rows on which the error is measured")
    parser.add_argument("--out", type=Path, default=RESULTS / "trellis_layers.jsonl")
    options = parser.parse_args()
    torch.set_num_threads(1)
    linears, seen, unseen = examples(options.data, options.calibration, options.held_out)
    rows = []
    for name, spec in BACKENDS.items():
        backend = make_backend(spec)
        found: dict[Any, dict[str, float]] = {level: {} for level in backend.bits}
        for linear_name, linear in linears.items():
            modules = backend.quantize_levels(linear, backend.bits, hessian=seen[linear_name])
            for level, module in modules.items():
                lost = error(backend.dequantize(module), linear.weight.detach(), unseen[linear_name])
                found[level][linear_name] = float(f"{lost:.3g}")
        for level, errors in found.items():
            stored = sum(
                backend.storage(level).bytes(m.out_features, m.in_features) for m in linears.values()
            )
            bits = 8 * stored / sum(m.weight.numel() for m in linears.values())
            mean = math.exp(sum(map(math.log, errors.values())) / len(errors))
            rows.append(
                {"backend": name, "level": level, "bits": round(bits, 3), "error": float(f"{mean:.4g}")}
            )
            print(json.dumps(rows[-1]), flush=True)
            rows[-1]["linears"] = errors
    options.out.write_text("".join(json.dumps(row) + "\n" for row in rows))


def examples(
    data: Path, calibration: int, held_out: int
) -> tuple[dict[str, nn.Linear], dict[str, Tensor], dict[str, Tensor]]:
    """Linears by name, and the Hessians of their inputs on both kinds of rows."""
    loaded = load_model("smollm2")
    model: Any = loaded.model
    model.model.layers = model.model.layers[: max(LAYERS) + 1]
    linears = {
        name: model.get_submodule(name)
        for name in (f"model.layers.{i}.{linear}" for i in LAYERS for linear in LINEARS)
    }
    lines = (data / "gsm8k_train.jsonl").read_text().splitlines()[: calibration + held_out]
    texts = [f"{row['question']} {row['answer']}" for row in map(json.loads, lines)]
    parts = texts[:calibration], texts[calibration:]
    seen, unseen = (hessians(model, loaded.tokenizer, linears, part) for part in parts)
    return linears, seen, unseen


@torch.no_grad()
def hessians(
    model: Any, tokenizer: Any, linears: dict[str, nn.Linear], texts: list[str]
) -> dict[str, Tensor]:
    """The mean of x xᵀ over the inputs of linears."""
    moments = {name: SecondMoment() for name in linears}
    handles = [
        linears[name].register_forward_pre_hook(lambda _, args, m=moment: m.update(args[0]))
        for name, moment in moments.items()
    ]
    for text in texts:
        model.model(input_ids=tokenizer(text, return_tensors="pt")["input_ids"], use_cache=False)
    for handle in handles:
        handle.remove()
    return {name: moment.compute_hessian() for name, moment in moments.items()}


def error(weight: Tensor, whole: Tensor, hessian: Tensor) -> float:
    """Of the output, relative, for a weight (out, in) in place of the whole one."""
    change, whole = weight.float() - whole.float(), whole.float()
    return float(((change @ hessian) * change).sum() / ((whole @ hessian) * whole).sum())


if __name__ == "__main__":
    main()
