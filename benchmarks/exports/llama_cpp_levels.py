"""A plan of llama.cpp's own types, exported: bytes and numbers of the file, and logits of llama.cpp beside the model's.

    python benchmarks/exports/llama_cpp_levels.py RUN --data DIR --out benchmarks/results/llama_cpp_levels.jsonl

RUN is tuned first if it is not there: on GSM8K, one type after another. The model is computed as it is stored
(bfloat16), and in float32 from weights as llama.cpp decodes them. What makes the difference is found by taking
roundings out (the same numbers in files of float32), and by doing them in torch (`emulated`; see
`llama_cpp_rounding`). Needs llama-cpp-py-sync.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from llama_cpp_py_sync import __llama_cpp_tag__
from llama_cpp_rounding import recast, rounded_inputs
from qra_backends.ggml.types import TYPES as GGML_TYPES
from torch import Tensor, nn

from qra_eval.evaluators.quantized_lora import QuantizedLoRAEvaluator
from qra_eval.export import export, llama_cpp
from qra_eval.export.gguf_files import ADAPTER_FILE, MODEL_FILE
from qra_eval.export.gguf_names import row_order, tensor_namer
from qra_eval.export.tuned import Chosen, TunedRun
from qra_eval.models.embeddings import uninstall_tables
from qra_search.config import QuantizationConfig, SpaceConfig, TaskConfig, TrainingConfig
from qra_search.space.plan import Plan

TYPES = ("Q2_K", "IQ3_XXS", "Q3_K", "IQ4_XS", "IQ4_NL", "Q4_0", "Q5_0")
MARGIN = 0.5
"""Of the likeliest token over the next, in nats: where it is larger, rounding should not change the likeliest token."""
TABLES = ("token_embd.weight", "output.weight")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--model", default="smollm2")
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
        tune(given)
    run = TunedRun(given.run)
    out = given.run / "exports" / "gguf"
    if not (out / MODEL_FILE).is_file():
        export(run, "gguf", out)
    row = {
        "model": Path(given.model).name,
        "llama.cpp": __llama_cpp_tag__,
        "backend": run.plan["backend"],
        **file_facts(run, out / MODEL_FILE),
        **compared(run, out, texts(run, Path(given.data), given.positions)),
    }
    given.out.parent.mkdir(parents=True, exist_ok=True)
    with given.out.open("a") as file:
        file.write(json.dumps(row) + "\n")


def compared(run: TunedRun, out: Path, prompts: list[list[int]]) -> dict[str, Any]:
    """Differences of logits: which model is beside which."""
    found: dict[str, Any] = {}

    def say(name: str, mine: Tensor, theirs: Tensor) -> None:
        found[name] = difference(mine, theirs)
        print(json.dumps({name: found[name]}), flush=True)

    with tempfile.TemporaryDirectory() as holder:
        files = {False: (out / MODEL_FILE, out / ADAPTER_FILE)}
        files[True] = (Path(holder) / MODEL_FILE, Path(holder) / ADAPTER_FILE)

        def engine(*, linears: bool, tables: bool, adapter: bool, cache: int = llama_cpp.F32) -> Tensor:
            """llama.cpp on files where some tensors are in float32."""
            model = Path(holder) / "part.gguf"
            recast(files[False][0], model, lambda name: tables if name in TABLES else linears)
            return torch.cat(llama_cpp.logits(model, files[adapter][1], prompts, cache=cache))

        recast(files[False][1], files[True][1], lambda name: True)
        precise = run_model(run, float32_weight(run))
        float32 = logits(precise, prompts)
        say("engine all in float32 / float32", float32, engine(linears=True, tables=True, adapter=True))
        say("engine but for tables / float32", float32, engine(linears=True, tables=False, adapter=True))
        say("engine but for the adapter / float32", float32, engine(linears=True, tables=True, adapter=False))
        theirs = engine(linears=False, tables=True, adapter=True)
        say("engine but for linears / float32", float32, theirs)
        with rounded_inputs(precise, run, adapter=False, table=False):
            say("engine but for linears / emulated", logits(precise, prompts), theirs)
        theirs = engine(linears=False, tables=False, adapter=False)
        say("engine / float32", float32, theirs)
        with rounded_inputs(precise, run, adapter=True, table=True):
            say("engine / emulated", logits(precise, prompts), theirs)
        say(
            "engine, cache in float16 / engine",
            theirs,
            engine(linears=False, tables=False, adapter=False, cache=llama_cpp.F16),
        )
        del precise
        stored = logits(run_model(run, None), prompts)
        say("engine / as stored", stored, theirs)
        say("float32 / as stored", stored, float32)
    return found


def tune(given: argparse.Namespace) -> None:
    """A plan that has every type, tuned briefly."""
    bits = tuple({GGML_TYPES[name].width for name in given.types})
    evaluator = QuantizedLoRAEvaluator(
        given.model,
        TaskConfig(name="gsm8k", data=given.data),
        quantization=QuantizationConfig(
            backend={"name": "gguf", "types": given.types, "feedback": not given.own},
            embeddings=tuple(sorted(bits)),
            cache=given.cache,
        ),
        space=SpaceConfig(bits=bits, ranks=(8,), granularity="module"),
        training=TrainingConfig(batch_size=4, test_rows=4, sample_answers=0),
    )
    own = [group.bits or evaluator.space.bits for group in evaluator.space.groups]
    ranks = tuple(0 if group.is_embedding else 8 for group in evaluator.space.groups)
    plan = Plan(tuple(names[i % len(names)] for i, names in enumerate(own)), ranks)
    evaluator.tune(plan, steps=given.steps, folder=given.run)
    evaluator.close()


def file_facts(run: TunedRun, file: Path) -> dict[str, Any]:
    """Whether the file's tensors are the run's, by gguf's own decoder, and what they take."""
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(file).tensors}
    name_of, equal, searched = tensor_namer(run.config), 0, 0
    levels = {group["name"]: group["bits"] for group in run.plan["groups"]}
    weights = {linear.name: float32_weight(run)(linear) for linear in run.linears}
    tables: dict[str, Any] = dict(run.tables)
    weights |= {name: table.dequantize(torch.float32) for name, table in tables.items()}
    group_of = {linear.name: linear.group for linear in run.linears} | {name: name for name in tables}
    for name, weight in weights.items():
        tensor = tensors[f"{name_of(name)}.weight"]
        order = row_order(run.config, name, len(weight))
        weight = weight if order is None else weight[order]
        decoded = gguf.dequantize(tensor.data, tensor.tensor_type)
        equal += bool(np.array_equal(decoded.view(np.int32), weight.numpy().view(np.int32)))
        searched += int(tensor.n_bytes)
    return {
        "types": dict(Counter(levels[group] for group in group_of.values())),
        "searched_tensors": len(weights),
        "equal_to_the_bit": equal,
        "searched_bytes_in_the_file": searched,
        "searched_bytes_of_the_plan": sum(
            run.backend.storage(levels[group_of[name]]).bytes(*weight.shape) for name, weight in weights.items()
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
    model = run.with_weights(run.weight)
    uninstall_tables(model.get_base_model())
    model.float()
    ends = model.get_input_embeddings(), model.get_output_embeddings()
    tables: list[Any] = list(run.tables.values())
    for end, table in zip(ends, tables if len(tables) == 2 else tables * 2, strict=bool(tables)):
        end.weight = nn.Parameter(table.dequantize(torch.float32), requires_grad=False)
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
    """Figures of both, over all positions; the margin is that of `mine`."""
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
