"""RESTAURANTS-8K: what a guest says of a booking, answered by the slots that are in it as compact JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from qra_eval.tasks.base import TRAIN_SHARES, Task, partition, shuffled, without
from qra_eval.tasks.example import Example, SplitName
from qra_eval.tasks.metrics import exact_match, json_f1
from qra_eval.tasks.sources import field_of, folder_rows
from qra_search.errors import BadInput

SLOTS = ("date", "time", "people", "first_name", "last_name")
MARGIN = 8
"""Tokens that an answer may be longer than the longest wanted one."""


class Restaurant8kTask(Task):
    """Prompts give what the guest was asked for and what the guest says; the answer is a JSON object of text spans.

    Args:
        data: folder with restaurant8k_train.jsonl and restaurant8k_test.jsonl, rows of `{"text", "asked", "slots"}`.
    """

    name = "restaurant8k"
    judged_by = "exact_match"
    judges_long = True

    def __init__(self, data: Any = None, seed: int = 0, **options: Any):
        super().__init__(data, seed, **options)
        if data is None:
            raise BadInput("the restaurant8k task is on no hub: give --data, a folder with restaurant8k_train.jsonl")

    def _load(self) -> Mapping[SplitName, Sequence[Example]]:
        test = shuffled(self._rows("test"), self.seed)
        return {**partition(without(self._rows("train"), test), TRAIN_SHARES, self.seed), "test": test}

    def _rows(self, split: Literal["train", "test"]) -> list[Example]:
        return [_example(row, where) for where, row in folder_rows(self.data, "restaurant8k", split)]

    def metrics(
        self, model: Any, tokenizer: Any, examples: Sequence[Example], *, batch_size: int = 8, max_length: int = 1024
    ) -> dict[str, float]:
        """exact_match: share of greedy answers equal to the slots as JSON; f1: mean F1 over the slots of a row."""
        longest = max((len(tokenizer(example.answer)["input_ids"]) for example in examples), default=1)
        answers = self.answers(
            model, tokenizer, examples, longest + MARGIN, batch_size=batch_size, max_length=max_length, stop=("\n",)
        )
        pairs = [(answer, example.answer) for answer, example in zip(answers, examples, strict=True)]
        count = max(1, len(pairs))
        return {
            "exact_match": sum(exact_match(*pair) for pair in pairs) / count,
            "f1": sum(json_f1(*pair) for pair in pairs) / count,
        }


def _example(row: dict[str, Any], where: str) -> Example:
    text, asked = field_of(row, "text", str, where), field_of(row, "asked", list, where)
    slots = json.dumps(field_of(row, "slots", dict, where), ensure_ascii=False, separators=(",", ":"))
    prompt = (
        f"Booking slots: {', '.join(SLOTS)}.\nAsked for: {', '.join(dict.fromkeys(asked)) or 'nothing'}\n"
        f"Guest: {text.strip()}\nSlots as JSON:"
    )
    return Example(prompt, f" {slots}", messages=({"role": "user", "content": prompt},))
