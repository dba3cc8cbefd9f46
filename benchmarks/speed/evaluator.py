"""Times the real evaluator: bank, swap, share of overhead, tokens a second beside Trainer + PEFT and bare products.

Everything is measured in one run, side by side and in turn, since machines are shared and noisy: read the ratios.

    python -m benchmarks.speed.evaluator --task gsm8k --data DIR
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.common import RESULTS, append_lines, find_commit
from qra_eval.evaluators.quantized_lora import QuantizedLoRAEvaluator
from qra_eval.quantized import adapters
from qra_eval.tasks.batches import Batch, schedule_batches
from qra_eval.tasks.encoding import Encoded
from qra_search import Plan

BITS = 3
RANK = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--task", default="gsm8k")
    parser.add_argument("--data")
    parser.add_argument("--backend", default="mixed")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument(
        "--stored", action="store_true", help="only tokens a second in trellis codes, beside nf4's"
    )
    parser.add_argument("--out", type=Path, default=RESULTS / "evaluator.jsonl")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    head = {
        "commit": find_commit(),
        "torch": torch.__version__,
        "threads": options.threads,
        "model": options.model,
    }
    head |= {"task": options.task, "backend": options.backend, "steps": options.steps}
    with tempfile.TemporaryDirectory() as cold:
        for row in [time_stored(options)] if options.stored else times(options, cold):
            print(json.dumps(row))
            append_lines(options.out, head | row)


def times(options: argparse.Namespace, cold: str) -> Iterator[dict[str, Any]]:
    yield time_bank(options, cold)
    evaluator = build(options, None)
    yield from (time_swap(evaluator), time_share(evaluator))
    yield time_throughput(evaluator, options)


def build(
    options: argparse.Namespace,
    cache: str | None,
    progress: Any = None,
    backend: str | None = None,
    **sections: Any,
) -> QuantizedLoRAEvaluator:
    config = {
        "model": {"name": options.model},
        "task": {"name": options.task, "data": options.data},
        "quantization": {"backend": backend or options.backend, "embeddings": 16, "cache": cache},
        "training": {"batch_size": 8},
        "evaluation": {"steps": options.steps, "validation_rows": 16},
        **sections,
    }
    return QuantizedLoRAEvaluator(config, progress=progress)


def time_bank(options: argparse.Namespace, folder: str) -> dict:
    """Seconds to quantize every linear at one bit-width, and to open the bank again."""
    marks: list[tuple[str, float]] = []
    start = time.perf_counter()
    evaluator = build(
        options, folder, progress=lambda stage, done, total: marks.append((stage, time.perf_counter()))
    )
    bank = evaluator.quantized_model.bank
    evaluator.tuner.switcher.quantize_plan(evaluator.space.uniform(BITS, RANK))
    cold = {}
    for stage in dict.fromkeys(stage for stage, _ in marks):
        times = [t for s, t in marks if s == stage]
        cold[stage] = times[-1] - times[0]
    began = time.perf_counter()
    bank.__class__(bank.linears, bank.backend, folder, bank.fingerprint, layers=bank.layer_of)
    return {
        "what": "bank",
        "cold_seconds": cold,
        "all_seconds": began - start,
        "open_seconds": time.perf_counter() - began,
        "bytes": sum(p.stat().st_size for p in Path(folder).glob("*.safetensors")),
    }


def time_swap(evaluator: QuantizedLoRAEvaluator, repeats: int = 20) -> dict:
    """Milliseconds to put another plan in place, once every weight was dequantized."""
    space = evaluator.space
    rng = random.Random(0)
    for bits in space.bits:
        evaluator.tuner.switcher.put_plan(space.uniform(bits, space.ranks[0]), 0)
    whole = []
    for _ in range(repeats):
        plan = Plan(*(tuple(rng.choices(some, k=len(space))) for some in (space.bits, space.ranks)))
        start = time.perf_counter()
        evaluator.tuner.switcher.put_plan(plan, 0)
        whole.append(time.perf_counter() - start)
    return {
        "what": "swap",
        "groups": len(space),
        "with_adapters_ms": 1e3 * statistics.median(whole),
    }


def time_share(evaluator: QuantizedLoRAEvaluator) -> dict:
    """Seconds of an evaluation, and of the pause between two."""
    plan = evaluator.space.uniform(BITS, RANK)
    evaluator.evaluate(plan)
    start = time.perf_counter()
    done = [evaluator.evaluate(evaluator.space.uniform(b, RANK)) for b in (3, 4, 3)]
    wall = time.perf_counter() - start
    inside = sum(e.seconds for e in done)
    return {
        "what": "share",
        "evaluation_seconds": statistics.median(e.seconds for e in done),
        "between_seconds": (wall - inside) / len(done),
    }


def time_stored(options: argparse.Namespace) -> dict[str, Any]:
    """Tokens a second of training by how weights are stored, over those of nf4: kept dequantized, then decoded at each
    use in bfloat16; in turn."""
    row: dict[str, Any] = {"what": "stored", "tokens_per_second": {}, "over_nf4": {}}
    for room in ("auto", 0):
        backends = {"trellis": ("mixed-calibrated", (2, 4)), "nf4": ("bitsandbytes-nf4", (4,))}
        made = {
            f"{name} {bits}-bit": (
                build(
                    options,
                    None,
                    backend=backend,
                    space={"bits": widths},
                    model={"name": options.model, "dequantized_cache": room},
                ),
                bits,
            )
            for name, (backend, widths) in backends.items()
            for bits in widths
        }
        rates: dict[str, list[float]] = {name: [] for name in made}
        for _ in range(options.repeats):
            for name, (evaluator, bits) in made.items():
                evaluator.tuner.switcher.put_plan(evaluator.space.uniform(bits, RANK), 0)
                trained = evaluator.tuner.train(options.steps, 0)
                rates[name].append(trained.tokens / trained.seconds)
        where = "kept" if room else "decoded"
        nf4 = rates["nf4 4-bit"]
        row["tokens_per_second"][where] = {
            name: round(statistics.median(some), 1) for name, some in rates.items()
        }
        row["over_nf4"][where] = {
            name: round(statistics.median(a / b for a, b in zip(some, nf4, strict=True)), 3)
            for name, some in rates.items()
        }
    return row


def time_throughput(evaluator: QuantizedLoRAEvaluator, options: argparse.Namespace) -> dict:
    """Tokens a second of training: ours, Trainer + PEFT, and the bare products of the same shapes; in turn."""
    plan = evaluator.space.uniform(BITS, RANK)
    examples = evaluator.rows("train", options.steps * 8)
    batches = schedule_batches(examples, options.steps, 8, 0)
    theirs = peft_trainer(evaluator, examples, options.steps)
    compute = str(evaluator.quantized_model.compute).removeprefix("torch.")
    rates: dict[str, list[float]] = {"qra": [], "trainer_peft": []}
    for _ in range(options.repeats):
        evaluator.tuner.switcher.put_plan(plan, 0)
        trained = evaluator.tuner.train(options.steps, 0)
        rates["qra"].append(trained.tokens / trained.seconds)
        rates["trainer_peft"].append(theirs())
        for dtype in {evaluator.quantized_model.compute, torch.bfloat16}:
            name = str(dtype).removeprefix("torch.")
            for kind, attention in (("linears", False), ("linears_and_attention", True)):
                speed = products(evaluator, batches, dtype, attention=attention)
                rates.setdefault(f"bare_{name}_{kind}", []).append(speed)
    return {
        "what": "throughput",
        "compute": compute,
        "tokens_per_second": {name: statistics.median(some) for name, some in rates.items()},
        "qra_over": {
            name: statistics.median(a / b for a, b in zip(rates["qra"], some, strict=True))
            for name, some in rates.items()
            if name != "qra"
        },
    }


def peft_trainer(evaluator: QuantizedLoRAEvaluator, rows: list[Encoded], steps: int):
    """A function that trains with transformers' Trainer and PEFT on a fresh 3-bit base, and gives tokens a second."""
    import transformers
    from peft import LoraConfig, get_peft_model

    from qra_eval.models.linears import find_linears
    from qra_eval.models.load import load_model

    transformers.logging.set_verbosity_error()
    model = load_model(evaluator.quantized_model.loaded.spec, dtype=evaluator.quantized_model.dtype).model
    evaluator.tuner.switcher.quantize_plan(evaluator.space.uniform(BITS, RANK))
    for found in find_linears(model):
        model.set_submodule(found.name, evaluator.quantized_model.bank.load_module(found.name, BITS))
    names = list(evaluator.tuner.switcher.wrapped)
    peft_model = get_peft_model(
        model,
        LoraConfig(
            r=RANK, lora_alpha=evaluator.tuner.settings.alpha, target_modules=names, task_type="CAUSAL_LM"
        ),
    )
    data = [
        {"input_ids": r.input_ids, "labels": r.labels, "attention_mask": torch.ones_like(r.input_ids)}
        for r in rows
    ]

    def collate(some: list[dict]) -> dict:
        pad = lambda key, value: nn.utils.rnn.pad_sequence([s[key] for s in some], True, value)  # noqa: E731
        return {
            "input_ids": pad("input_ids", 0),
            "labels": pad("labels", -100),
            "attention_mask": pad("attention_mask", 0),
        }

    def run() -> float:
        with tempfile.TemporaryDirectory() as folder:
            trainer = transformers.Trainer(
                model=peft_model,
                args=transformers.TrainingArguments(
                    folder,
                    per_device_train_batch_size=8,
                    max_steps=steps,
                    learning_rate=evaluator.quantized_model.settings.rate,
                    report_to=[],
                    save_strategy="no",
                    disable_tqdm=True,
                    logging_steps=10**6,
                    use_cpu=evaluator.tuner.device.type == "cpu",
                    dataloader_pin_memory=False,
                ),
                train_dataset=data,
                data_collator=collate,
            )
            start = time.perf_counter()
            trainer.train()
            return sum(len(r) for r in rows) / (time.perf_counter() - start)

    return run


