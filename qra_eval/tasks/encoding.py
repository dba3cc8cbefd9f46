"""From examples to rows of token ids with labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qra_eval.tasks.example import Example

if TYPE_CHECKING:
    from torch import Tensor

IGNORED = -100
"""Label of a token that has none."""


@dataclass(frozen=True)
class Encoded:
    """One row: input ids and labels, both int (T,); labels are the ids of the answer and `IGNORED` elsewhere.

    Labels stand at their own token's position; the loss shifts them. `cut` tokens were left out to make it fit.
    """

    input_ids: Tensor
    labels: Tensor
    cut: int = 0

    def __len__(self) -> int:
        return len(self.input_ids)


def encode(
    examples: Sequence[Example],
    tokenizer: Any,
    max_length: int,
    *,
    chat: bool = False,
) -> list[Encoded]:
    """Tokenize prompt and answer; only the answer's tokens (and the end token) have labels.

    A row that is too long loses the left of its prompt first, but for the tokenizer's start token; an answer that is
    longer than the row loses its right, and keeps one token of the prompt, so that its first token can be predicted.

    Args:
        max_length: most tokens of a row, at least 2.
        chat: put the prompt through the tokenizer's chat template, as a user's message.

    Raises:
        ValueError: `max_length` is too small, an answer is empty, or the tokenizer has no chat template.
    """
    if max_length < 2:
        raise ValueError(f"max_length must be at least 2, got {max_length}")
    rows = []
    for example in examples:
        prompt, text = chat_pair(example, tokenizer) if chat else (example.prompt, example.answer)
        before, answer = _split_ids(tokenizer, prompt, text, special=not chat)
        # A chat's turn ends with a token of its own, which need not be the end token.
        ended = chat and text != example.answer.lstrip()
        if not ended and tokenizer.eos_token_id is not None:
            answer = [*answer, tokenizer.eos_token_id]
        if not answer:
            raise ValueError(f"the answer to {example.prompt[:60]!r} has no tokens")
        started = int(bool(before) and before[0] == getattr(tokenizer, "bos_token_id", None))
        labelled = [False] * len(before) + [True] * len(answer)
        rows.append(cut_row([*before, *answer], labelled, max_length, head=started))
    return rows


def encode_pair(tokenizer: Any, prompt: str, continuation: str, max_length: int, *, special: bool = True) -> Encoded:
    """A row for scoring: labels on the continuation, split off the whole text's ids as lm-evaluation-harness does.

    White space at the end of the prompt counts to the continuation. A long row loses its left.

    Raises:
        ValueError: the continuation has no token of its own.
    """
    import torch  # seconds, which a task that is refused does without

    bare = prompt.rstrip()
    whole = prompt_ids(tokenizer, prompt + continuation, special=special)
    before = prompt_ids(tokenizer, bare, special=special)
    if not bare and not before:
        start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
        before, whole = [start], [start, *whole]
    after = whole[len(before) :]
    if not after:
        raise ValueError(f"the continuation {continuation!r} of {prompt[-40:]!r} has no tokens")
    ids = torch.tensor([*before, *after][-max_length:], dtype=torch.long)
    labels = ids.clone()
    labels[: max(1, len(ids) - len(after))] = IGNORED
    return Encoded(ids, labels)


def chat_prompt(example: Example, tokenizer: Any) -> str:
    """The prompt in the tokenizer's chat format, up to where the answer begins."""
    if not getattr(tokenizer, "chat_template", None):
        raise ValueError("the tokenizer has no chat template: leave `chat` off")
    return tokenizer.apply_chat_template(_turns(example), tokenize=False, add_generation_prompt=True)


def chat_pair(example: Example, tokenizer: Any) -> tuple[str, str]:
    """Prompt and answer in the tokenizer's chat format, the answer with what the template ends a turn with."""
    prompt, answer = chat_prompt(example, tokenizer), example.answer.lstrip()
    turns = [*_turns(example), {"role": "assistant", "content": answer}]
    whole = tokenizer.apply_chat_template(turns, tokenize=False)
    return prompt, whole[len(prompt) :].rstrip() if whole.startswith(prompt + answer) else answer


def prompt_ids(tokenizer: Any, prompt: str, *, special: bool = True) -> list[int]:
    """Ids of a prompt, with what the tokenizer puts before a text (BOS), without what it puts after it."""
    ids = tokenizer(prompt, add_special_tokens=special)["input_ids"]
    if special and ids and ids[-1] in (tokenizer.eos_token_id, tokenizer.sep_token_id):
        bare = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        if not bare or bare[-1] != ids[-1]:
            ids = ids[:-1]
    return ids


def _turns(example: Example) -> list[dict[str, str]]:
    return [dict(message) for message in example.messages] or [{"role": "user", "content": example.prompt}]


def _split_ids(tokenizer: Any, prompt: str, answer: str, *, special: bool = True) -> tuple[list[int], list[int]]:
    """Ids of prompt and answer: those of the whole text where it splits at their border, else of each alone."""
    before = prompt_ids(tokenizer, prompt, special=special)
    whole = prompt_ids(tokenizer, prompt + answer, special=special)
    if whole[: len(before)] == before:
        return before, whole[len(before) :]
    return before, tokenizer(answer, add_special_tokens=False)["input_ids"]


def cut_row(ids: list[int], labelled: list[bool], max_length: int, *, head: int = 0, whole: int = 0) -> Encoded:
    """A row of at most `max_length` tokens: without the left of what has no label, then without the right.

    Args:
        labelled: which ids have labels; at least one has.
        head: so many tokens at the left are kept, up to half the row.
        whole: tokens of the row before some were left out already, if some were.
    """
    import torch

    whole, head = whole or len(ids), min(head, max_length // 2)
    first = labelled.index(True)
    if len(ids) > max_length:
        head = min(head, first)
        rest, room = first - head, max_length - head
        answer = min(len(ids) - first, room - 1 if rest else room)
        begin = first - min(rest, room - answer)
        ids, labelled = ([*row[:head], *row[begin : first + answer]] for row in (ids, labelled))  # type: ignore[assignment]
    input_ids = torch.tensor(ids, dtype=torch.long)
    labels = torch.where(torch.tensor(labelled), input_ids, torch.tensor(IGNORED))
    return Encoded(input_ids, labels, whole - len(ids))
