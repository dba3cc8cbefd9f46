"""A user's own data, in files, on the hub or in Python: prompts and answers, choices, chats, or running text."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from qra_eval.tasks.base import Task
from qra_eval.tasks.encoding import Encoded
from qra_eval.tasks.example import (
    CHAT_KEY,
    FIELDS,
    Example,
    SplitName,
    make_example,
    split_examples,
)
from qra_eval.tasks.scoring import Metric, exact_match, json_f1, make_field_metrics, parse_json
from qra_eval.tasks.sources import SPLIT_STEMS, load_hub_data, read_splits
from qra_search.errors import BadInput, shorten

log = logging.getLogger(__name__)

MIN_ROWS = 8
"""Distinct prompts from which all three splits are taken, at least."""
WIKITEXT = ("Salesforce/wikitext", "wikitext-2-raw-v1")


class JSONLTask(Task):
    """Your own rows: one file, split by the hash of prompts, or a file per split, or a data set's splits.

    A prompt with no white space at its end and an answer with none at its start are joined by a space; those of a
    chat are not. A row whose prompt is also in the test (or validation) split is left out of the others. Answers are
    judged by exact match, and by F1 and each field if all wanted answers are JSON objects.

    Args:
        data: a file (.jsonl, .json, .csv, .tsv, .parquet), a folder with train.jsonl and, if there are,
            validation.jsonl and test.jsonl (or of those kinds), a data set's name on the hub, `owner/name`; in Python
            also a `Dataset`, a list of dictionaries, or a `DatasetDict`.
        columns: columns by the fields that they are read as, such as `{prompt: question, answer: reply}`; of several,
            `{answer: [intent, words]}`, the field is a JSON object.
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
        columns: Mapping[str, str | Sequence[str]] | None = None,
        subset: str | None = None,
        splits: Mapping[str, str] | None = None,
        chat: bool | None = None,
    ):
        super().__init__(data, seed, chat=bool(chat))
        if data is None:
            raise BadInput("the jsonl task needs data: a file of rows, or a folder with train.jsonl")
        unknown = next((name for name in columns or () if name not in FIELDS), None)
        if unknown is not None:
            raise BadInput(f"columns: {unknown!r} is not a field of a row: choose from {', '.join(FIELDS)}")
        self.columns = columns
        self.subset = subset
        self.names = splits
        self.wants_chat = chat

    def _load(self) -> Mapping[SplitName, Sequence[Example]]:
        examples = {
            split: [make_example(row, where, self.columns) for where, row in rows]
            for split, rows in read_splits(self.data, self.subset, self.names).items()
        }
        what = self.data if isinstance(self.data, str) else self.name
        every = [example for rows in examples.values() for example in rows]
        answers = [parse_json(example.answer) for example in every]
        if all(isinstance(answer, dict) for answer in answers):
            self.metrics = {**self.metrics, "f1": json_f1, **make_field_metrics(answers)}
        if lists := [answer for answer in answers if isinstance(answer, list)]:
            log.warning(
                "%d answers of %s are lists, and are learnt as JSON text such as %s: give texts if that is not meant",
                len(lists),
                what,
                shorten(lists[0], 60),
            )
        return split_examples(examples, self.seed, least=MIN_ROWS, what=what)

    def is_chat(self, example: Example, tokenizer: Any) -> bool:
        if self.wants_chat is None:
            return CHAT_KEY in example.meta and bool(getattr(tokenizer, "chat_template", None))
        return self.wants_chat


# -- running text ------------------------------------------------------------------------------
class TextTask(Task):
    """Blocks of running text, your own or WikiText-2: the loss is that of every token, and sequences are packed full.

    Args:
        data: a .txt file, which is taken as it is, rows of `{"text"}` in a file (.jsonl, .json, .csv, .tsv, .parquet)
            or in Python, or a folder with train, validation and test files of these kinds; None: WikiText-2 from the
            hub. What is missing is split off the train file, by whole blocks of about `block_characters`.
    """

    name = "text"
    block_characters = 4000

    def __init__(self, data: Any = None, seed: int = 0):
        super().__init__(data, seed)

    def add_metrics(self, metrics: Mapping[str, Metric]) -> None:
        if metrics:
            raise BadInput(
                "the data is plain text, which has no answers for a metric to score: remove --metric"
            )

    def _load(self) -> Mapping[SplitName, Sequence[Example]]:
        data = self.data
        if data is None:
            published = load_hub_data(*WIKITEXT)
            data = {split: published[stems[0]] for split, stems in SPLIT_STEMS.items()}
        what = self.data if isinstance(self.data, str) else "the text"
        given: dict[SplitName, list[Example]] = {}
        for split, rows in read_splits(data).items():
            parts = [str(row.get("text", "")) for _, row in rows]
            text = "\n\n".join(part.strip("\n") for part in parts if part.strip())
            if not text:
                raise BadInput(f"{what} has no text: give a .txt file, or rows with a field `text`")
            given[split] = list(self._split_into_blocks(text))
        what = f"{what}, cut into blocks of {self.block_characters} characters"
        # A test split that is given keeps its order: it is one text, as perplexities of others are measured on.
        splits = split_examples(given, self.seed, what=what)
        return {**splits, "test": given.get("test", splits["test"])}

    def _split_into_blocks(self, text: str) -> Iterator[Example]:
        block: list[str] = []
        size = 0
        for line in text.split("\n"):
            # Lines are parted where one is blank, unless that takes as long again.
            if size >= self.block_characters * (2 if line.strip() else 1):
                yield Example("", "\n".join(block).strip("\n"))
                block = []
                size = 0
            block.append(line)
            size += len(line.strip())
        if size:
            yield Example("", "\n".join(block).strip("\n"))

    def encode(self, examples: Iterable[Example], tokenizer: Any, max_length: int) -> Iterator[Encoded]:
        """Rows of exactly `max_length` tokens (the last may be shorter), cut from the joined texts; all have labels."""
        import torch  # seconds, which a task that is refused does without

        ids: list[int] = []
        for index, example in enumerate(examples):
            text = ("\n\n" if index else "") + example.answer
            ids += tokenizer(text, add_special_tokens=False)["input_ids"]
            while len(ids) >= max_length:
                row = torch.tensor(ids[:max_length])
                ids = ids[max_length:]
                yield Encoded(row, row.clone())
        if len(ids) > 1:
            yield Encoded(torch.tensor(ids), torch.tensor(ids))
