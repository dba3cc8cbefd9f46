"""Small models built in code: a random one, and one that is trained on arithmetic where no other is at hand."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from qra_eval.models.families import HEADS, tiny_config
from qra_eval.models.loaded import STORAGE_DTYPE, LoadedModel, cached_folder, compute_dtype, finish

END, PAD = "<|end|>", "<|pad|>"

RECIPE = {"version": 1, "layers": 2, "hidden": 128, "vocabulary": 640, "steps": 1500, "batch": 32, "rate": 4e-3}
"""Of the trained model, and a part of the name of its cached folder. Under two minutes on two cores: it learns the form
of the answers and to copy the operands into them, and guesses most results."""

TRAINING_ROWS = 30_000

Progress = Callable[[str, int, int], None]


def tiny_model(
    seed: int = 0,
    layers: int = 4,
    hidden: int = 64,
    vocab: int | None = None,
    kind: str = "llama",
    *,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
) -> LoadedModel:
    """A random model with a tokenizer of single bytes; the same for the same arguments.

    Args:
        vocab: rows of the embedding, at least 258; default: 320.
        kind: one of `qra_eval.models.families.FAMILIES`.
    """
    tokenizer = byte_tokenizer()
    model = _build(kind, seed, layers, hidden, vocab or 320, tokenizer).to(dtype or STORAGE_DTYPE)
    return finish(model, tokenizer, "tiny", "tiny", device)


def trained_tiny_model(
    seed: int = 0,
    *,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
    progress: Progress | None = None,
) -> LoadedModel:
    """A small Llama that knows the form of the arithmetic task's answers; trained at the first call, then cached.

    It is trained on problems of its own, none of them a validation or test problem of the task.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    key = "-".join(["tiny", *(str(value) for value in RECIPE.values()), str(seed)])
    folder = cached_folder(key, lambda empty: _train_into(empty, seed, progress))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype or STORAGE_DTYPE, local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    return finish(model, tokenizer, "tiny-trained", "tiny-trained", device)


def byte_tokenizer() -> Any:
    """A tokenizer with a token for each byte, an end and a padding token; encodes and decodes any text exactly."""
    return _tokenizer({}, [])


def word_tokenizer(texts: Iterable[str], size: int) -> Any:
    """Byte-level pairs learned from texts, digits always alone; encodes any text exactly, in `size` tokens."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = _splitter()
    learner.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=size - 2, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
        ),
    )
    state = json.loads(learner.to_str())["model"]
    return _tokenizer(state["vocab"], [tuple(pair) for pair in state["merges"]])


def _tokenizer(vocabulary: dict[str, int], merges: list[tuple[str, str]]) -> Any:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    known = sorted(vocabulary, key=vocabulary.__getitem__) or sorted(pre_tokenizers.ByteLevel.alphabet())
    ids = {token: index for index, token in enumerate([END, PAD, *known])}
    tokenizer = Tokenizer(models.BPE(vocab=ids, merges=merges))
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in (END, PAD)])
    tokenizer.pre_tokenizer = _splitter()
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END, pad_token=PAD, clean_up_tokenization_spaces=False
    )


def _splitter() -> Any:
    from tokenizers import pre_tokenizers

    return pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )


def _build(kind: str, seed: int, layers: int, hidden: int, vocab: int, tokenizer: Any, **more: Any) -> Any:
    from transformers import AutoModelForCausalLM

    if vocab < len(tokenizer):
        raise ValueError(f"a vocabulary of {vocab} is too small for the tokenizer's {len(tokenizer)} tokens")
    config = tiny_config(
        kind,
        hidden=hidden,
        layers=layers,
        vocabulary=vocab,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        pad_token_id=tokenizer.pad_token_id,
        **more,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def _train_into(folder: Path, seed: int, progress: Progress | None) -> None:
    """Train by the recipe, and save model and tokenizer."""
    from qra_eval.tasks.arithmetic import ArithmeticTask

    steps, batch = int(RECIPE["steps"]), int(RECIPE["batch"])
    task = ArithmeticTask(seed=1_000_003 + seed, sizes={"calibration": TRAINING_ROWS, "validation": 1, "test": 1})
    examples = task.split("calibration")
    tokenizer = word_tokenizer((e.prompt + e.answer for e in examples[:4000]), int(RECIPE["vocabulary"]))
    hidden = int(RECIPE["hidden"])
    wide = {"head_dim": hidden // HEADS, "num_key_value_heads": HEADS, "intermediate_size": 3 * hidden}
    model = _build("llama", seed, int(RECIPE["layers"]), hidden, int(RECIPE["vocabulary"]), tokenizer, **wide)
    rows = task.encode(examples, tokenizer, 128)
    train_small(model, rows, steps=steps, batch_size=batch, rate=float(RECIPE["rate"]), seed=seed, progress=progress)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def train_small(
    model: nn.Module,
    rows: list[Any],
    *,
    steps: int,
    batch_size: int,
    rate: float,
    seed: int,
    progress: Progress | None = None,
) -> float:
    """AdamW over all of a small model's weights, one-cycle rate; gives the mean loss of the last steps in nats."""
    from qra_eval.tasks.encoding import batches, collate

    model.train().requires_grad_(True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.98), weight_decay=0.01)
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.1)
    done, losses, epoch = 0, [], 0
    while done < steps:
        for batch in batches(rows, batch_size=batch_size, seed=seed + epoch):
            input_ids, labels, _ = collate(batch, 0)
            with torch.autocast("cpu", torch.bfloat16, enabled=compute_dtype() == torch.bfloat16):
                loss = model(input_ids=input_ids, labels=labels, use_cache=False).loss
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            cycle.step()
            losses.append(float(loss.detach()))
            done += 1
            if progress is not None:
                progress("train the tiny model", done, steps)
            if done == steps:
                break
        epoch += 1
    model.eval().requires_grad_(False)
    tail = losses[-50:]
    return sum(tail) / len(tail)
