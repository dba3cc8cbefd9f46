"""Files for llama.cpp without tuning, at equal bytes: its own mixes beside plans and codes of `qra`.

    python -m benchmarks.serving.dynamic_quant MODEL.gguf --data DIR --work FOLDER [--mixes Q2_K Q3_K_M]
    python -m benchmarks.serving.dynamic_quant --table

For each mix of llama.cpp, four files of its size. `mix`: by llama.cpp, with an importance matrix from the rows that
calibrate our codes. `mix, our codes`: its types, our codes. `plan`: what we choose and encode within the same bytes.
`plan, its codes`: our types, encoded by llama.cpp with the same matrix. llama.cpp computes the logits of all of them on
test rows of two tasks: the one that calibrated them, and one that neither side has seen. A line is the divergence from
the model in 16 bits, and the perplexity; rows are kept for intervals. FOLDER keeps the run, so that a stopped benchmark
goes on; files of models are removed once they are measured.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from benchmarks.common import MIB, RESULTS, append_lines, find_commit, find_cpu_name, read_lines
from benchmarks.serving.llama_cpp import quantize
from benchmarks.study.intervals import difference, make_markdown_table
from qra_eval.evaluators.quantized_lora import QuantizedLoRAEvaluator
from qra_eval.export.gguf import MODEL_FILE, make_tensor_namer
from qra_eval.export.llama_cpp import compute_logits
from qra_eval.models.load import load_model
from qra_search import plan as plan_run
from qra_search import plugins
from qra_search.allocate.solve import solve
from qra_search.schemas import Plan

OUT = RESULTS / "serving" / "dynamic_quant.jsonl"
MIXES = ("Q2_K", "Q3_K_M", "IQ4_XS", "IQ2_M", "IQ3_XXS", "IQ2_XS", "Q4_K_M")
ROWS = {"restaurant8k": 32, "gsm8k": 8}
"""Test rows of the task that calibrates, and of the other: about 1,500 tokens each."""
TYPES = ["IQ2_XS", "Q2_K", "IQ3_XXS", "Q3_K", "IQ4_XS", "Q4_K", "Q5_K", "Q6_K"]
CALIBRATION_TOKENS = 4096
KINDS = ("mix", "mix, our codes", "plan", "plan, its codes")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, nargs="?")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--work", type=Path, help="folder of the run, with room for two files in 16 bits")
    parser.add_argument("--mixes", nargs="+", default=MIXES)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument(
        "--table", action="store_true", help="print the table of the lines, and measure nothing"
    )
    options = parser.parse_args()
    if options.table:
        print("\n".join(make_table(read_lines(options.out))))
        return
    if not (options.model and options.data and options.work):
        parser.error("MODEL.gguf, --data and --work are needed")
    measure_all(options)


def measure_all(options: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    original = options.work / "original.gguf"
    options.work.mkdir(parents=True, exist_ok=True)
    if not original.exists():
        quantize(options.model, original, "BF16")
    evaluator = make_evaluator(options)
    prompts = {name: read_prompts(options, name, count) for name, count in ROWS.items()}
    kept = options.work / "logits.safetensors"
    if not kept.exists():
        logits = {name: compute_logits(original, None, rows) for name, rows in prompts.items()}
        save_file({f"{name} {n}": row for name, rows in logits.items() for n, row in enumerate(rows)}, kept)
    read = load_file(kept)
    wanted = {name: [read[f"{name} {n}"] for n in range(len(rows))] for name, rows in prompts.items()}
    importance = compute_importance(evaluator, options.model)
    machine = {"model": options.model.name, "cpu": find_cpu_name(), "commit": find_commit()}
    done = {(row["like"], row["kind"]) for row in read_lines(options.out)}
    for mix in options.mixes:
        kinds = [kind for kind in KINDS if kind in options.kinds and (mix, kind) not in done]
        if not kinds:
            continue
        sized = options.work / f"{mix}.gguf"
        quantize(original, sized, mix, importance)
        types = read_types(sized)
        budget = sum(size for _, size in types.values())
        planned = solve(evaluator.space, evaluator.sensitivities(), budget).plan
        for kind in kinds:
            begun = time.process_time()
            with TemporaryDirectory(dir=options.work) as holder:
                if kind == "mix":
                    file = sized
                elif kind == "plan, its codes":
                    file = Path(holder) / MODEL_FILE
                    quantize(original, file, mix, importance, list_plan_types(evaluator, planned))
                else:
                    own = planned if kind == "plan" else copy_types(evaluator, types)
                    file = export(evaluator, own, Path(holder))
                seconds = round(time.process_time() - begun)
                row: dict[str, Any] = {
                    "like": mix,
                    "kind": kind,
                    "file_mib": round(file.stat().st_size / MIB, 1),
                }
                row["tensor_bytes"] = sum(size for _, size in read_types(file).values())
                if kind != "mix":
                    row["encode_processor_seconds"] = seconds
                for name, rows in prompts.items():
                    row[name] = compare(compute_logits(file, None, rows), wanted[name], rows)
            append_lines(options.out, row | machine)
            print(mix, kind, row["file_mib"], {name: row[name]["divergence"] for name in prompts}, flush=True)
        sized.unlink()


def make_evaluator(options: argparse.Namespace) -> QuantizedLoRAEvaluator:
    run = plan_run(
        str(options.model),
        next(iter(ROWS)),
        memory="90%",
        out=options.work / "run",
        config={
            "engine": "llama.cpp",
            "task": {"data": str(options.data)},
            "quantization": {
                "backend": {"name": "gguf", "types": TYPES},
                "calibration_tokens": CALIBRATION_TOKENS,
            },
            "space": {"ranks": [0], "bits": [2, 3, 4, 5, 6]},
        },
    )
    evaluator = run.evaluator()
    assert isinstance(evaluator, QuantizedLoRAEvaluator)
    return evaluator


def read_prompts(options: argparse.Namespace, task: str, count: int) -> list[list[int]]:
    """Token ids of test rows of a task, prompt and answer."""
    config = {"model": {"name": str(options.model)}, "task": {"name": task, "data": str(options.data)}}
    rows = QuantizedLoRAEvaluator(config, weights=False).rows("test", count)
    return [list(row.input_ids) for row in rows]


def compute_importance(evaluator: QuantizedLoRAEvaluator, model: Path) -> dict[str, Tensor]:
    """Mean squared inputs (in,) by tensor, of the rows that calibrate, as `llama-imatrix` gathers them."""
    loaded = load_model(str(model))
    translate_name = make_tensor_namer(loaded.model.config)
    moments: dict[str, Tensor] = {}
    names = {id(module): name for name, module in loaded.model.named_modules()}

    def gather(module: torch.nn.Module, given: tuple[Tensor, ...]) -> None:
        squares = given[0].detach().float().square().reshape(-1, given[0].shape[-1])
        key = f"{translate_name(names[id(module)])}.weight"
        moments[key] = moments.get(key, 0) + squares.sum(0)

    for group in evaluator.space.groups:
        for linear in group.linears:
            if not group.is_embedding:
                loaded.model.get_submodule(linear.name).register_forward_pre_hook(gather)
    tokens = 0
    with torch.no_grad():
        for batch in evaluator.quantized_model.calibration_batches():
            loaded.model(batch.input_ids, logits_to_keep=1)
            tokens += batch.input_ids.numel()
    return {name: total / tokens for name, total in moments.items()}


def read_types(file: Path) -> dict[str, tuple[str, int]]:
    """Type and bytes of each tensor; those of norms, float32 in a file, as in a model of 16 bits."""
    from gguf import GGUFReader

    return {
        tensor.name: (
            tensor.tensor_type.name,
            int(tensor.n_bytes if len(tensor.shape) > 1 else 2 * tensor.n_elements),
        )
        for tensor in GGUFReader(file).tensors
    }


def list_tensor_names(evaluator: QuantizedLoRAEvaluator) -> list[str]:
    """The tensor of each group of the space."""
    translate_name = make_tensor_namer(evaluator.quantized_model.model.config)
    return [f"{translate_name(group.linears[0].name)}.weight" for group in evaluator.space.groups]


def list_plan_types(evaluator: QuantizedLoRAEvaluator, plan: Plan) -> dict[str, str]:
    return dict(zip(list_tensor_names(evaluator), map(str, plan.bits), strict=True))


def copy_types(evaluator: QuantizedLoRAEvaluator, types: dict[str, tuple[str, int]]) -> Plan:
    """The plan with the types of a file."""
    bits = tuple(types[name][0] for name in list_tensor_names(evaluator))
    return Plan(bits, (0,) * len(bits))


def export(evaluator: QuantizedLoRAEvaluator, plan: Plan, folder: Path) -> Path:
    """Write a plan's file, encoding what the cache lacks."""
    (folder / "base").mkdir()
    evaluator.write_base(plan, folder / "base")
    plugins.load("exporters", "gguf")().export(folder / "base", folder / "export")
    return folder / "export" / MODEL_FILE


