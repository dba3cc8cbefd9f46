"""QLoRA as it is usually done: transformers loads in nf4 by bitsandbytes, PEFT adds adapters, `Trainer` tunes them.

Nothing of ours but the rows, their batches, and the learning rate of each step, which are those of all other rows.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit
from bitsandbytes.nn import modules as bnb
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, Trainer, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from qra_eval.evaluators.quantized_lora import QuantizedLoRAEvaluator
from qra_eval.models.attention import use_fast_attention
from qra_eval.models.loaded import make_input_contiguous
from qra_eval.tasks.batches import Batch
from qra_eval.tasks.encoding import IGNORED
from qra_eval.tuning.training import schedule_rate


def tune_qlora(evaluator: QuantizedLoRAEvaluator, seed: int, rank: int, checkpoints: Path) -> Any:
    """A tuned model.

    Args:
        evaluator: its rows, settings and linears are used, and its model, before a plan was put in place.
        checkpoints: folder in which `Trainer` writes a checkpoint every 50 steps; it resumes from the last one there.
    """
    tuner, settings = evaluator.tuner, evaluator.tuner.settings
    adapter = LoraConfig(
        r=rank,
        lora_alpha=settings.alpha,  # type: ignore[arg-type]
        lora_dropout=settings.dropout,
        target_modules=sorted({name.rpartition(".")[2] for name in evaluator.quantized_model.linears}),
        task_type="CAUSAL_LM",
    )
    steps = tuner.finetune.steps
    torch.manual_seed(seed)
    base = load_in_nf4(evaluator)
    base = prepare_model_for_kbit_training(base, use_gradient_checkpointing=settings.gradient_checkpointing)
    model: Any = get_peft_model(base, adapter)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=settings.rate, weight_decay=settings.weight_decay)
    rates = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: schedule_rate(step, steps, settings.warmup)
    )
    arguments = TrainingArguments(
        output_dir=str(checkpoints),
        max_steps=steps,
        per_device_train_batch_size=1,
        train_sampling_strategy="sequential",
        save_steps=50,
        save_total_limit=1,
        report_to="none",
        use_cpu=tuner.device.type == "cpu",
        disable_tqdm=True,
        remove_unused_columns=False,
        seed=seed,
    )
    trainer = Trainer(
        model,
        arguments,
        data_collator=lambda items: items[0],  # an item is a whole batch
        train_dataset=[label_batch(batch) for batch in tuner.get_final_batches(steps, seed)],  # type: ignore[arg-type]
        optimizers=(optimizer, rates),
    )
    trainer.train(resume_from_checkpoint=get_last_checkpoint(str(checkpoints)))
    return model.eval()


def load_in_nf4(evaluator: QuantizedLoRAEvaluator) -> Any:
    """The model, written to a folder and loaded from there in nf4 with double quantization, in blocks of 64."""
    # On a CPU with AVX512-BF16 bitsandbytes repacks weights when a model is evaluated, and then trains it no more.
    bnb.has_avx512bf16 = lambda: False
    compute = evaluator.quantized_model.compute
    nf4 = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute,
    )
    with tempfile.TemporaryDirectory() as work:
        evaluator.tuner.model.save_pretrained(work)
        return AutoModelForCausalLM.from_pretrained(work, quantization_config=nf4, dtype=compute)


def label_batch(batch: Batch) -> dict[str, Tensor]:
    """A batch as transformers takes it: ids (N, T), and labels (N, T), `IGNORED` at tokens that have none."""
    labels = torch.full_like(batch.input_ids, IGNORED)
    labels.view(-1)[batch.positions + 1] = batch.targets
    return {"input_ids": batch.input_ids, "labels": labels}


def dequantize_model(model: Any, dtype: torch.dtype) -> Any:
    """The same model with every weight dequantized once, for generation, and parameters of a dtype.

    Attention is by plain products: torch's kernel repeats the keys of padded batches, a dozen times as slow on a CPU.
    """
    for name, module in list(model.named_modules()):
        if isinstance(module, Linear4bit):
            weight = dequantize_4bit(module.weight.data, module.weight.quant_state)
            linear = nn.Linear(weight.shape[1], weight.shape[0], bias=module.bias is not None, device="meta")
            linear.weight = nn.Parameter(weight, requires_grad=False)
            linear.bias = module.bias
            model.set_submodule(name, linear)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    model.get_output_embeddings().register_forward_pre_hook(make_input_contiguous)
    use_fast_attention(model)
    return model.eval()
