"""Banking77: messages of bank customers, each with one of 77 intents, which the model answers in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from qra_eval.tasks.base import TRAIN_SHARES, Task, partition, shuffled, without
from qra_eval.tasks.example import Example, SplitName
from qra_eval.tasks.metrics import exact_match
from qra_eval.tasks.sources import folder_rows, load_hub_data, read_field, read_hub_rows

HUB = "legacy-datasets/banking77"


class Banking77Task(Task):
    """Prompts `Customer: ...`, then `Intent:`; the answer is the intent's name with spaces for underscores.

    Args:
        data: folder with banking77_train.jsonl and banking77_test.jsonl, rows of `{"text", "label"}`; None: the hub.
    """

    name = "banking77"
    judged_by = "exact_match"
    metrics = {"exact_match": exact_match}
    stop = ("\n",)

    def _load(self) -> Mapping[SplitName, Sequence[Example]]:
        test = shuffled(self._rows("test"), self.seed)
        return {**partition(without(self._rows("train"), test), TRAIN_SHARES, self.seed), "test": test}

    def _rows(self, split: Literal["train", "test"]) -> list[Example]:
        if self.data is not None:
            rows, fields = folder_rows(self.data, "banking77", split), ("text", "label")
            return [_example(*(read_field(row, name, str, where) for name in fields)) for where, row in rows]
        names = load_hub_data(HUB)[split].features["label"].names
        return [_example(row["text"], names[row["label"]]) for _, row in read_hub_rows(HUB, None, split)]


def _example(text: str, label: str) -> Example:
    prompt = f"Customer: {text.strip()}\nIntent:"
    return Example(prompt, f" {label.replace('_', ' ')}", messages=({"role": "user", "content": prompt},))
