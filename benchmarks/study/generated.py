"""Right answers by generation: a tuned model kept in a folder, and its answers written there in pieces; resumable.

A weight is the same number whether it is dequantized at each product or once: here once, as an answer takes a pass
through the model for each token.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit
from torch import nn

from benchmarks.common import append, read
from qra_eval.export.tuned import TunedRun
from qra_eval.models.attention import use_fast_attention
from qra_eval.models.embeddings import uninstall_tables
from qra_eval.models.loaded import contiguous_input
from qra_eval.tasks.base import Task
from qra_eval.tasks.example import Example
from qra_eval.tasks.gsm8k import STOP, number_of

NEW_TOKENS = 320
"""Of an answer, at most: GSM8K's longest has 280, and an untuned model thinks aloud."""
TOGETHER = 128
"""Answers in a piece, written when all are there."""
USUAL_TOKENS = 208
"""Of most answers, at most. The few that are longer are asked for again, together: each would hold its piece up."""
SPARE = 8
"""Tokens by which a text, read again, may have fewer than were written."""
PROMPT_TOKENS = 320
Ask = Callable[[Sequence[Example], int], list[str]]
"""Texts of answers, of at most so many tokens."""


def answered(
    task: Task, ask: Ask, tokenizer: Any, count: int, folder: Path, until: float | None
) -> dict[str, Any] | None:
    """Whether each of the first test rows is answered right: the last number, or the one after `####`.

    Args:
        folder: where answers are kept; those that are there are not asked for again.
        until: begin no piece after this moment, by `time.monotonic`.

    Returns:
        None if the time was over before all was answered.
    """
    examples = task.split("test")[:count]
    kept = folder / "answers.jsonl"
    order = sorted(range(count), key=lambda i: (len(examples[i].prompt), i))
    for most in (USUAL_TOKENS, NEW_TOKENS):
        asked = {d["row"] for d in read(kept) if most in (d["most"], USUAL_TOKENS) or not d["cut"]}
        left = [i for i in order if i not in asked]
        for at in range(0, len(left), TOGETHER):
            if until is not None and time.monotonic() > until:
                return None
            piece = left[at : at + TOGETHER]
            texts = ask([examples[i] for i in piece], most)
            cut = [len(tokenizer(text)["input_ids"]) >= most - SPARE for text in texts]
            lines = zip(piece, texts, cut, strict=True)
            append(kept, *({"row": i, "answer": text, "most": most, "cut": cut} for i, text, cut in lines))
    texts = {d["row"]: d["answer"] for d in read(kept)}
    right: dict[str, list[int]] = {"row_right": [], "row_strict": []}
    for i, example in enumerate(examples):
        wanted = number_of(example.answer)
        right["row_right"].append(int(number_of(texts[i], "flexible") == wanted))
        right["row_strict"].append(int(number_of(texts[i]) == wanted))
    return right


def written_by(model: Any, task: Task, tokenizer: Any) -> Ask:
    """What asks a model of torch."""

    def ask(examples: Sequence[Example], most: int) -> list[str]:
        room = most + PROMPT_TOKENS
        return task.answers(model, tokenizer, examples, most, batch_size=TOGETHER, stop=STOP, max_length=room)

    return ask


def reloaded(folder: Path) -> tuple[Any, Any]:
    """A tuned run of ours, every weight dequantized once: model and tokenizer."""
    run = TunedRun(folder)
    model = run.with_weights(run.weight)
    uninstall_tables(model.get_base_model())
    return model, run.tokenizer


def dequantized(model: Any) -> Any:
    """A model of bitsandbytes in 4 bits, every weight dequantized once."""
    for name, module in list(model.named_modules()):
        if isinstance(module, Linear4bit):
            weight = dequantize_4bit(module.weight.data, module.weight.quant_state)
            model.set_submodule(name, plain(weight, module.bias))
    return model


def plain(weight: torch.Tensor, bias: torch.Tensor | None) -> nn.Linear:
    """A frozen linear of a weight."""
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    linear.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        linear.bias = nn.Parameter(bias.data, requires_grad=False)
    return linear


def computing_in(dtype: str, model: Any) -> Any:
    """In evaluation mode, with weights of a dtype; of buffers, rotary frequencies stay in float32.

    Attention by plain products: torch's kernel repeats the keys of padded batches, a dozen times as slow on a CPU.
    """
    for parameter in model.parameters():
        parameter.data = parameter.data.to(getattr(torch, dtype))
    model.get_output_embeddings().register_forward_pre_hook(contiguous_input)
    use_fast_attention(model)
    return model.eval()
