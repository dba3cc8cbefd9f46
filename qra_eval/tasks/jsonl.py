"""A user's own data: prompts and answers, instructions, or chats, in files or on the hub."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qra_eval.tasks.base import Task, split_off
from qra_eval.tasks.chat import encode_chat
from qra_eval.tasks.encoding import Encoded, encode
from qra_eval.tasks.example import Example, SplitName
from qra_eval.tasks.forms import CHAT, check_columns, to_example
from qra_eval.tasks.sources import Row, hub_splits, is_hub_name, read_rows, split_files

MAX_NEW_TOKENS = 128


class JSONLTask(Task):
    """Rows of one file, split by the hash of their prompts, or of separate files, or of a data set's splits.

    A prompt with no white space at its end and an answer with none at its start are joined by a space; those of a
    chat are not. A row whose prompt is also in the test (or validation) file is left out of the others.

    Args:
        data: a file (.jsonl, .json, .csv, .tsv, .parquet), a folder with train.jsonl and, if there are,
            validation.jsonl and test.jsonl (or of those kinds), or a data set's name on the hub, `owner/name`.
        validation, test: separate files; what is missing is split off `data`.
        columns: columns by the fields that they are read as, such as `{prompt: question, answer: reply}`.
        subset: of a data set on the hub that has several.
        splits: names of a hub data set's splits, such as `{calibration: train_sft, test: test_sft}`.
        chat: put rows through the tokenizer's chat template: all (True), none (False), or None: conversations, if the
            tokenizer has a template.
    """

    name = "jsonl"
    judged_by = "exact_match"

    def __init__(
        self,
        data: str | None = None,
        seed: int = 0,
        *,
        validation: str | None = None,
        test: str | None = None,
        columns: Mapping[str, str] | None = None,
        subset: str | None = None,
        splits: Mapping[str, str] | None = None,
        chat: bool | None = None,
        **options: Any,
    ):
        super().__init__(data, seed, chat=bool(chat), **options)
        if data is None:
            raise ValueError("the jsonl task needs data: a file of rows, or a folder with train.jsonl")
        self.wanted, self.columns = chat, check_columns(columns)
        self.subset, self.names = subset, splits
        self.on_hub = is_hub_name(data)
        if not self.on_hub and (subset is not None or splits is not None):
            raise ValueError(f"subset and splits are of a data set on the hub, and {data!r} is a file or folder")
        self.files: dict[SplitName, Path | None] = {} if self.on_hub else split_files(Path(data))
        self.files |= {name: Path(p) for name, p in (("validation", validation), ("test", test)) if p}  # type: ignore[misc]

    @property
    def hub(self) -> str | None:
        return self.data if self.on_hub else None

    def _load(self) -> Mapping[SplitName, Sequence[Example]]:
        given: dict[SplitName, list[Row]] = {}
        if self.on_hub:
            given |= hub_splits(str(self.data), self.subset, self.names)
        given |= {name: read_rows(path) for name, path in self.files.items() if path is not None}
        examples = {name: [to_example(row, where, self.columns) for where, row in rows] for name, rows in given.items()}
        try:
            return split_off(examples, self.seed)
        except ValueError as error:
            raise ValueError(f"{self.data}: {error}") from None

    def in_chat(self, example: Example, tokenizer: Any) -> bool:
        if self.wanted is None:
            return CHAT in example.meta and bool(getattr(tokenizer, "chat_template", None))
        return self.wanted

    def encode(self, examples: Sequence[Example], tokenizer: Any, max_length: int) -> list[Encoded]:
        """Rows with labels on the answer, and in conversations on all answers of the assistant."""
        rows = []
        for example in examples:
            chat = self.in_chat(example, tokenizer)
            if chat and CHAT in example.meta:
                turns = [*example.messages, {"role": "assistant", "content": example.answer.removeprefix(" ")}]
                rows.append(encode_chat(turns, tokenizer, max_length))
            else:
                rows += encode([example], tokenizer, max_length, chat=chat)
        return rows

    def metrics(
        self, model: Any, tokenizer: Any, examples: Sequence[Example], *, batch_size: int = 8, max_length: int = 1024
    ) -> dict[str, float]:
        """exact_match: share of greedy answers that are the row's answer, white space around them aside."""
        longest = max((len(tokenizer(e.answer)["input_ids"]) for e in examples), default=1)
        new = min(MAX_NEW_TOKENS, longest + 1)
        answers = self.answers(model, tokenizer, examples, new, batch_size=batch_size, max_length=max_length)
        right = [a.strip() == e.answer.strip() for a, e in zip(answers, examples, strict=True)]
        return {"exact_match": sum(right) / max(1, len(right))}


def read_examples(path: str | Path, columns: Mapping[str, str] | None = None) -> list[Example]:
    """The examples of one file, in any of the forms; several in a file are fine.

    Raises:
        ValueError: a row of none of the forms; the message gives file, line, what was found and what is allowed.
    """
    return [to_example(row, where, columns) for where, row in read_rows(path)]
