"""A conversation as a row: the tokenizer's chat template around its turns, labels on all answers of the assistant."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import TemplateError

from qra_eval.tasks.encoding import Encoded, cut_row

Turns = Sequence[Mapping[str, str]]
MARK = re.compile(r"{%[-+]?\s*generation\s*[-+]?%}")
"""Begins the block in which a template marks what the assistant says."""


def encode_chat(turns: Turns, tokenizer: Any, max_length: int) -> Encoded:
    """The row of a conversation that ends with an answer of the assistant.

    Labels are on what the template marks as generated, or, if it marks nothing, on each answer with what ends its turn.
    Of a conversation that is too long the oldest exchanges are left out, the system's turn is kept; if its last
    exchange alone is too long, that loses the left of its question, and at last the right of its answer.

    Raises:
        ValueError: the tokenizer has no chat template, or its template cannot be used; one line.
    """
    rules = [turn for turn in turns if turn["role"] == "system"]
    rest = [turn for turn in turns if turn["role"] != "system"]
    ids, labelled, head = _encoded(turns, tokenizer)
    whole = len(ids)
    while len(ids) > max_length:
        later = next((i for i, turn in enumerate(rest) if i and turn["role"] == "user"), None)
        if later is None:
            break
        rest = rest[later:]
        ids, labelled, head = _encoded([*rules, *rest], tokenizer)
    return cut_row(ids, labelled, max_length, head=head, whole=whole)


def _encoded(turns: Turns, tokenizer: Any) -> tuple[list[int], list[bool], int]:
    """Ids, which of them have labels, and how many stand before the first text that is not the system's."""
    text = render(turns, tokenizer)
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids, offsets = list(encoded["input_ids"]), encoded["offset_mapping"]
    if MARK.search(tokenizer.get_chat_template()):
        marked = tokenizer.apply_chat_template(
            [dict(turn) for turn in turns], tokenize=True, return_dict=True, return_assistant_tokens_mask=True
        )
        ids, labelled = list(marked["input_ids"]), [bool(mark) for mark in marked["assistant_masks"]]
    else:
        spans = answer_spans(turns, text, tokenizer)
        labelled = [end > start and any(a <= start < b for a, b in spans) for start, end in offsets]
        if spans[-1][1] >= len(text.rstrip()) and not _ended(turns, text) and tokenizer.eos_token_id is not None:
            ids, labelled = [*ids, tokenizer.eos_token_id], [*labelled, True]
    if not any(labelled):
        raise ValueError("the tokenizer's chat template marks no token as the assistant's: mend its generation blocks")
    begin = _first_text(turns, text)
    return ids, labelled, sum(end <= begin for _, end in offsets)


def answer_spans(turns: Turns, text: str, tokenizer: Any) -> list[tuple[int, int]]:
    """Where in the rendered text the assistant's turns stand, from after the prompt to generate to the turn's end.

    Some templates render an answer otherwise when later turns follow it (they leave out its reasoning): the end is
    found by the answer's own text, and by what ends a turn where it stands last.
    """
    spans = []
    for index, turn in enumerate(turns):
        if turn["role"] != "assistant":
            continue
        prompt = render(turns[:index], tokenizer, prompted=True) if index else ""
        start, said = len(prompt), turn["content"].strip()
        place = text.find(said, start)
        if not text.startswith(prompt) or place < 0:
            raise ValueError(
                "the tokenizer's chat template does not put turns one after the other, so that answers cannot be told "
                "from the rest: give it {% generation %} blocks around them"
            )
        alone = render(turns[: index + 1], tokenizer)
        ending = alone[alone.rfind(said) + len(said) :].rstrip()
        end = place + len(said)
        spans.append((start, end + len(ending) if text.startswith(ending, end) else end))
    return spans


def render(turns: Turns, tokenizer: Any, *, prompted: bool = False) -> str:
    """Turns in the tokenizer's chat format.

    Args:
        prompted: up to where the assistant's next turn begins.

    Raises:
        ValueError: there is no template, or it refuses the turns.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise ValueError("the tokenizer has no chat template: leave `chat` off")
    try:
        return tokenizer.apply_chat_template(
            [dict(turn) for turn in turns], tokenize=False, add_generation_prompt=prompted
        )
    except TemplateError as error:
        roles = ", ".join(turn["role"] for turn in turns)
        raise ValueError(f"the model's chat template refuses a chat of the turns {roles}: {error}") from error


def _ended(turns: Turns, text: str) -> bool:
    """Whether the template puts something after the last answer, so that the model learns where to stop."""
    return not text.rstrip().endswith(turns[-1]["content"].strip())


def _first_text(turns: Turns, text: str) -> int:
    """Where the first turn's text begins that is not the system's; what stands before it is in every prompt."""
    at = 0
    for turn in turns:
        place = max(at, text.find(turn["content"].strip(), at))
        if turn["role"] != "system":
            return place
        at = place + len(turn["content"].strip())
    return at
