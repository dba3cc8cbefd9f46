"""QLoRA as people run it: transformers loads in nf4 by bitsandbytes, PEFT adds adapters, `Trainer` tunes them.

Nothing of ours but the rows, their batches, and the rate at each step, which are those of all other rows.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from bitsandbytes.nn import modules as bnb
from peft import LoraConfig, PeftModel, get_peft_model, prepare_model_for_kbit_training
from torch import Tensor
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, Trainer, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from benchmarks.common import PeakWatch
from qra_eval.evaluators.quantized_lora import QuantizedLoRAEvaluator
from qra_eval.tasks.batches import Batch
from qra_eval.tasks.encoding import IGNORED
from qra_eval.tuning.training import rate_at


def qlora(
    made: QuantizedLoRAEvaluator, seed: int, rank: int, folder: Path | None, *, checkpoints: Path | None = None
) -> tuple[Any, dict[str, Any]]:
    """A tuned model, and what came of its tuning.

    Args:
        made: whose rows, settings and linears are taken, and its model, before anything was put in place.
        folder: where the adapter is kept; None: it is not.
        checkpoints: where `Trainer` writes a checkpoint every 50 steps, from the last of which it is resumed.
    """
    bench, settings = made.tuner, made.tuner.settings
    adapter = LoraConfig(
        r=rank,
        lora_alpha=settings.alpha,  # type: ignore[arg-type]
        lora_dropout=settings.dropout,
        target_modules=sorted({name.rpartition(".")[2] for name in made.quantized.linears}),
        task_type="CAUSAL_LM",
    )
    steps = bench.finetune.steps
    batches = bench.final_batches(steps, seed)
    with tempfile.TemporaryDirectory() as work, PeakWatch(0.02) as watch:
        torch.manual_seed(seed)
        base = in_nf4(made)
        base = prepare_model_for_kbit_training(base, use_gradient_checkpointing=settings.gradient_checkpointing)
        model: Any = get_peft_model(base, adapter)
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=settings.learning_rate, weight_decay=settings.weight_decay)
        rates = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: rate_at(step, steps, settings.warmup, settings.schedule)
        )
        arguments = TrainingArguments(
            output_dir=work if checkpoints is None else str(checkpoints),
            max_steps=steps,
            per_device_train_batch_size=1,
            train_sampling_strategy="sequential",
            save_strategy="no" if checkpoints is None else "steps",
            save_steps=50,
            save_total_limit=1,
            report_to="none",
            use_cpu=bench.device.type == "cpu",
            disable_tqdm=True,
            remove_unused_columns=False,
            seed=seed,
        )
        trainer = Trainer(
            model,
            arguments,
            data_collator=lambda some: some[0],  # an item is a whole batch
            train_dataset=[labelled(batch) for batch in batches],  # type: ignore[arg-type]
            optimizers=(optimizer, rates),
        )
        last = None if checkpoints is None else get_last_checkpoint(str(checkpoints))
        loss = trainer.train(resume_from_checkpoint=last).training_loss
    if folder is not None:
        model.save_pretrained(folder)
    return model.eval(), {"peak_bytes": watch.most, "train_loss": round(loss, 5)}


def tuned_qlora(made: QuantizedLoRAEvaluator, folder: Path) -> Any:
    """The tuned model whose adapter is kept in a folder."""
    return PeftModel.from_pretrained(in_nf4(made), str(folder)).eval()


def in_nf4(made: QuantizedLoRAEvaluator) -> Any:
    """The model, written to a folder and loaded from there in nf4 with double quantization, blocks of 64."""
    # On a CPU with AVX512-BF16 bitsandbytes repacks weights when a model is evaluated, and then trains it no more.
    bnb.has_avx512bf16 = lambda: False
    compute = made.quantized.compute
    nf4 = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute,
    )
    with tempfile.TemporaryDirectory() as work:
        made.tuner.model.save_pretrained(work)
        return AutoModelForCausalLM.from_pretrained(work, quantization_config=nf4, dtype=compute)


def labelled(batch: Batch) -> dict[str, Tensor]:
    """A batch as transformers takes it: ids (N, T), and labels (N, T) at the tokens that are to be foretold."""
    labels = torch.full_like(batch.input_ids, IGNORED)
    labels.view(-1)[batch.positions + 1] = batch.targets
    return {"input_ids": batch.input_ids, "labels": labels}
