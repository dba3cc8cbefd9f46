"""A task's rows, tokenized once."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch

from qra_eval.tasks.base import Task
from qra_eval.tasks.encoding import Encoded
from qra_eval.tasks.example import Example, SplitName
from qra_search.errors import BadInput

DRAW = 0x5EED
"""Added to a seed, so that the rows that it draws and the order of their batches come from different numbers."""


class Rows:
    """The first rows of each split of a task, tokenized when they are first asked for.

    Args:
        name: of the task, for messages.
        max_length: tokens of a row, at most.
    """

    def __init__(self, task: Task, name: str, tokenizer: Any, max_length: int):
        self.task, self.name, self.tokenizer, self.max_length = task, name, tokenizer, max_length
        self._kept: dict[tuple[SplitName, int | None], list[Encoded]] = {}

    def __call__(self, split: SplitName, count: int | None) -> list[Encoded]:
        """The first `count` rows of a split; fewer where it is shorter. None: all.

        Raises:
            BadInput: the split is empty.
        """
        key = (split, count)
        if key not in self._kept:
            # A text's examples are blocks, each of which may be several rows.
            self._kept[key] = self._encoded(self.task.split(split)[:count])[:count]
            if not self._kept[key]:
                raise BadInput(f"task {self.name!r} has no rows in its {split} split")
        return self._kept[key]

    def drawn(self, split: SplitName, count: int, seed: int) -> list[Encoded]:
        """`count` rows of a split in an order of the seed's own, or all of them; seed 0 takes the first in theirs."""
        if seed == 0:
            return self(split, count)
        examples = self.task.split(split)
        order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(DRAW + seed)).tolist()
        return self._encoded([examples[i] for i in order[:count]])[:count]

    def _encoded(self, examples: Sequence[Example]) -> list[Encoded]:
        encoded = self.task.encode(examples, self.tokenizer, self.max_length)
        return [Encoded(torch.as_tensor(e.input_ids), torch.as_tensor(e.labels), e.cut) for e in encoded]

    def hash(self, **counts: int) -> str:
        """Hash of the tokens and labels of the first rows of splits, by the splits' names, in this order."""
        digest = hashlib.sha256()
        for split, count in counts.items():
            for row in self(split, count):  # type: ignore[arg-type]
                digest.update(row.input_ids.numpy().tobytes() + row.labels.numpy().tobytes())
        return digest.hexdigest()[:16]


class LongestRows(Rows):
    """Rows of which nothing is known but their greatest length: all have that, and labels everywhere.

    What memory they take is an upper bound; for a model without a tokenizer.
    """

    def __call__(self, split: SplitName, count: int | None) -> list[Encoded]:
        key = (split, count)
        if key not in self._kept:
            ids = torch.zeros(self.max_length, dtype=torch.long)
            self._kept[key] = [Encoded(ids, ids)] * (len(self.task.split(split)) if count is None else count)
        return self._kept[key]

    def drawn(self, split: SplitName, count: int, seed: int) -> list[Encoded]:
        return self(split, count)
