"""From prompts, answers and conversations to rows of token ids with labels on what the model is to say."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from os.path import commonprefix
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError

from qra_eval.tasks.example import Example
from qra_search.errors import BadInput

if TYPE_CHECKING:
    from torch import Tensor

IGNORED = -100
"""Label of a token that has none."""
TEMPLATE_DAY = datetime(2024, 7, 26)  # noqa: DTZ001 - a date alone, that of Llama 3.1's template
"""What a chat template that prints the date takes for today: else rows would differ from day to day."""
TODAY = re.compile(r"strftime_now\(\s*(['\"])(.*?)\1\s*\)")
GENERATION_BLOCK = re.compile(r"{%[-+]?\s*generation\s*[-+]?%}")
"""Begins the block in which a template marks what the assistant says."""


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


def encode_example(example: Example, tokenizer: Any, max_length: int, *, chat: bool = False) -> Encoded:
    """Tokenize prompt and answer; only the answer's tokens (and the end token) have labels.

    A row that is too long loses the left of its prompt first, but for the tokenizer's start token; an answer that is
    longer than the row loses its right, and keeps one token of the prompt, so that its first token can be predicted.

    Args:
        max_length: most tokens of a row, at least 2.
        chat: put prompt and answer through the tokenizer's chat template. Labels are on what it marks as generated; if
            it marks nothing, on the last answer with what ends its turn.
    """
    import torch  # seconds, which a task that is refused does without

    if chat:
        ids, labelled = Chat(example, tokenizer).encode()
    else:
        prompt, learnt = _split_ids(tokenizer, example.prompt, example.answer)
        if tokenizer.eos_token_id is not None:
            learnt = [*learnt, tokenizer.eos_token_id]
        ids = [*prompt, *learnt]
        labelled = [False] * len(prompt) + [True] * len(learnt)
    if True not in labelled:
        raise BadInput(f"the answer to {example.prompt[:60]!r} has no tokens: complete or remove that row")
    tokens = len(ids)
    if tokens > max_length:
        first = labelled.index(True)
        head = int(first > 0 and ids[0] == getattr(tokenizer, "bos_token_id", None))
        end = min(tokens, first + max_length - min(first, 1 + head))
        begin = max(head, end - max_length + head)
        ids = ids[:head] + ids[begin:end]
        labelled = labelled[:head] + labelled[begin:end]
    input_ids = torch.tensor(ids, dtype=torch.long)
    labels = torch.where(torch.tensor(labelled), input_ids, torch.tensor(IGNORED))
    return Encoded(input_ids, labels, tokens - len(ids))


def truncate_left(ids: list[int], room: int, tokenizer: Any) -> list[int]:
    """The last `room` ids at most; a start token before them is kept in place of one."""
    if len(ids) <= room:
        return ids
    starts = int(room > 1 and ids[0] == getattr(tokenizer, "bos_token_id", None))
    return [*ids[:starts], *ids[len(ids) - room + starts :]]


def encode_prompt(tokenizer: Any, prompt: str, *, special: bool = True) -> list[int]:
    """Ids of a prompt, with what the tokenizer puts before a text (BOS), without what it puts after it."""
    ids = tokenizer(prompt, add_special_tokens=special)["input_ids"]
    if special and ids and ids[-1] in (tokenizer.eos_token_id, tokenizer.sep_token_id):
        bare = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        if not bare or bare[-1] != ids[-1]:
            ids = ids[:-1]
    return ids


def _split_ids(
    tokenizer: Any, prompt: str, answer: str, *, special: bool = True
) -> tuple[list[int], list[int]]:
    """Ids of prompt and answer: those of the whole text where it splits at their border, else of each alone."""
    before = encode_prompt(tokenizer, prompt, special=special)
    whole = encode_prompt(tokenizer, prompt + answer, special=special)
    if whole[: len(before)] == before:
        return before, whole[len(before) :]
    return before, tokenizer(answer, add_special_tokens=False)["input_ids"]


# -- conversations ------------------------------------------------------------------------------
class Chat:
    """An example's conversation in the tokenizer's chat format.

    Attributes:
        prompt: the text up to the last answer.
        answer: that answer with what the template puts before and after it, which is learnt with it.
        opening: what the template puts between prompt and answer, such as an empty thought: learnt with the answer,
            and no part of it.
        question: prompt and opening, which a model is asked with for an answer.
        closing: what it puts after the answer.
    """

    def __init__(self, example: Example, tokenizer: Any):
        self.tokenizer = tokenizer
        asked = example.messages or ({"role": "user", "content": example.prompt},)
        content = example.answer.strip()
        if not content:
            raise BadInput(
                f"the answer to {asked[-1]['content'][:60]!r} is empty: complete or remove that row"
            )
        self.turns: list[Mapping[str, str]] = [*asked, {"role": "assistant", "content": content}]
        self.prompt = self._apply_template(self.turns[:-1], add_generation_prompt=True)
        self.answer = self._render_answer(content)
        self.opening = self.answer.partition(content)[0]
        if self.answer.count(content) > 1:  # such as "think", which an empty thought has in its tags
            self.opening = commonprefix([self._render_answer(letter) for letter in "AB"])
        self.question = self.prompt + self.opening
        self.closing = self.answer[len(self.opening) + len(content) :]

    def _apply_template(self, turns: Sequence[Mapping[str, str]], **options: Any) -> Any:
        if not getattr(self.tokenizer, "chat_template", None):
            raise BadInput(
                "this model's tokenizer has no chat template: use a chat model, or leave out task.options.chat and "
                "rows with `messages`"
            )
        template = self.tokenizer.get_chat_template()
        template = TODAY.sub(lambda found: repr(TEMPLATE_DAY.strftime(found[2])), template)
        options = {"tokenize": False, "chat_template": template, **options}
        try:
            return self.tokenizer.apply_chat_template([dict(turn) for turn in turns], **options)
        except TemplateError as error:
            roles = ", ".join(turn["role"] for turn in turns)
            raise BadInput(
                f"the tokenizer's chat template rejects a row with the roles {roles} ({error}): change or remove such "
                "rows"
            ) from error

    def _render_answer(self, content: str) -> str:
        """The last answer if it were this one, with what the template adds; alone if the template changes it."""
        whole = self._apply_template([*self.turns[:-1], {"role": "assistant", "content": content}]).rstrip()
        rest = whole[len(self.prompt) :]
        return rest if whole.startswith(self.prompt) and content in rest else content

    def encode(self) -> tuple[list[int], list[bool]]:
        """Ids of the whole conversation, and which of them have labels."""
        if GENERATION_BLOCK.search(self.tokenizer.get_chat_template()):
            marks = {"return_dict": True, "return_assistant_tokens_mask": True}
            marked = self._apply_template(self.turns, tokenize=True, **marks)
            if not any(marked["assistant_masks"]):
                raise BadInput(
                    "the tokenizer's chat template has a generation block that marks no assistant tokens: correct "
                    "the template"
                )
            return list(marked["input_ids"]), [bool(mark) for mark in marked["assistant_masks"]]
        before, after = _split_ids(self.tokenizer, self.prompt, self.answer, special=False)
        if not self.closing and self.tokenizer.eos_token_id is not None:
            after = [*after, self.tokenizer.eos_token_id]  # the template ends no turn
        return [*before, *after], [False] * len(before) + [True] * len(after)

    @property
    def end_tokens(self) -> list[int]:
        """The special token that the template ends a turn with, if it does: the tokenizer may name another."""
        ids = self.tokenizer(self.closing, add_special_tokens=False)["input_ids"][:1] if self.closing else []
        return [id for id in ids if id in self.tokenizer.added_tokens_decoder]
