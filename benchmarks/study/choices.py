"""Scores of multiple-choice questions, one a row: its prompt goes through the model once, not for every choice."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from qra_eval.tasks.batches import by_length
from qra_eval.tasks.encoding import IGNORED, encode_pair
from qra_eval.tasks.example import Example
from qra_eval.tasks.losses import labelled_head

LONGEST = 2048


def choice_losses(
    model: Any, tokenizer: Any, examples: Sequence[Example], batch_size: int
) -> tuple[list[list[float]], list[list[int]]]:
    """Summed loss in nats, and tokens, of every choice of every question; what `score_choices` scores, in a third.

    Choices stand one after the other behind the prompt. Each sees the prompt and itself, at the places where it would
    stand alone.
    """
    packed = [pack(tokenizer, example) for example in examples]
    losses: list[list[float]] = [[] for _ in examples]
    tokens: list[list[int]] = [[] for _ in examples]
    with torch.no_grad(), labelled_head(model) as head:
        for chosen in by_length([len(ids) for ids, *_ in packed], batch_size):
            length = max(len(packed[i][0]) for i in chosen)
            ids, places = (torch.zeros(len(chosen), length, dtype=torch.long) for _ in range(2))
            owner = torch.full_like(ids, -1)
            for row, i in enumerate(chosen):
                for whole, part in zip((ids, places, owner), packed[i], strict=True):
                    whole[row, : len(part)] = part
            targets, at, which = labels(ids, owner)
            head.positions = at
            logits = model(input_ids=ids, position_ids=places, attention_mask=mask(owner), use_cache=False).logits[0]
            head.positions = None
            found = torch.nn.functional.cross_entropy(logits.float(), targets, reduction="none").double()
            for row, i in enumerate(chosen):
                mine = at // length == row
                for choice in range(1, len(examples[i].choices) + 1):
                    own = mine & (which == choice)
                    losses[i].append(float(found[own].sum()))
                    tokens[i].append(int(own.sum()))
    return losses, tokens


def pack(tokenizer: Any, example: Example) -> tuple[Tensor, Tensor, Tensor]:
    """Ids of prompt and choices, their places, and whose each is: 0 the prompt's, then the choices' numbers."""
    rows = [encode_pair(tokenizer, example.prompt, choice, LONGEST) for choice in example.choices]
    begin = int((rows[0].labels == IGNORED).sum())
    parts = [rows[0].input_ids[:begin], *(row.input_ids[begin:] for row in rows)]
    places = [torch.arange(begin), *(torch.arange(begin, begin + len(part)) for part in parts[1:])]
    owner = [torch.full((len(part),), number) for number, part in enumerate(parts)]
    return torch.cat(parts), torch.cat(places), torch.cat(owner)


def mask(owner: Tensor) -> Tensor:
    """Bool (N, 1, T, T): whether a token sees another: of the prompt or its own choice, and not after it."""
    before = torch.ones(owner.shape[1], owner.shape[1], dtype=torch.bool).tril()
    same = (owner[:, :, None] == owner[:, None, :]) | (owner[:, None, :] == 0)
    return (before & same)[:, None]


def labels(ids: Tensor, owner: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens of choices, the flat places of the tokens that foretell them, and the choices' numbers, as many each.

    The first token of every choice is foretold by the last of the prompt.
    """
    rows, columns = (owner > 0).nonzero(as_tuple=True)
    last = (owner == 0).sum(1) - 1
    first = owner[rows, columns] != owner[rows, columns - 1]
    at = rows * ids.shape[1] + torch.where(first, last[rows], columns - 1)
    return ids[rows, columns], at, owner[rows, columns]
