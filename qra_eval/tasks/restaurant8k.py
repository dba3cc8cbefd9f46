"""RESTAURANTS-8K: what a guest says of a booking, answered by the slots that are in it as compact JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from qra_eval.tasks.base import TRAIN_SHARES, Task, partition, shuffled, without
from qra_eval.tasks.example import Example, SplitName
from qra_eval.tasks.metrics import exact_match, json_f1
from qra_eval.tasks.sources import folder_rows, read_field
from qra_search.errors import BadInput

SLOTS = ("date", "time", "people", "first_name", "last_name")


class Restaurant8kTask(Task):
    """Prompts give what the guest was asked for and what the guest says; the answer is a JSON object of text spans.

    Args:
        data: folder with restaurant8k_train.jsonl and restaurant8k_test.jsonl, rows of `{"text", "asked", "slots"}`.
    """

    name = "restaurant8k"
    judged_by = "exact_match"
    metrics = {"exact_match": exact_match, "f1": json_f1}
    stop = ("\n",)

    def __init__(self, data: Any = None, seed: int = 0, **options: Any):
        super().__init__(data, seed, **options)
        if data is None:
            raise BadInput("the restaurant8k task is on no hub: give --data, a folder with restaurant8k_train.jsonl")

    def _load(self) -> Mapping[SplitName, Sequence[Example]]:
        test = shuffled(self._rows("test"), self.seed)
        return {**partition(without(self._rows("train"), test), TRAIN_SHARES, self.seed), "test": test}

    def _rows(self, split: Literal["train", "test"]) -> list[Example]:
        return [_example(row, where) for where, row in folder_rows(self.data, "restaurant8k", split)]


def _example(row: dict[str, Any], where: str) -> Example:
    text, asked = read_field(row, "text", str, where), read_field(row, "asked", list, where)
    slots = json.dumps(read_field(row, "slots", dict, where), ensure_ascii=False, separators=(",", ":"))
    prompt = (
        f"Booking slots: {', '.join(SLOTS)}.\nAsked for: {', '.join(dict.fromkeys(asked)) or 'nothing'}\n"
        f"Guest: {text.strip()}\nSlots as JSON:"
    )
    return Example(prompt, f" {slots}", messages=({"role": "user", "content": prompt},))
