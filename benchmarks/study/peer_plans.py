"""Bits that other tools choose for every linear, as plain data for `peers.py`; each tool in a run of its own.

    python -m benchmarks.study.peer_plans autoround --data DIR --work FOLDER
    python -m benchmarks.study.peer_plans modelopt --data DIR --work FOLDER
    python -m benchmarks.study.peer_plans llama.cpp

The first needs `auto-round`, the second `nvidia-modelopt`. A line of `peer_plans.jsonl` is a tool, its version, its
way, the mean bits it was asked for (None: its own), and bits by linear. Lines that are there are not made again.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import append, read
from benchmarks.study import protocol
from benchmarks.study.protocol import RESULTS
from qra_eval.models.linears import find_linears
from qra_eval.models.load import load_model
from qra_eval.tasks import make_task
from qra_eval.tasks.batches import Batch, passed_together
from qra_eval.tasks.rows import Rows
from qra_search.files import write_json

TARGETS = (2.6, 3.25)
"""Mean bits of a weight in the linears, scales and offsets left out."""
GROUP = 64
SCORED_ROWS = 32
"""Calibration rows that the tools see; our sensitivities see 16."""
SCORED_TOKENS = 128
LLAMA_CPP = "b11434"
Plans = Iterator[tuple[str, float | None, dict[str, int]]]


def autoround(data: str, work: Path) -> Plans:
    """AutoScheme's choice: changes of the loss by gradients, then a dynamic program. It wants 8 bits symmetric."""
    os.environ["AR_AUTO_SCHEME_CACHE"] = str(work / "scores")
    from auto_round import AutoRound, AutoScheme
    from auto_round.schemes import QuantizationScheme

    examples = make_task("gsm8k", data=data, seed=0).split("train")[: 4 * SCORED_ROWS]
    work.mkdir(parents=True, exist_ok=True)
    rows = work / "rows.json"
    write_json(rows, [{"text": example.prompt + example.answer} for example in examples])
    options = [
        QuantizationScheme.from_dict({"bits": bits, "group_size": GROUP, "sym": bits == 8, "data_type": "int"})
        for bits in protocol.BITS
    ]
    for target in TARGETS:
        loaded = load_model(protocol.MODEL)
        scheme = AutoScheme(
            avg_bits=target, options=options, dataset=str(rows), nsamples=SCORED_ROWS, seqlen=SCORED_TOKENS,
            ignore_scale_zp_bits=True, enable_torch_compile=False, low_cpu_mem_usage=False,
        )  # fmt: skip
        rounder = AutoRound(
            loaded.model, loaded.tokenizer, scheme=scheme, iters=0, dataset=str(rows), nsamples=SCORED_ROWS,
            seqlen=SCORED_TOKENS, enable_torch_compile=False,
        )  # fmt: skip
        rounder.quantize()
        chosen = {name: rounder.layer_config[name]["bits"] for name in linears(load_model(protocol.MODEL).model)}
        yield "AutoScheme", target, chosen


def modelopt(data: str, work: Path) -> Plans:
    """`auto_quantize` on simulated weight-only formats: its gradient scores, then its linear program.

    Its rules would tie q, k and v, and gate and up, for engines that run them as one; here each linear is free, as
    for the others.
    """
    from modelopt.torch import quantization as mtq
    from modelopt.torch.quantization.algorithms import AutoQuantizeGradientSearcher

    AutoQuantizeGradientSearcher.quant_grouping_rules = []
    formats = [weight_only(bits) for bits in protocol.BITS]
    work.mkdir(parents=True, exist_ok=True)
    for target in TARGETS:
        loaded = load_model(protocol.MODEL, dtype=torch.float32)
        names = linears(loaded.model)
        seen = Rows(make_task("gsm8k", data=data, seed=0), "gsm8k", loaded.tokenizer, protocol.TRAINING.max_length)
        batches = passed_together(seen("train", SCORED_ROWS))
        layers = {"module_name_patterns": list(names), "quantization_formats": formats, "allow_no_quant": False}
        model, _ = mtq.auto_quantize(
            loaded.model,
            constraints={"effective_bits": target, "cost": {"excluded_module_name_patterns": ["lm_head"]}},
            data_loader=batches,
            forward_step=lambda model, batch: model(input_ids=batch.input_ids, use_cache=False).logits,
            loss_func=loss,
            quantization_formats=formats,
            module_search_spaces=[layers],
            disabled_layers="lm_head",
            num_calib_steps=1,  # scales come from the weights alone
            num_score_steps=len(batches),
            checkpoint=str(work / "scores.pth"),
        )
        yield "auto_quantize", target, {name: model.get_submodule(name).weight_quantizer.num_bits for name in names}


