"""Tokens a second of training: ours beside Trainer + PEFT + bitsandbytes, and beside what matrix products allow.

All on one model and the same rows, so many a step, with adapters of one rank at every linear of the layers.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from benchmarks.gpu_parts.common import make, measured, random_model, seconds, synchronize
from benchmarks.memory.random_models import SHAPES
from qra_eval.tasks.encoding import Encoded
from qra_search.sections import TrainingConfig

RANK = 8
CASES = (
    ("bitsandbytes-nf4", 4, "0"),
    ("bitsandbytes-nf4", 4, "auto"),
    ("reference", 3, "0"),
    ("reference", 3, "auto"),
)
WARM_UP = 2


def rows(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The roof, ours in four ways, theirs; each with tokens a second, and the share of the roof that they are."""
    shape = SHAPES["tiny" if options.small else "1B"]
    steps = 3 if options.small else 16
    training = TrainingConfig(batch_size=4 if options.small else 8, max_length=512)
    sections = {"training": training, "evaluation": {"steps": steps, "validation_rows": 4}}
    model, roof = random_model(options, "1B"), 0.0
    for backend, bits, cache in CASES:
        evaluator = make(
            options, model, backend, sections, bits=(bits,), ranks=(RANK,), dequantized_cache=cache
        )
        if not roof:
            tokens = max(b.input_ids.numel() for b in evaluator.tuner.get_batches(steps, 0))
            rate = gemm_rate(tokens, shape.hidden, shape.intermediate, options.device)
            roof = rate / (
                4 * shape.layers * shape.layer_weights
            )  # a frozen weight: forward, and back to the input
            yield {
                "what": "roof",
                "tflops": rate / 1e12,
                "tokens_per_second": roof,
                "tokens_of_a_step": tokens,
            }
        evaluator.tuner.switcher.put_plan(evaluator.space.uniform(bits, RANK), 0)
        evaluator.tuner.train(WARM_UP, 0)
        with measured(options.device) as found:
            trained = evaluator.tuner.train(steps, 0)
        speed = trained.tokens / found["seconds"]
        yield {
            "what": f"qra {backend} {bits} bits, dequantized cache {cache}",
            "tokens_per_second": speed,
            "of_roof": speed / roof,
            "kept_dequantized": evaluator.quantized_model.keeps_dequantized,
            **found,
        }
        data = evaluator.rows("train", steps * training.batch_size)
        del evaluator
    if options.pretended:  # which libraries of others do not take for a card
        return
    speed, found = peft_and_bitsandbytes(model, data, training, steps, options.device)
    yield {"what": "Trainer + PEFT + nf4", "tokens_per_second": speed, "of_roof": speed / roof, **found}


def gemm_rate(tokens: int, hidden: int, wide: int, device: str) -> float:
    """Operations a second of a bfloat16 product as in a step."""
    x = torch.randn(tokens, hidden, dtype=torch.bfloat16, device=device)
    weight = torch.randn(wide, hidden, dtype=torch.bfloat16, device=device)
    return 2 * tokens * hidden * wide / seconds(lambda: nn.functional.linear(x, weight), device, 10)


def peft_and_bitsandbytes(
    model: str, data: list[Encoded], training: TrainingConfig, steps: int, device: str
) -> tuple[float, dict[str, Any]]:
    """Tokens a second of transformers' Trainer on a 4-bit base, and what it took."""
    import transformers
    from peft import LoraConfig, get_peft_model

    transformers.logging.set_verbosity_error()
    dtype = torch.bfloat16
    four_bits = transformers.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype
    )
    place = torch.device(device)  # Trainer compares indices of devices with its own
    base = transformers.AutoModelForCausalLM.from_pretrained(
        model,
        dtype=dtype,
        quantization_config=four_bits,
        device_map={"": "cpu" if place.type == "cpu" else place.index or 0},
    )
    adapted = get_peft_model(
        base,
        LoraConfig(r=RANK, lora_alpha=training.alpha, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    items = [
        {"input_ids": r.input_ids, "labels": r.labels, "attention_mask": torch.ones_like(r.input_ids)}
        for r in data
    ]

    def padded(some: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        fill = {"input_ids": 0, "labels": -100, "attention_mask": 0}
        return {k: nn.utils.rnn.pad_sequence([s[k] for s in some], True, value) for k, value in fill.items()}

    def run(steps: int) -> float:
        with tempfile.TemporaryDirectory() as folder:
            trainer = transformers.Trainer(
                model=adapted,
                args=transformers.TrainingArguments(
                    folder,
                    per_device_train_batch_size=training.batch_size,
                    max_steps=steps,
                    report_to=[],
                    learning_rate=training.rate,
                    save_strategy="no",
                    disable_tqdm=True,
                    logging_steps=10**6,
                    use_cpu=device == "cpu",
                    bf16=device != "cpu",
                    dataloader_pin_memory=False,
                ),
                train_dataset=items,
                data_collator=padded,
            )
            synchronize(device)
            start = time.perf_counter()
            trainer.train()
            synchronize(device)
            return time.perf_counter() - start

    run(WARM_UP)
    with measured(device) as found:
        taken = run(steps)
    return sum(map(len, data)) / taken, found
