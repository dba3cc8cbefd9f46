"""Logits of a tuned run on test problems, as it is stored or in float32, and how far apart two sides are."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from qra_eval.export.tuned import TunedRun, add_adapter
from qra_eval.models.embeddings import restore_embeddings
from qra_eval.models.linears import make_linear
from qra_eval.tuning.loading import load_base

MARGIN = 0.5
"""Of the likeliest token over the next, in nats: where it is larger, rounding should not change the likeliest token."""


def texts(run: TunedRun, data: Path, positions: int) -> list[list[int]]:
    """Token ids of GSM8K test problems with their answers, so many in all."""
    prompts: list[list[int]] = []
    for line in (data / "gsm8k_test.jsonl").read_text().splitlines():
        row = json.loads(line)
        ids = run.tokenizer(f"{row['question']} {row['answer']}", add_special_tokens=False)["input_ids"]
        prompts.append(ids[: positions - sum(map(len, prompts))])
        if sum(map(len, prompts)) >= positions:
            break
    return prompts


def float32_weight(run: TunedRun) -> Callable[[str], Tensor]:
    """The weights as they are decoded, without the rounding to the model's dtype."""

    def weight(name: str) -> Tensor:
        module: Any = run.base.get_submodule(name)
        decode = getattr(
            module, "dequantize", None
        )  # unquantized linears have none, nor bitsandbytes' of 4 bits
        return run.dequantize_weight(name).float() if decode is None else decode(torch.float32)

    return weight


def run_model(run: TunedRun, weight: Callable[[str], Tensor] | None) -> Any:
    """The tuned model with dequantized linears, or in float32 with other weights in the searched linears."""
    model, _ = load_base(run.folder, device="cpu")
    for name in run.levels:
        bias = model.get_submodule(name).bias
        model.set_submodule(
            name, make_linear(run.dequantize_weight(name) if weight is None else weight(name), bias)
        )
    if weight is None:
        return add_adapter(model, run.adapter_folder)
    restore_embeddings(model)
    ends = model.get_input_embeddings(), model.get_output_embeddings()
    tables: list[Any] = list(run.tables.values())
    for end, table in zip(ends, tables if len(tables) == 2 else tables * 2, strict=bool(tables)):
        end.weight = nn.Parameter(table.dequantize(torch.float32), requires_grad=False)
    return add_adapter(model.float(), run.adapter_folder).float()


@torch.no_grad()
def logits(model: Any, prompts: list[list[int]]) -> Tensor:
    """(positions, vocabulary), of all prompts after one another."""
    model.eval()
    found = (model(input_ids=torch.tensor([prompt]), use_cache=False).logits[0].float() for prompt in prompts)
    return torch.cat(list(found))


def difference(mine: Tensor, theirs: Tensor) -> dict[str, float]:
    """Figures of both, (positions, vocabulary), over all positions; the margin is that of `mine`."""
    theirs = theirs[:, : mine.shape[1]]
    gap, same = (mine - theirs).abs(), mine.argmax(-1) == theirs.argmax(-1)
    first, second = mine.topk(2, dim=-1).values.T
    clear = first - second > MARGIN
    return {
        "largest_logit_difference": round(float(gap.max()), 4),
        "mean_logit_difference": round(float(gap.mean()), 5),
        "largest_logit": round(float(mine.abs().max()), 2),
        "positions": len(mine),
        "same_next_token": round(float(same.float().mean()), 4),
        f"same_where_the_margin_is_above_{MARGIN}": round(float(same[clear].float().mean()), 4),
        "share_with_such_a_margin": round(float(clear.float().mean()), 4),
    }
