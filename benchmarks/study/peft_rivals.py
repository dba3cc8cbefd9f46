"""PEFT's AdaLoRA and DoRA, tuned on the same rows, for as many steps, as the study's other final tunings.

AdaLoRA starts at one and a half times the rank and prunes to it on average; DoRA trains a scale for each row of a
weight as well. The base is the plan's dequantized weights in dense linears: the same numbers, whatever the bit-width.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from qra_eval.evaluators.quantized_lora import QuantizedLoRAEvaluator
from qra_eval.tasks.batches import Batch
from qra_eval.tasks.encoding import IGNORED
from qra_eval.tuning.training import Trained, rate_at


def adalora(evaluator: QuantizedLoRAEvaluator, bits: int, rank: int, seed: int) -> tuple[Any, Trained]:
    """A dense copy of the model at `bits`, tuned by AdaLoRA under the evaluator's settings."""
    from peft import AdaLoraConfig

    batches = evaluator.workbench.batches(evaluator.workbench.finetune.steps, seed)
    steps = len(batches)
    config = AdaLoraConfig(
        init_r=rank + rank // 2, target_r=rank, **shared(evaluator),
        tinit=max(1, steps // 6), tfinal=max(1, steps // 3), deltaT=1, total_step=steps,
    )  # fmt: skip
    # The model adds AdaLoRA's orthogonal regularisation to the loss that it computes from labels.
    return tune(evaluator, bits, config, batches, seed, lambda model, step: model.base_model.update_and_allocate(step))


def dora(evaluator: QuantizedLoRAEvaluator, bits: int, rank: int, seed: int) -> tuple[Any, Trained]:
    """A dense copy of the model at `bits`, tuned by DoRA on the rows that a seed draws."""
    from peft import LoraConfig

    batches = evaluator.workbench.final_batches(evaluator.workbench.finetune.steps, seed)
    return tune(evaluator, bits, LoraConfig(r=rank, use_dora=True, **shared(evaluator)), batches, seed)


def shared(evaluator: QuantizedLoRAEvaluator) -> dict[str, Any]:
    """What both are told alike."""
    settings = evaluator.quantized.settings
    return {
        "lora_alpha": settings.alpha,
        "lora_dropout": settings.dropout,
        "target_modules": list(evaluator.quantized.wrapped),
        "task_type": "CAUSAL_LM",
    }


def tune(
    evaluator: QuantizedLoRAEvaluator,
    bits: int,
    config: Any,
    batches: Sequence[Batch],
    seed: int,
    stepped: Callable[[Any, int], None] = lambda model, step: None,
) -> tuple[Any, Trained]:
    """A dense copy of the model at `bits`, tuned by what a configuration of PEFT says.

    Args:
        stepped: called with the model and the step's number after each step.
    """
    from peft import get_peft_model

    from qra_eval.models.load import load_model

    settings, steps = evaluator.quantized.settings, len(batches)
    base = load_model(evaluator.quantized.loaded.spec, dtype=evaluator.quantized.compute).model
    for name in evaluator.quantized.wrapped:
        linear = base.get_submodule(name)
        linear.weight.data = evaluator.quantized.bank.weight(name, bits).to(evaluator.quantized.compute).clone()
    torch.manual_seed(seed)
    model = get_peft_model(base, config)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=settings.learning_rate, weight_decay=0.0)
    model.train()
    start, tokens, losses = time.perf_counter(), 0, []
    for step, batch in enumerate(batches):
        batch = batch.to(evaluator.workbench.device)
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * rate_at(step, steps, settings.warmup)
        labels = torch.full_like(batch.input_ids, IGNORED)
        labels.view(-1)[batch.positions + 1] = batch.targets
        loss = model(input_ids=batch.input_ids, labels=labels, use_cache=False).loss
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        stepped(model, step)
        optimizer.zero_grad(set_to_none=True)
        losses.append(float(loss.detach()))
        tokens += batch.tokens
    model.eval()
    tail = losses[-max(1, steps // 4) :]
    seconds = time.perf_counter() - start
    return model, Trained(sum(tail) / len(tail), tokens, seconds, seconds)
