"""A user's own data: prompts and answers, choices, instructions or chats, in files, on the hub or in Python."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from qra_eval.tasks.base import Task
from qra_eval.tasks.example import CHAT, Example, SplitName, check_columns, make_example
from qra_eval.tasks.metrics import exact_match, json_f1, parse_json
from qra_eval.tasks.sources import is_hub_name, read_examples
from qra_eval.tasks.splits import split_examples
from qra_search.errors import BadInput

LEAST_ROWS = 8
"""Distinct prompts from which all three splits are taken, at least."""


class JSONLTask(Task):
    """Your own rows: one file, split by the hash of prompts, or a file per split, or a data set's splits.

    A prompt with no white space at its end and an answer with none at its start are joined by a space; those of a
    chat are not. A row whose prompt is also in the test (or validation) split is left out of the others. Rows with
    choices are judged by them, others by exact match, and by F1 if all wanted answers are JSON objects.

    Args:
        data: a file (.jsonl, .json, .csv, .tsv, .parquet), a folder with train.jsonl and, if there are,
            validation.jsonl and test.jsonl (or of those kinds), a data set's name on the hub, `owner/name`; in Python
            also a `Dataset`, a list of dictionaries, or a `DatasetDict`.
        columns: columns by the fields that they are read as, such as `{prompt: question, answer: reply}`.
        subset: of a data set on the hub that has several.
        splits: names of a data set's splits, such as `{train: train_sft, test: test_sft}`.
        chat: put rows through the tokenizer's chat template: all (True), none (False), or None: conversations, if the
            tokenizer has a template.
    """

    name = "jsonl"
    judged_by = "exact_match"
    metrics = {"exact_match": exact_match}

    def __init__(
        self,
        data: Any = None,
        seed: int = 0,
        *,
        columns: Mapping[str, str] | None = None,
        subset: str | None = None,
        splits: Mapping[str, str] | None = None,
        chat: bool | None = None,
    ):
        super().__init__(data, seed, chat=bool(chat))
        if data is None:
            raise BadInput("the jsonl task needs data: a file of rows, or a folder with train.jsonl")
        self.columns = check_columns(columns)
        self.subset = subset
        self.names = splits
        self.wants_chat = chat
        is_on_hub = isinstance(data, str) and is_hub_name(data)
        if not is_on_hub and (subset or (splits and not isinstance(data, Mapping))):
            raise BadInput("subset and splits apply to data sets on the hub, not to local rows: remove them")

    def _load(self) -> Mapping[SplitName, Sequence[Example]]:
        make = partial(make_example, columns=self.columns)
        examples = read_examples(self.data, make, self.subset, self.names)
        what = self.data if isinstance(self.data, str) else self.name
        self._choose_metrics([example for rows in examples.values() for example in rows], what)
        try:
            return split_examples(examples, self.seed, least=LEAST_ROWS)
        except BadInput as error:
            raise BadInput(f"{what}: {error}") from None

    def _choose_metrics(self, examples: Sequence[Example], what: str) -> None:
        with_choices = sum(bool(example.choices) for example in examples)
        if 0 < with_choices < len(examples):
            raise BadInput(
                f"{what}: some rows have choices and some have none: put each kind into its own file"
            )
        if with_choices:
            self.judged_by = "choice_loss"
            self.metrics = {}
        elif all(isinstance(parse_json(example.answer), dict) for example in examples):
            self.metrics = {**self.metrics, "f1": json_f1}

    def is_chat(self, example: Example, tokenizer: Any) -> bool:
        if self.wants_chat is None:
            return CHAT in example.meta and bool(getattr(tokenizer, "chat_template", None))
        return self.wants_chat
