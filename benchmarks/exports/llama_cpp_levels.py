"""A plan of llama.cpp's own types, exported: bytes and numbers of the file, and logits of llama.cpp beside the model's.

    python benchmarks/exports/llama_cpp_levels.py RUN --data DIR --out benchmarks/results/llama_cpp_levels.jsonl

RUN is tuned first if it is not there: SmolLM2 on GSM8K, one type after another. The model is computed as it is stored
(bfloat16), and in float32 from weights as llama.cpp decodes them. llama.cpp's CPU kernels round the inputs of quantized
products to 8 bits in blocks; `float_path` is what is left without that: the same weights in a file of float32, beside
the same model in float32. Needs llama-cpp-py-sync.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from llama_cpp_py_sync import __llama_cpp_tag__
from qra_backends.ggml.types import TYPES as GGML_TYPES
from torch import Tensor, nn

from qra_eval.evaluators.quantized_lora import QuantizedLoRAEvaluator
from qra_eval.export import export, llama_cpp
from qra_eval.export.gguf import GGUFExporter
from qra_eval.export.gguf_files import ADAPTER_FILE, MODEL_FILE
from qra_eval.export.gguf_names import row_order, tensor_namer
from qra_eval.export.tuned import Chosen, TunedRun
from qra_search.config import QuantizationConfig, SpaceConfig, TaskConfig, TrainingConfig
from qra_search.space.plan import Plan

TYPES = ("Q2_K", "IQ3_XXS", "Q3_K", "IQ4_XS", "IQ4_NL", "Q4_0", "Q5_0")
MARGIN = 0.5
"""Of the likeliest token over the next, in nats: where it is larger, rounding should not change the likeliest token."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--data", required=True)
    parser.add_argument("--positions", type=int, default=2000)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--cache", default=None, help="folder of the bank of quantized weights")
    parser.add_argument("--types", nargs="*", default=list(TYPES))
    parser.add_argument("--own", action="store_true", help="with llama.cpp's own codes instead of those by feedback")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/llama_cpp_levels.jsonl"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    if not (given.run / "plan.json").is_file():
        tune(given.run, given.data, given.cache, given.steps, given.types, not given.own)
    run = TunedRun(given.run)
    out = given.run / "exports" / "gguf"
    if not (out / MODEL_FILE).is_file():
        export(run, "gguf", out)
    prompts = texts(run, Path(given.data), given.positions)
    row = {"llama.cpp": __llama_cpp_tag__, "backend": run.plan["backend"], **file_facts(run, out / MODEL_FILE)}
    plain = given.run / "exports" / "float32.gguf"
    if not plain.is_file():
        GGUFExporter(weights="f32").write_model(run, plain)
    for name, file, model in (
        ("float_path", plain, lambda: run_model(run, run.weight)),
        ("in_float32", out / MODEL_FILE, lambda: run_model(run, float32_weight(run))),
        ("as_stored", out / MODEL_FILE, lambda: run_model(run, None)),
    ):
        theirs = torch.cat(llama_cpp.logits(file, out / ADAPTER_FILE, prompts))
        row[name] = difference(logits(model(), prompts), theirs)
        print(json.dumps({name: row[name]}), flush=True)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(row) + "\n")


def tune(folder: Path, data: str, cache: str | None, steps: int, types: list[str], feedback: bool) -> None:
    """A plan that has every type, tuned briefly."""
    bits = tuple({GGML_TYPES[name].width for name in types})
    evaluator = QuantizedLoRAEvaluator(
        "smollm2",
        TaskConfig(name="gsm8k", data=data),
        quantization=QuantizationConfig(backend={"name": "gguf", "types": types, "feedback": feedback}, cache=cache),
        space=SpaceConfig(bits=bits, ranks=(8,), granularity="module"),
        training=TrainingConfig(batch_size=4, test_rows=4),
    )
    own = [group.bits or evaluator.space.bits for group in evaluator.space.groups]
    plan = Plan(tuple(names[i % len(names)] for i, names in enumerate(own)), (8,) * len(own))
    evaluator.tune(plan, steps=steps, folder=folder)
    evaluator.close()