def loss(logits: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Of the labelled tokens, summed; logits (N, T, V)."""
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1)[batch.positions], batch.targets, reduction="sum")


def weight_only(bits: int) -> dict[str, Any]:
    """ModelOpt's format of so many bits in groups, the scale of a group that of the least squared error.

    By its default, the largest weight, 2 bits would have three levels of which two are hardly used.
    """
    return {
        "quant_cfg": [
            {"quantizer_name": "*", "enable": False},
            {"quantizer_name": "*weight_quantizer", "cfg": {"num_bits": bits, "block_sizes": {-1: GROUP}}},
        ],
        "algorithm": {"method": "mse", "start_multiplier": 0.25, "stop_multiplier": 1.0, "step_size": 0.05},
    }


def llama_cpp(data: str, work: Path) -> Plans:
    """The types that `llama_tensor_get_type_impl` of `src/llama-quant.cpp` gives, at the nearest of our widths.

    The importance matrix weighs the rounding of these types; it does not choose them.
    """
    names = linears(load_model(protocol.MODEL).model)
    layers = 1 + max(int(name.split(".")[2]) for name in names)

    def q2_k(layer: int, kind: str) -> int:
        """Fewer than 4 query heads share a key."""
        return 3 if kind in ("v_proj", "o_proj", "down_proj") else 2

    def q3_k_m(layer: int, kind: str) -> int:
        """Q5_K, of v in the first two layers and down in the first sixteenth, is 4 bits here too."""
        return 4 if kind in ("v_proj", "o_proj", "down_proj") else 3

    def q4_k_m(layer: int, kind: str) -> int:
        """Q4_K and Q6_K, each a width lower: the rule at the bytes of 3 bits."""
        first = layers // 8
        more = layer < first or layer >= 7 * layers // 8 or (layer - first) % 3 == 2
        return 4 if kind in ("v_proj", "down_proj") and more else 3

    for way, rule in (("Q2_K", q2_k), ("Q3_K_M", q3_k_m), ("Q4_K_M at 3 and 4 bits", q4_k_m)):
        yield way, None, {name: rule(int(name.split(".")[2]), name.split(".")[-1]) for name in names}


def linears(model: torch.nn.Module) -> dict[str, int]:
    """Weights of the linears of the decoder layers, by name."""
    return {found.name: found.module.weight.numel() for found in find_linears(model)}


TOOLS: dict[str, tuple[Callable[[str, Path], Plans], Callable[[], str]]] = {
    "autoround": (autoround, lambda: version("auto-round")),
    "modelopt": (modelopt, lambda: version("nvidia-modelopt")),
    "llama.cpp": (llama_cpp, lambda: LLAMA_CPP),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tool", choices=TOOLS)
    parser.add_argument("--data", type=protocol.data_folder, help="folder with gsm8k_train.jsonl")
    parser.add_argument("--work", type=Path, help="folder of scores, with which a stopped run is resumed")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    if options.tool != "llama.cpp" and (options.data is None or options.work is None):
        parser.error(f"{options.tool} needs --data and --work")
    torch.set_num_threads(options.threads)
    path = options.out / "peer_plans.jsonl"
    plans, tool_version = TOOLS[options.tool]
    start = time.perf_counter()
    for way, target, bits in plans(options.data, options.work):
        if any((d["tool"], d["way"], d["target"]) == (options.tool, way, target) for d in read(path)):
            continue
        line = {"tool": options.tool, "version": tool_version(), "way": way, "target": target, "bits": bits}
        append(path, line)
        counts = {b: list(bits.values()).count(b) for b in sorted(set(bits.values()))}
        print(f"{options.tool}, {way}, {target}: {counts}, {time.perf_counter() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
