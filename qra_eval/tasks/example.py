"""One example of a task, and the names of its splits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

SplitName = Literal["train", "validation", "test"]
SPLITS: tuple[SplitName, ...] = get_args(SplitName)


@dataclass(frozen=True)
class Example:
    """One row of a task.

    Attributes:
        prompt: what the model is given.
        answer: what it is to go on with, white space before it included. The text is prompt + answer.
        choices: continuations to choose from, of which `answer` is one; empty if the answer is free.
        label: index of the right choice.
        messages: the prompt as chat messages, for models with a chat template; else empty.
        meta: what only the task itself reads.
    """

    prompt: str
    answer: str
    choices: tuple[str, ...] = ()
    label: int | None = None
    messages: tuple[Mapping[str, str], ...] = ()
    meta: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """What makes two examples the same for the splits: the prompt (or else the answer) and its choices, case and
        space aside."""
        return " ".join(" ".join((self.prompt.strip() or self.answer, *self.choices)).split()).casefold()
