"""GSM8K: grade-school word problems with worked answers, scored by the number after `####`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from qra_eval.tasks.base import TRAIN_SHARES, Task, exclude_known, shuffle_examples, split_examples
from qra_eval.tasks.example import Example, SplitName
from qra_eval.tasks.sources import read_field, read_folder_rows, read_hub_rows
from qra_search.errors import BadInput

HUB = ("openai/gsm8k", "main")
STOP = ("Question:", "</s>", "<|im_end|>")
APART = 8
"""Rows of the training split that are in no split of ours, whatever the seed: free to be shown as solved problems."""
STRICT = re.compile(r"#### (\-?[0-9\.\,]+)")
"""As lm-evaluation-harness finds numbers."""


def strict_match(answer: str, example: Example) -> float:
    """1.0 if the first number after `####` is right."""
    return float(extract_answer(answer) == extract_answer(example.answer))


class GSM8KTask(Task):
    """Grade-school math problems with worked answers, prompted as by lm-evaluation-harness.

    Args:
        data: folder with gsm8k_train.jsonl and gsm8k_test.jsonl; None: openai/gsm8k from the hub.
    """

    name = "gsm8k"
    judged_by = "exact_match"
    metrics = {"exact_match": strict_match}
    stop = STOP
    least_answer_tokens = 256

    def _load(self) -> Mapping[SplitName, Sequence[Example]]:
        test = self._load_rows("test")
        train = shuffle_examples(exclude_known(self._load_rows("train"), test), 0)[APART:]
        return split_examples({"test": test, "train": train}, self.seed, shares=TRAIN_SHARES)

    def _load_rows(self, split: Literal["train", "test"]) -> list[Example]:
        rows = (
            read_hub_rows(*HUB, split) if self.data is None else read_folder_rows(self.data, "gsm8k", split)
        )
        return [_make_example(row, where) for where, row in rows]


def extract_answer(text: str) -> str | None:
    """The first number after `####`, without commas and a final point; None if there is none."""
    found = STRICT.search(text)
    return found[1].replace(",", "").removesuffix(".") if found else None


def _make_example(row: dict[str, Any], where: str) -> Example:
    question, answer = read_field(row, "question", str, where), read_field(row, "answer", str, where)
    if extract_answer(answer) is None:
        raise BadInput(f"{where}: the answer has no number after '####'")
    return Example(
        f"Question: {question}\nAnswer:", f" {answer}", messages=({"role": "user", "content": question},)
    )
