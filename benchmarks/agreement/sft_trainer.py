"""The same chat file by TRL's SFTTrainer and by our full tuning on a uniform nf4 plan: rows, labels and first loss.

    python -m benchmarks.agreement.sft_trainer --model smollm2

Needs `trl`, which this project does not: pip install trl. Conversations of one to three exchanges, some with a system
turn, are written as `messages`. Token ids and labels are compared row by row: with the model's own chat template, from
which answers are told by rendering turn by turn, and with one that marks them, as TRL needs it. Then both tune uniform
nf4 with rank 8 on the same first batch, and their losses of the first step are compared.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import RESULTS, append_lines, find_commit
from qra_eval.evaluators.quantized_lora import QuantizedLoRAEvaluator
from qra_eval.models.load import load_model
from qra_eval.tasks import make_task

MARKED = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}"
    "{{ '<|im_start|>system\\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\\n' }}"
    "{% endif %}{{ '<|im_start|>' + message['role'] + '\\n' }}{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""SmolLM2's own template, with its answers marked."""
LENGTH = 512


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--chats", type=int, default=60)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--cache", help="folder of the bank; default: a temporary one")
    parser.add_argument("--out", type=Path, default=RESULTS / "trl_agreement.jsonl")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        row = compare(options, Path(temporary))
    print(json.dumps(row, indent=1))
    append_lines(options.out, row)
    raise SystemExit(0 if row["rows_equal"] == row["rows"] and row["loss_difference"] < 1e-3 else 1)


def compare(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Rows and first losses by both."""
    import trl

    data = folder / "chats.jsonl"
    chats = conversations(options.chats)
    data.write_text("".join(json.dumps({"messages": turns}) + "\n" for turns in chats))
    model = saved(options.model, folder / "model")
    cache = options.cache or str(folder / "bank")
    evaluator = QuantizedLoRAEvaluator(
        {
            "model": {"name": str(model), "dtype": "float32", "compute": "float32"},
            "task": {"name": str(data)},
            "quantization": {"backend": "bitsandbytes", "embeddings": 16, "cache": cache},
            "space": {"bits": (4,), "ranks": (8,)},
            "training": {"batch_size": options.batch_size, "max_length": LENGTH},
            "evaluation": {"validation_rows": 4},
            "finetune": {"test_rows": 4},
        }
    )
    bench, told = evaluator.tuner, []
    evaluator.tune(
        evaluator.space.uniform(4, 8), steps=2, on_step=lambda step, figures: told.append(figures["loss"])
    )
    ours = {as_key(row): row for split in ("train", "validation", "test") for row in bench.rows(split, 10**6)}
    batch = [tuple(ids.tolist()) for ids in bench.get_final_batches(2, 0)[0].input_ids]
    trainer = sft(model, chats, folder)
    theirs = [trainer.data_collator([row]) for row in trainer.train_dataset]
    flat = [(tuple(t["input_ids"][0].tolist()), tuple(t["labels"][0].tolist())) for t in theirs]
    first = [
        turns
        for turns, (ids, _) in zip(chats, flat, strict=True)
        if any(known[: len(ids)] == ids and not any(known[len(ids) :]) for known in batch)
    ]
    assert len(first) == options.batch_size
    stepping = sft(model, first, folder, batch_size=options.batch_size, rank=8)
    stepping.train()
    their_loss = next(entry["loss"] for entry in stepping.state.log_history if "loss" in entry)
    plain = make_task(str(data))
    own = load_model(options.model).tokenizer
    turn_by_turn = {
        as_key(r) for s in ("train", "validation", "test") for r in plain.encode(plain.split(s), own, LENGTH)
    }
    return {
        "commit": find_commit(),
        "trl": trl.__version__,
        "model": options.model,
        "rows": len(flat),
        "rows_equal": sum(key in ours for key in flat),
        "rows_equal_by_the_models_own_template": sum(key in turn_by_turn for key in flat),
        "labelled_tokens": sum(label >= 0 for _, labels in flat for label in labels),
        "tokens": sum(len(ids) for ids, _ in flat),
        "first_loss_qra": told[0],
        "first_loss_trl": their_loss,
        "loss_difference": abs(told[0] - their_loss),
    }


def as_key(row: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return tuple(row.input_ids.tolist()), tuple(row.labels.tolist())


def conversations(count: int) -> list[list[dict[str, str]]]:
    """Chats about sums, of one to three exchanges, every other one with a system turn."""
    draw = random.Random(0)
    chats = []
    for number in range(count):
        turns = [{"role": "system", "content": "You are terse. Answer with a number."}] if number % 2 else []
        for _ in range(draw.randint(1, 3)):
            a, b = draw.randint(10, 999), draw.randint(10, 999)
            turns.append({"role": "user", "content": f"What is {a} + {b}?"})
            turns.append({"role": "assistant", "content": f"{a} + {b} = {a + b}.\nAnything else?"})
        chats.append(turns)
    return chats


def saved(name: str, folder: Path) -> Path:
    """The model as a folder, its tokenizer with the template that marks answers."""
    loaded = load_model(name, dtype=torch.float32)
    loaded.tokenizer.chat_template = MARKED
    loaded.model.save_pretrained(folder)  # type: ignore[operator]
    loaded.tokenizer.save_pretrained(folder)
    return folder


def sft(
    model: Path, chats: list[list[dict[str, str]]], folder: Path, batch_size: int = 1, rank: int = 8
) -> Any:
    """TRL's trainer on these chats: nf4 by bitsandbytes, LoRA on every linear of the decoder layers."""
    import transformers
    from datasets import Dataset
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer

    nf4 = transformers.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=torch.float32,
        llm_int8_skip_modules=["lm_head"],
    )
    loaded = transformers.AutoModelForCausalLM.from_pretrained(
        model, quantization_config=nf4, dtype=torch.float32
    )
    settings = SFTConfig(
        str(folder / "sft"),
        max_length=LENGTH,
        assistant_only_loss=True,
        max_steps=1,
        logging_steps=1,
        bf16=False,
        per_device_train_batch_size=batch_size,
        report_to=[],
        save_strategy="no",
        use_cpu=not torch.cuda.is_available(),
        gradient_checkpointing=False,
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    return SFTTrainer(
        model=loaded,
        args=settings,
        train_dataset=Dataset.from_list([{"messages": turns} for turns in chats]),
        processing_class=transformers.AutoTokenizer.from_pretrained(model),
        peft_config=LoraConfig(r=rank, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM"),
    )


if __name__ == "__main__":
    main()
