"""Tasks of published data sets: GSM8K, Banking77, RESTAURANTS-8K, and ARC as by lm-evaluation-harness."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from qra_eval.tasks.base import Task
from qra_eval.tasks.example import (
    TRAIN_SHARES,
    Example,
    SplitName,
    exclude_known,
    format_question,
    make_example,
    read_text,
    shuffle_examples,
    split_examples,
)
from qra_eval.tasks.scoring import exact_match, json_f1
from qra_eval.tasks.sources import load_hub_data, read_folder_rows, read_splits
from qra_search.errors import BadInput

SOLVED_ROWS = 8
"""Rows of GSM8K's training split that are in no split of ours, whatever the seed, to be shown as solved problems."""
NUMBER_PATTERN = re.compile(r"#### (\-?[0-9\.\,]+)")
"""As lm-evaluation-harness finds numbers."""
SLOTS = ("date", "time", "people", "first_name", "last_name")
Row = dict[str, Any]


def extract_answer(text: str) -> str | None:
    """The first number after `####`, without commas and a final point; None if there is none."""
    found = NUMBER_PATTERN.search(text)
    return found[1].replace(",", "").removesuffix(".") if found else None


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

    def _load(self) -> Mapping[SplitName, Sequence[Example]]:
        if self.data is None and self.hub is None:
            raise BadInput(
                f"the {self.name} task cannot be downloaded: give --data, a folder with {self.name}_train.jsonl"
            )
        if self.data is None:
            found = read_splits(self._load_hub_splits())
        else:
            found = {split: read_folder_rows(self.data, self.name, split) for split in ("test", "train")}
        test, train = (
            [self._read_row(row, where) for where, row in found[split]] for split in ("test", "train")
        )
        if self.apart:
            train = shuffle_examples(exclude_known(train, test), 0)[self.apart :]
        return split_examples({"test": test, "train": train}, self.seed, shares=TRAIN_SHARES)

    def _load_hub_splits(self) -> Mapping[str, Any]:
        assert self.hub is not None
        return load_hub_data(*self.hub)

    def _read_row(self, row: Row, where: str) -> Example:
        """The example of a row of the data set, which here is one of a user's forms."""
        return make_example(row, where)


class GSM8KTask(_PublishedTask):
    """Grade-school math problems with worked answers, prompted as by lm-evaluation-harness."""

    name = "gsm8k"
    hub = ("openai/gsm8k", "main")
    apart = SOLVED_ROWS
    metrics = {
        "exact_match": lambda answer, example: float(extract_answer(answer) == extract_answer(example.answer))
    }
    stop = ("Question:", "</s>", "<|im_end|>")
    least_answer_tokens = 256

    def _read_row(self, row: Row, where: str) -> Example:
        question, answer = read_text(row, "question", where), read_text(row, "answer", where)
        messages = ({"role": "user", "content": question},)
        return Example(format_question(question), f" {answer}", messages=messages)


class Banking77Task(_PublishedTask):
    """Messages of bank customers, each answered with one of 77 intents; rows are `{"text", "label"}`.

    Prompts are `Customer: ...`, then `Intent:`; the answer is the intent's name with spaces for underscores.
    """

    name = "banking77"
    hub = ("legacy-datasets/banking77", None)
    metrics = {"exact_match": exact_match}
    stop = ("\n",)

    def _load_hub_splits(self) -> Mapping[str, Any]:
        data = super()._load_hub_splits()
        names = data["train"].features["label"].names
        return {
            split: [{**row, "label": names[row["label"]]} for row in rows] for split, rows in data.items()
        }

    def _read_row(self, row: Row, where: str) -> Example:
        prompt = f"Customer: {read_text(row, 'text', where).strip()}\nIntent:"
        return make_example({"prompt": prompt, "answer": row["label"].replace("_", " ")}, where)


class Restaurant8kTask(_PublishedTask):
    """Messages of restaurant guests, each answered with its slots as JSON; rows are `{"text", "asked", "slots"}`.

    Prompts give what the guest was asked for and what the guest says; values are spans of what was said.
    """

    name = "restaurant8k"
    metrics = {"exact_match": exact_match, "f1": json_f1}
    stop = ("\n",)

    def _read_row(self, row: Row, where: str) -> Example:
        prompt = (
            f"Booking slots: {', '.join(SLOTS)}.\nAsked for: {', '.join(dict.fromkeys(row['asked'])) or 'nothing'}\n"
            f"Guest: {read_text(row, 'text', where).strip()}\nSlots as JSON:"
        )
        return make_example({"prompt": prompt, "answer": row["slots"]}, where)


class ARCEasyTask(_PublishedTask):
    """Science questions, prompted as by lm-evaluation-harness; the text of the right choice is learnt."""

    name = "arc_easy"
    hub = ("allenai/ai2_arc", "ARC-Easy")
    metrics = {"exact_match": exact_match}
    stop = ("\n",)


class ARCChallengeTask(ARCEasyTask):
    """The questions of ARC that retrieval and co-occurrence of words get wrong."""

    name = "arc_challenge"
    hub = ("allenai/ai2_arc", "ARC-Challenge")