def compare(
    logits: Sequence[Tensor], wanted: Sequence[Tensor], rows: Sequence[Sequence[int]]
) -> dict[str, Any]:
    """Divergence from the wanted distribution, nats a token, and perplexity; sums of rows for intervals."""
    divergences, nats, tokens = [], [], []
    for own, other, ids in zip(logits, wanted, rows, strict=True):
        mine, theirs = own.log_softmax(-1), other.log_softmax(-1)
        divergences.append(float(F.kl_div(mine, theirs, reduction="sum", log_target=True)))
        nats.append(float(F.nll_loss(mine[:-1], torch.tensor(ids[1:]), reduction="sum")))
        tokens.append(len(ids))
    return {
        "divergence": round(sum(divergences) / sum(tokens), 5),
        "perplexity": round(float(np.exp(sum(nats) / (sum(tokens) - len(tokens)))), 4),
        "row_divergences": [round(value, 4) for value in divergences],
        "row_tokens": tokens,
    }


def make_table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """A line a file; divergences beside those of llama.cpp's mix of the same size, with intervals over rows."""
    mixes = {row["like"]: row for row in rows if row["kind"] == "mix"}
    body = []
    for row in rows:
        cells = [row["like"], row["kind"], f"{row['tensor_bytes'] / MIB:.1f} MiB"]
        for name in ROWS:
            own, other = row[name], mixes[row["like"]][name]
            sides = [np.array([side["row_divergences"]]) for side in (own, other)]
            beside = (
                "" if row["kind"] == "mix" else " ({1:+.0%} [{0:+.0%}, {2:+.0%}])".format(*difference(*sides))
            )
            cells += [f"{own['divergence']:.4f}{beside}", f"{own['perplexity']:.3f}"]
        body.append(cells)
    head = ["size of", "file", "tensors"]
    for name in ROWS:
        head += [f"divergence, {name}", f"perplexity, {name}"]
    return make_markdown_table(head, body)


if __name__ == "__main__":
    main()