@torch.no_grad()
def products(
    evaluator: QuantizedLoRAEvaluator, batches: list[Batch], dtype: torch.dtype, *, attention: bool
) -> float:
    """Tokens a second if a step were nothing but its matrix products: frozen weights and adapters, forward and back,
    the head at labelled positions and, where asked for, those of attention (two forward, four back)."""
    evaluator.tuner.switcher.put_plan(evaluator.space.uniform(BITS, RANK), 0)
    head = evaluator.tuner.model.get_output_embeddings().weight.to(dtype)
    some = [
        (w.frozen.to(dtype), w.lora_A.to(dtype), w.lora_B.to(dtype))
        for w in evaluator.tuner.switcher.wrapped.values()
        if isinstance(w, adapters.AdaptedLinear) and w.lora_A is not None
    ]
    config = evaluator.tuner.model.config
    heads, layers = config.num_attention_heads, config.num_hidden_layers
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    start = time.perf_counter()
    for batch in batches:
        n = batch.input_ids.numel()
        xs = {w.shape[1]: torch.zeros(n, w.shape[1], dtype=dtype) for w, _, _ in some}
        gs = {w.shape[0]: torch.zeros(n, w.shape[0], dtype=dtype) for w, _, _ in some}
        for weight, A, B in some:
            x, g = xs[weight.shape[1]], gs[weight.shape[0]]
            x @ weight.T
            z = x @ A.T
            z @ B.T
            g @ weight
            dz = g @ B
            g.T @ z
            dz.T @ x
            dz @ A
        hidden = torch.zeros(len(batch.positions), head.shape[1], dtype=dtype)
        (hidden @ head.T) @ head
        if attention:
            rows, length = batch.input_ids.shape
            q = torch.zeros(rows * heads, length, width, dtype=dtype)
            for _ in range(layers):
                scores = q @ q.transpose(1, 2)
                scores @ q
                scores @ q, scores.transpose(1, 2) @ q  # noqa: B018
                q @ q.transpose(1, 2), scores.transpose(1, 2) @ q  # noqa: B018
    return sum(b.tokens for b in batches) / (time.perf_counter() - start)


if __name__ == "__main__":
    main()