def file_facts(run: TunedRun, file: Path) -> dict[str, Any]:
    """Whether the file's tensors are the run's, by gguf's own decoder, and what they take."""
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(file).tensors}
    name_of, equal, searched = tensor_namer(run.config), 0, 0
    levels = {group["name"]: group["bits"] for group in run.plan["groups"]}
    for linear in run.linears:
        tensor = tensors[f"{name_of(linear.name)}.weight"]
        weight = float32_weight(run)(linear)
        order = row_order(run.config, linear.name, linear.out_features)
        weight = weight if order is None else weight[order]
        decoded = gguf.dequantize(tensor.data, tensor.tensor_type)
        equal += bool(np.array_equal(decoded.view(np.int32), weight.numpy().view(np.int32)))
        searched += int(tensor.n_bytes)
    return {
        "linears": len(run.linears),
        "equal_to_the_bit": equal,
        "searched_bytes_in_the_file": searched,
        "searched_bytes_of_the_plan": sum(
            run.backend.storage(levels[m.group]).bytes(m.out_features, m.in_features) for m in run.linears
        ),
        "bytes_of_all_tensors": int(sum(tensor.n_bytes for tensor in tensors.values())),
        "bytes_of_the_file": file.stat().st_size,
    }


def texts(run: TunedRun, data: Path, positions: int) -> list[list[int]]:
    """Token ids of test problems with their answers, so many in all."""
    prompts: list[list[int]] = []
    for line in (data / "gsm8k_test.jsonl").read_text().splitlines():
        row = json.loads(line)
        ids = run.tokenizer(f"{row['question']} {row['answer']}", add_special_tokens=False)["input_ids"]
        prompts.append(ids[: positions - sum(map(len, prompts))])
        if sum(map(len, prompts)) >= positions:
            break
    return prompts


def float32_weight(run: TunedRun) -> Callable[[Chosen], Tensor]:
    """The weights as they are decoded, without the rounding to the model's dtype."""

    def weight(linear: Chosen) -> Tensor:
        module: Any = run.module(linear.name)
        return module.dequantize(torch.float32)

    return weight


def run_model(run: TunedRun, weight: Callable[[Chosen], Tensor] | None) -> Any:
    """The tuned model as it is stored, or in float32 with other weights in the searched linears."""
    if weight is None:
        return run.with_weights(run.weight)
    model = run.with_weights(run.weight).float()
    for linear in run.linears:
        module = model.get_submodule(f"base_model.model.{linear.name}")
        getattr(module, "base_layer", module).weight = nn.Parameter(weight(linear), requires_grad=False)
    return model


@torch.no_grad()
def logits(model: Any, prompts: list[list[int]]) -> Tensor:
    model.eval()
    found = (model(input_ids=torch.tensor([prompt]), use_cache=False).logits[0].float() for prompt in prompts)
    return torch.cat(list(found))


def difference(mine: Tensor, theirs: Tensor) -> dict[str, float]:
    """Figures of both, over all positions."""
    theirs = theirs[:, : mine.shape[1]]
    gap, same = (mine - theirs).abs(), mine.argmax(-1) == theirs.argmax(-1)
    first, second = mine.topk(2, dim=-1).values.T
    clear = first - second > MARGIN
    return {
        "largest_logit_difference": round(float(gap.max()), 4),
        "mean_logit_difference": round(float(gap.mean()), 5),
        "largest_logit": round(float(mine.abs().max()), 2),
        "positions": len(mine),
        "same_next_token": round(float(same.float().mean()), 4),
        f"same_where_the_margin_is_above_{MARGIN}": round(float(same[clear].float().mean()), 4),
        "share_with_such_a_margin": round(float(clear.float().mean()), 4),
    }


if __name__ == "__main__":
    main()
