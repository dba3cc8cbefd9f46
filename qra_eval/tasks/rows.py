"""A task's rows, each tokenized once, when it is first asked for."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from itertools import islice
from typing import Any

import torch

from qra_eval.tasks.base import Task
from qra_eval.tasks.encoding import Encoded
from qra_eval.tasks.example import SplitName
from qra_search.errors import BadInput

ROWS_SEED = 0x5EED
"""Added to a seed, so that the order of rows and the order of their batches come from different numbers."""


class Rows:
    """The first rows of each split of a task.

    Args:
        name: of the task, for messages.
        max_length: tokens of a row, at most.
    """

    def __init__(self, task: Task, name: str, tokenizer: Any, max_length: int):
        self.task, self.name, self.tokenizer, self.max_length = task, name, tokenizer, max_length
        self._encoded: dict[SplitName, list[Encoded]] = {}
        self._waiting: dict[SplitName, Iterator[Encoded]] = {}

    def __call__(self, split: SplitName, count: int | None) -> list[Encoded]:
        """The first `count` rows of a split; fewer where it is shorter. None: all.

        Raises:
            BadInput: the split is empty.
        """
        if split not in self._encoded:
            examples = self.task.split(split)
            self._encoded[split] = []
            self._waiting[split] = self.task.encode(examples, self.tokenizer, self.max_length)
        rows = self._encoded[split]
        rows += islice(self._waiting[split], None if count is None else max(0, count - len(rows)))
        if not rows:
            raise BadInput(f"task {self.name!r} has no rows in its {split} split")
        return rows[:count]

    def shuffle(self, split: SplitName, count: int, seed: int) -> list[Encoded]:
        """`count` rows of a split, or all of them, in an order drawn by the seed; seed 0 takes the first in theirs."""
        if seed == 0:
            return self(split, count)
        examples = self.task.split(split)
        order = torch.randperm(
            len(examples), generator=torch.Generator().manual_seed(ROWS_SEED + seed)
        ).tolist()
        return list(
            islice(self.task.encode((examples[i] for i in order), self.tokenizer, self.max_length), count)
        )

    def hash(self, **counts: int | None) -> str:
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
        ids = torch.zeros(self.max_length, dtype=torch.long)
        return [Encoded(ids, ids)] * len(self.task.split(split)[:count])

    def shuffle(self, split: SplitName, count: int, seed: int) -> list[Encoded]:
        return self(split, count)
