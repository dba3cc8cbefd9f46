"""What a speaker wants, in two data sets: Banking77's intents in words, and RESTAURANTS-8K's slots as compact JSON."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from qra_eval.tasks.base import TRAIN_SHARES, Task, split_examples
from qra_eval.tasks.example import Example, SplitName
from qra_eval.tasks.metrics import exact_match, json_f1
from qra_eval.tasks.sources import load_hub_data, read_field, read_folder_rows, read_hub_rows
from qra_search.errors import BadInput, shorten

BANKING77_HUB = "legacy-datasets/banking77"
SLOTS = ("date", "time", "people", "first_name", "last_name")


class _UtteranceTask(Task):
    """One line of answer to what somebody says, right if it is the wanted one."""

    judged_by = "exact_match"
    metrics = {"exact_match": exact_match}
    stop = ("\n",)

    def _load(self) -> Mapping[SplitName, Sequence[Example]]:
        rows: dict[SplitName, list[Example]] = {
            "test": self._load_rows("test"),
            "train": self._load_rows("train"),
        }
        return split_examples(rows, self.seed, shares=TRAIN_SHARES)

    @abstractmethod
    def _load_rows(self, split: Literal["train", "test"]) -> list[Example]: ...


class Banking77Task(_UtteranceTask):
    """Messages of bank customers, each answered with one of 77 intents.

    Prompts are `Customer: ...`, then `Intent:`; the answer is the intent's name with spaces for underscores.

    Args:
        data: folder with banking77_train.jsonl and banking77_test.jsonl, rows of `{"text", "label"}`; None: the hub.
    """

    name = "banking77"

    def _load_rows(self, split: Literal["train", "test"]) -> list[Example]:
        if self.data is not None:
            rows, fields = read_folder_rows(self.data, "banking77", split), ("text", "label")
            return [
                _make_intent(*(read_field(row, name, str, where) for name in fields)) for where, row in rows
            ]
        names = load_hub_data(BANKING77_HUB)[split].features["label"].names
        return [
            _make_intent(row["text"], names[row["label"]])
            for _, row in read_hub_rows(BANKING77_HUB, None, split)
        ]


class Restaurant8kTask(_UtteranceTask):
    """Messages of restaurant guests, each answered with its slots as a JSON object.

    Prompts give what the guest was asked for and what the guest says; values are spans of what was said.

    Args:
        data: folder with restaurant8k_train.jsonl and restaurant8k_test.jsonl, rows of `{"text", "asked", "slots"}`.
    """

    name = "restaurant8k"
    metrics = {"exact_match": exact_match, "f1": json_f1}

    def __init__(self, data: Any = None, seed: int = 0, *, chat: bool = False):
        super().__init__(data, seed, chat=chat)
        if data is None:
            raise BadInput(
                "the restaurant8k task is on no hub: give --data, a folder with restaurant8k_train.jsonl"
            )

    def _load_rows(self, split: Literal["train", "test"]) -> list[Example]:
        return [
            _make_booking(row, where) for where, row in read_folder_rows(self.data, "restaurant8k", split)
        ]


def _make_intent(text: str, label: str) -> Example:
    return _make_example(f"Customer: {text.strip()}\nIntent:", label.replace("_", " "))


def _make_booking(row: dict[str, Any], where: str) -> Example:
    text, asked = read_field(row, "text", str, where), read_field(row, "asked", list, where)
    if not all(isinstance(name, str) for name in asked):
        raise BadInput(f"{where}: field 'asked' is {shorten(asked, 60)}, a list of names is needed")
    slots = json.dumps(read_field(row, "slots", dict, where), ensure_ascii=False, separators=(",", ":"))
    prompt = (
        f"Booking slots: {', '.join(SLOTS)}.\nAsked for: {', '.join(dict.fromkeys(asked)) or 'nothing'}\n"
        f"Guest: {text.strip()}\nSlots as JSON:"
    )
    return _make_example(prompt, slots)


def _make_example(prompt: str, answer: str) -> Example:
    return Example(prompt, f" {answer}", messages=({"role": "user", "content": prompt},))
