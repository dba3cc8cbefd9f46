"""Trains a Llama of width 256 for some minutes, so that K-quants, whose blocks are 256 weights, can be measured.

    python benchmarks/backends/width_256.py --data DIR --out MODEL

SmolLM2's rows are 576 long, which no K-quant takes. This one has rows of 256 and 768, and a tokenizer of 1,024 pieces
learnt from the same text: the problems and answers of GSM8K's train split. The weights are not committed.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers.models import BPE
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

END = "<|end|>"
LENGTH, BATCH = 192, 16
PEAK_RATE, WARM_UP = 4e-3, 0.05


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=400)
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    lines = (given.data / "gsm8k_train.jsonl").read_text().splitlines()
    texts = [f"{row['question']}\n{row['answer']}" for row in map(json.loads, lines)]
    tokenizer = learnt_tokenizer(texts)
    model = fresh_model(tokenizer)
    stream = [i for ids in tokenizer(texts)["input_ids"] for i in (*ids, tokenizer.eos_token_id)]
    tokens = torch.tensor(stream)[: len(stream) // LENGTH * LENGTH].view(-1, LENGTH)
    print(f"{sum(p.numel() for p in model.parameters())} weights, {tokens.numel()} tokens", flush=True)
    train(model, tokens, given.steps)
    model.to(torch.bfloat16).save_pretrained(given.out)
    tokenizer.save_pretrained(given.out)


def learnt_tokenizer(texts: list[str]) -> Any:
    """Byte-level BPE, digits alone."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1024,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[AddedToken(END, normalized=False, special=True)],
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END, pad_token=END, clean_up_tokenization_spaces=False
    )


def fresh_model(tokenizer: Any) -> Any:
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def train(model: Any, tokens: torch.Tensor, steps: int) -> None:
    """AdamW on rows (N, length) in random order, the rate linear up and then down; products in bfloat16."""
    order = torch.cat([torch.randperm(len(tokens)) for _ in range(1 + steps * BATCH // len(tokens))])
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_RATE, betas=(0.9, 0.95), weight_decay=0.1)
    warm = max(1, round(WARM_UP * steps))
    rate = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warm, (steps - step) / (steps - warm))
    )
    start = time.perf_counter()
    for step in range(steps):
        batch = tokens[order[step * BATCH : (step + 1) * BATCH]]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        rate.step()
        optimizer.zero_grad()
        if (step + 1) % 20 == 0:
            print(f"step {step + 1}: loss {loss.item():.3f}, {time.perf_counter() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
