"""Tasks of published data sets: GSM8K, Banking77, RESTAURANTS-8K, and ARC as by lm-evaluation-harness."""

from __future__ import annotations

import json
import re
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from qra_eval.tasks.base import TRAIN_SHARES, Task, exclude_known, shuffle_examples, split_examples
from qra_eval.tasks.example import Example, SplitName, format_question, read_choices, read_field
from qra_eval.tasks.scoring import exact_match, json_f1
from qra_eval.tasks.sources import load_hub_data, read_folder_rows, read_hub_rows
from qra_search.errors import BadInput, shorten

APART = 8
"""Rows of GSM8K's training split that are in no split of ours, whatever the seed, to be shown as solved problems."""
STRICT = re.compile(r"#### (\-?[0-9\.\,]+)")
"""As lm-evaluation-harness finds numbers."""
BANKING77 = ("legacy-datasets/banking77", None)
SLOTS = ("date", "time", "people", "first_name", "last_name")
Row = dict[str, Any]


def extract_answer(text: str) -> str | None:
    """The first number after `####`, without commas and a final point; None if there is none."""
    found = STRICT.search(text)
    return found[1].replace(",", "").removesuffix(".") if found else None


def strict_match(answer: str, example: Example) -> float:
    """1.0 if the first number after `####` is right."""
    return float(extract_answer(answer) == extract_answer(example.answer))


class _PublishedTask(Task):
    """A data set with a train and a test split, of which validation rows are taken from train.

    Args:
        data: folder with `<name>_train.jsonl` and `<name>_test.jsonl`; None: from the hub.

    Attributes:
        hub: name of the data set on the hub, and which of its configs.
        apart: rows of the train split that are in no split of ours.
    """

    judged_by: str | None = "exact_match"
    hub: tuple[str, str | None] | None = None
    apart = 0

    def __init__(self, data: Any = None, seed: int = 0, *, chat: bool = False):
        super().__init__(data, seed, chat=chat)
        if data is None and self.hub is None:
            raise BadInput(
                f"the {self.name} task is on no hub: give --data, a folder with {self.name}_train.jsonl"
            )

    def _load(self) -> Mapping[SplitName, Sequence[Example]]:
        test, train = self._load_rows("test"), self._load_rows("train")
        if self.apart:
            train = shuffle_examples(exclude_known(train, test), 0)[self.apart :]
        return split_examples({"test": test, "train": train}, self.seed, shares=TRAIN_SHARES)

    def _load_rows(self, split: str) -> list[Example]:
        if self.data is None and self.hub is not None:
            return [self._read_hub_row(row, where) for where, row in read_hub_rows(*self.hub, split)]
        rows = read_folder_rows(self.data, self.name, split)
        return [self._read_row(row, where) for where, row in rows]

    @abstractmethod
    def _read_row(self, row: Row, where: str) -> Example:
        """The example of a row in a file."""

    def _read_hub_row(self, row: Row, where: str) -> Example:
        return self._read_row(row, where)


class GSM8KTask(_PublishedTask):
    """Grade-school math problems with worked answers, prompted as by lm-evaluation-harness."""

    name = "gsm8k"
    hub = ("openai/gsm8k", "main")
    apart = APART
    metrics = {"exact_match": strict_match}
    stop = ("Question:", "</s>", "<|im_end|>")
    least_answer_tokens = 256

    def _read_row(self, row: Row, where: str) -> Example:
        question, answer = read_field(row, "question", str, where), read_field(row, "answer", str, where)
        if extract_answer(answer) is None:
            raise BadInput(f"{where}: the answer has no number after '####'")
        messages = ({"role": "user", "content": question},)
        return Example(format_question(question), f" {answer}", messages=messages)


class Banking77Task(_PublishedTask):
    """Messages of bank customers, each answered with one of 77 intents; rows are `{"text", "label"}`.

    Prompts are `Customer: ...`, then `Intent:`; the answer is the intent's name with spaces for underscores.
    """

    name = "banking77"
    hub = BANKING77
    metrics = {"exact_match": exact_match}
    stop = ("\n",)

    def _read_row(self, row: Row, where: str) -> Example:
        text, label = read_field(row, "text", str, where), read_field(row, "label", str, where)
        return _make_utterance(f"Customer: {text.strip()}\nIntent:", label.replace("_", " "))

    def _read_hub_row(self, row: Row, where: str) -> Example:
        return self._read_row({**row, "label": self._labels[row["label"]]}, where)

    @cached_property
    def _labels(self) -> list[str]:
        return load_hub_data(*BANKING77)["train"].features["label"].names


class Restaurant8kTask(_PublishedTask):
    """Messages of restaurant guests, each answered with its slots as JSON; rows are `{"text", "asked", "slots"}`.

    Prompts give what the guest was asked for and what the guest says; values are spans of what was said.
    """

    name = "restaurant8k"
    metrics = {"exact_match": exact_match, "f1": json_f1}
    stop = ("\n",)

    def _read_row(self, row: Row, where: str) -> Example:
        text, asked = read_field(row, "text", str, where), read_field(row, "asked", list, where)
        if not all(isinstance(name, str) for name in asked):
            raise BadInput(f"{where}: field 'asked' is {shorten(asked, 60)}, a list of names is needed")
        slots = json.dumps(read_field(row, "slots", dict, where), ensure_ascii=False, separators=(",", ":"))
        prompt = (
            f"Booking slots: {', '.join(SLOTS)}.\nAsked for: {', '.join(dict.fromkeys(asked)) or 'nothing'}\n"
            f"Guest: {text.strip()}\nSlots as JSON:"
        )
        return _make_utterance(prompt, slots)


def _make_utterance(prompt: str, answer: str) -> Example:
    return Example(prompt, f" {answer}", messages=({"role": "user", "content": prompt},))


# -- multiple choice ---------------------------------------------------------------------------
class ARCEasyTask(_PublishedTask):
    """Science questions with choices, prompted and scored as by lm-evaluation-harness; for rows see `read_choices`."""

    name = "arc_easy"
    hub = ("allenai/ai2_arc", "ARC-Easy")
    judged_by = "choice_loss"

    def _read_row(self, row: Row, where: str) -> Example:
        question, choices, label = read_choices(row, where)
        spaced = tuple(f" {choice}" for choice in choices)
        return Example(format_question(question), spaced[label], spaced, label)


class ARCChallengeTask(ARCEasyTask):
    """The questions of ARC that retrieval and co-occurrence of words get wrong."""

    name = "arc_challenge"
    hub = ("allenai/ai2_arc", "ARC-Challenge")
