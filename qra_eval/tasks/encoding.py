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
Turns = Sequence[Mapping[str, str]]
TEMPLATE_DAY = datetime(2024, 7, 26)  # noqa: DTZ001 - a date alone, that of Llama 3.1's template
"""What a chat template that prints the date takes for today."""
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
        ids, labelled = _encode_turns(_add_answer(example), tokenizer)
    else:
        prompt, learnt = _split_ids(tokenizer, example.prompt, example.answer)
        if tokenizer.eos_token_id is not None:
            learnt = [*learnt, tokenizer.eos_token_id]
        ids = [*prompt, *learnt]
        labelled = [False] * len(prompt) + [True] * len(learnt)
    if True not in labelled:
        raise BadInput(f"the answer to {example.prompt[:60]!r} has no tokens")
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


def encode_pair(
    tokenizer: Any, prompt: str, continuation: str, max_length: int, *, special: bool = True
) -> Encoded:
    """A row for scoring: labels on the continuation, split off the whole text's ids as lm-evaluation-harness does.

    White space at the end of the prompt counts to the continuation. A long row loses its left, but for the start token.
    """
    import torch  # seconds, which a task that is refused does without

    bare = prompt.rstrip()
    whole = encode_prompt(tokenizer, prompt + continuation, special=special)
    before = encode_prompt(tokenizer, bare, special=special)
    if not bare and not before:
        start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
        before, whole = [start], [start, *whole]
    after = whole[len(before) :]
    if not after:
        raise BadInput(f"the continuation {continuation!r} of {prompt[-40:]!r} has no tokens")
    ids = torch.tensor(truncate_left([*before, *after], max_length, tokenizer), dtype=torch.long)
    labels = ids.clone()
    labels[: max(1, len(ids) - len(after))] = IGNORED
    return Encoded(ids, labels)


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
    """An example's conversation in the tokenizer's chat format, rendered once up to its answer and once with it.

    Attributes:
        opening: what the template puts between prompt and answer, such as an empty thought: learnt with the answer,
            and no part of it.
        closing: what it puts after the answer.
    """

    def __init__(self, example: Example, tokenizer: Any):
        self.tokenizer = tokenizer
        turns = _add_answer(example)
        self.prompt, answer = _split_chat(turns, tokenizer)
        content = turns[-1]["content"].strip()
        self.opening = answer.partition(content)[0]
        if answer.count(content) > 1:  # such as "think", which an empty thought has in its tags
            others = [(*turns[:-1], {**turns[-1], "content": letter}) for letter in "AB"]
            self.opening = commonprefix([_split_chat(other, tokenizer)[1] for other in others])
        self.closing = answer[len(self.opening) + len(content) :]

    @property
    def generated_opening(self) -> str:
        """The opening as a generated answer begins with it: without special tokens."""
        ids = self.tokenizer(self.opening, add_special_tokens=False)["input_ids"] if self.opening else []
        return self.tokenizer.decode(ids, skip_special_tokens=True) if ids else ""

    @property
    def end_tokens(self) -> list[int]:
        """The special token that the template ends a turn with, if it does: the tokenizer may name another."""
        ids = self.tokenizer(self.closing, add_special_tokens=False)["input_ids"][:1] if self.closing else []
        return [id for id in ids if id in self.tokenizer.added_tokens_decoder]


def render_chat(turns: Turns, tokenizer: Any, *, prompted: bool = False) -> str:
    """Turns in the tokenizer's chat format; `prompted`: up to where the assistant's next turn begins."""
    if not getattr(tokenizer, "chat_template", None):
        raise BadInput("the tokenizer has no chat template: leave `chat` off")
    more = {**_replace_date(tokenizer), "add_generation_prompt": prompted}
    try:
        return tokenizer.apply_chat_template([dict(turn) for turn in turns], tokenize=False, **more)
    except TemplateError as error:
        roles = ", ".join(turn["role"] for turn in turns)
        raise BadInput(f"the chat template rejects a conversation of roles {roles}: {error}") from error


def _replace_date(tokenizer: Any) -> dict[str, Any]:
    """The template with one day in place of today's, if it prints that: else rows would differ from day to day."""
    template = tokenizer.get_chat_template()
    fixed = TODAY.sub(lambda found: repr(TEMPLATE_DAY.strftime(found[2])), template)
    return {} if fixed == template else {"chat_template": fixed}


def _encode_turns(turns: Turns, tokenizer: Any) -> tuple[list[int], list[bool]]:
    """Ids of a whole conversation, and which of them have labels."""
    template = getattr(tokenizer, "chat_template", None) and tokenizer.get_chat_template()
    if template and GENERATION_BLOCK.search(template):
        marked = tokenizer.apply_chat_template(
            [dict(turn) for turn in turns],
            tokenize=True,
            return_dict=True,
            return_assistant_tokens_mask=True,
            **_replace_date(tokenizer),
        )
        ids, labelled = list(marked["input_ids"]), [bool(mark) for mark in marked["assistant_masks"]]
        if not any(labelled):
            raise BadInput("the chat template marks no assistant tokens: fix its generation block")
        return ids, labelled
    prompt, text = _split_chat(turns, tokenizer)
    before, after = _split_ids(tokenizer, prompt, text, special=False)
    if not text.partition(turns[-1]["content"].strip())[2] and tokenizer.eos_token_id is not None:
        after = [*after, tokenizer.eos_token_id]  # the template ends no turn
    return [*before, *after], [False] * len(before) + [True] * len(after)


def _split_chat(turns: Turns, tokenizer: Any) -> tuple[str, str]:
    """A conversation up to its last answer, and that answer with what the template adds before and after it, such as an
    empty thought and the turn's end, which are learnt with it."""
    prompt = render_chat(turns[:-1], tokenizer, prompted=True)
    answer = turns[-1]["content"].strip()
    whole = render_chat(turns, tokenizer).rstrip()
    rest = whole[len(prompt) :]
    return prompt, rest if whole.startswith(prompt) and answer in rest else answer


def _add_answer(example: Example) -> list[Mapping[str, str]]:
    asked = example.messages or ({"role": "user", "content": example.prompt},)
    if not example.answer.strip():
        raise BadInput(f"the answer to {asked[-1]['content'][:60]!r} is empty")
    return [*asked, {"role": "assistant", "content": example.answer.strip()}]
