"""Plain text: the loss is that of every token (perplexity is e to it), and sequences are packed full."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from qra_eval.tasks.base import Task
from qra_eval.tasks.encoding import Encoded
from qra_eval.tasks.example import Example, SplitName, check_characters, read_field
from qra_eval.tasks.metrics import Metric
from qra_eval.tasks.sources import (
    READERS,
    STEMS,
    Row,
    find_split_files,
    is_file_name,
    read_hub_rows,
    read_rows,
    read_splits,
    read_text,
)
from qra_eval.tasks.splits import split_examples
from qra_search.errors import BadInput

HUB = ("Salesforce/wikitext", "wikitext-2-raw-v1")
ENDS = (".txt", *READERS)
BLOCK_CHARACTERS = 4000


class Text(NamedTuple):
    """A text in parts that are never cut: lines that follow each other, or paragraphs with a blank line between."""

    parts: Sequence[str]
    lines: bool = False


class TextTask(Task):
    """Blocks of running text: your own, or WikiText-2.

    Args:
        data: a .txt file, which is taken as it is, rows of `{"text"}` in a file (.jsonl, .json, .csv, .tsv, .parquet)
            or in Python, or a folder with train, validation and test files of these kinds; None: WikiText-2 from the
            hub. What is missing is split off the train file, by whole blocks of about `block_characters`.
        block_characters: size of the blocks; lines (or rows) are never cut.
    """

    name = "text"

    def __init__(self, data: Any = None, seed: int = 0, *, block_characters: int = BLOCK_CHARACTERS):
        super().__init__(data, seed)
        if block_characters < 1:
            raise BadInput(f"block_characters must be a positive integer, got {block_characters!r}")
        self.block_characters = block_characters

    def add_metrics(self, metrics: Mapping[str, Metric]) -> None:
        if metrics:
            raise BadInput("running text has no answers to score: remove --metric")

    def _load(self) -> Mapping[SplitName, Sequence[Example]]:
        given = {name: list(self._cut_blocks(text)) for name, text in self._load_texts().items()}
        try:
            splits = split_examples(given, self.seed)
        except BadInput as error:
            what = self.data if isinstance(self.data, str) else "the text"
            raise BadInput(
                f"{what}, cut into blocks of {self.block_characters} characters: {error}"
            ) from None
        # A test split that is given keeps its order: it is one text, as perplexities of others are measured on.
        return {**splits, "test": given.get("test", splits["test"])}

    def _load_texts(self) -> dict[SplitName, Text]:
        if self.data is None:
            rows = {split: read_hub_rows(*HUB, stems[0]) for split, stems in STEMS.items()}
            return {split: Text([row["text"].strip("\n") for _, row in some]) for split, some in rows.items()}
        if isinstance(self.data, str):
            return {split: _read(path) for split, path in find_split_files(Path(self.data), ENDS).items()}
        return {split: _read_paragraphs(rows, self.name) for split, rows in read_splits(self.data).items()}

    def _cut_blocks(self, text: Text) -> Iterator[Example]:
        block: list[str] = []
        size = 0
        for part in [*text.parts, None]:
            # Lines are parted where one is blank, unless that takes as long again.
            least = self.block_characters * (2 if text.lines and part is not None and part.strip() else 1)
            if part is None or size >= least:
                if size:
                    yield Example("", ("\n" if text.lines else "\n\n").join(block).strip("\n"))
                block = []
                size = 0
            if part is not None and (text.lines or part.strip()):
                block.append(part)
                size += len(part.strip())

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


def _read(path: Path) -> Text:
    """Lines of a text file, or rows of a file that has such."""
    if is_file_name(path.name):
        return _read_paragraphs(read_rows(path), str(path))
    text = io.StringIO(read_text(path), newline=None).read()  # \r\n is \n
    if not text.strip():
        raise BadInput(f"{path} has no text")
    return Text(text.split("\n"), lines=True)


def _read_paragraphs(rows: Sequence[Row], what: str) -> Text:
    """Rows of `{"text"}`, each of which is a paragraph."""
    text = Text([check_characters(read_field(row, "text", str, where), "text", where) for where, row in rows])
    if not any(part.strip() for part in text.parts):
        raise BadInput(f"{what} has no text")
    return text
