"""What a task is: examples in three splits that never overlap, how they are scored, and their rows, tokenized once."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby, islice
from typing import Any

from qra_eval.tasks.encoding import IGNORED, Chat, Encoded, encode_example, encode_prompt, truncate_left
from qra_eval.tasks.example import SPLITS, Example, SplitName
from qra_eval.tasks.scoring import Metric, digest_source, generate_answers, score_answers
from qra_search.errors import BadInput, shorten

ROWS_SEED = 0x5EED
"""Added to a seed, so that the order of rows and the order of their batches come from different numbers."""
ANSWER_MARGIN = 8
"""Tokens that a generated answer may be longer than the longest wanted one."""


class Task(ABC):
    """Examples to train on, for validation (the search's loss) and for test (never seen by the search).

    A split is a fixed sequence, so that a cheap evaluation sees a prefix of what a full one sees. Train and validation
    come from a data set's training split, test from its test split.

    Args:
        data: what the task reads, such as a folder or file; None: generated, or from the hub.
        seed: of the splits.
        chat: put prompts through the tokenizer's chat template.
    """

    name: str = ""
    judged_by: str | None = None
    """The score that a search by the task's own measure is after: a loss (`..._loss`), or one from 0 to 1."""
    metrics: Mapping[str, Metric] = {}
    """What scores a generated answer, by name."""
    stop: Sequence[str] = ()
    """Texts that end a generated answer."""
    least_answer_tokens = 0
    """Tokens that a generated answer may have, however short the wanted ones are."""

    def __init__(self, data: Any = None, seed: int = 0, *, chat: bool = False):
        self.data = data
        self.seed = seed
        self.chat = chat
        self._splits: Mapping[SplitName, Sequence[Example]] | None = None

    def split(self, name: SplitName) -> Sequence[Example]:
        """The examples of a split, always in the same order; raises BadInput if two splits share one."""
        if self._splits is None:
            loaded = self._load()
            splits = {split: tuple(loaded.get(split, ())) for split in SPLITS}
            seen: dict[str, SplitName] = {}
            for split, examples in splits.items():
                for example in examples:
                    if (first := seen.setdefault(example.key, split)) != split:
                        raise BadInput(
                            f"task {self.name!r} has the same row in {first} and in {split}, {shorten(example.key)}: "
                            "give each row to one split, as `qra_eval.tasks.example.split_examples` does"
                        )
            self._splits = splits
        return self._splits[name]

    @abstractmethod
    def _load(self) -> Mapping[SplitName, Sequence[Example]]:
        """All three splits, with no key in two of them."""

    def encode(self, examples: Iterable[Example], tokenizer: Any, max_length: int) -> Iterator[Encoded]:
        """Rows for training and for the loss, each made when it is asked for: labels on the answer's tokens only."""
        for example in examples:
            yield encode_example(example, tokenizer, max_length, chat=self.is_chat(example, tokenizer))

    def is_chat(self, example: Example, tokenizer: Any) -> bool:
        """Whether an example goes through the tokenizer's chat template."""
        return self.chat

    def add_metrics(self, metrics: Mapping[str, Metric]) -> None:
        """Score answers by these functions as well; a search by the task's own measure goes by the first. One with the
        name of the task's own takes its place."""
        self.metrics = {**metrics, **{name: own for name, own in self.metrics.items() if name not in metrics}}
        self.judged_by = next(iter(metrics), self.judged_by)

    def score_rows(
        self,
        model: Any,
        tokenizer: Any,
        examples: Sequence[Example],
        *,
        batch_size: int = 8,
        max_length: int = 1024,
    ) -> dict[str, list[float]]:
        """Scores beside the loss, by name, one for each example: of greedy answers by `metrics`.

        Prompt and answer have `max_length` tokens at most.
        """
        if not self.metrics:
            return {}
        # Half is the prompt's: a longer answer than a training sees is learnt in part only.
        most = max(1, min(self.max_answer_tokens(examples, tokenizer), max_length // 2))
        options: dict[str, Any] = {"batch_size": batch_size, "max_length": max_length}
        answers = self.answer_examples(model, tokenizer, examples, most, **options)
        return {name: score_answers(name, metric, answers, examples) for name, metric in self.metrics.items()}

    def score_commonest(self, examples: Sequence[Example]) -> dict[str, float]:
        """The mean score by metric if every generated answer were the commonest wanted one; empty without examples."""
        counts = Counter(example.answer for example in examples)
        answers = [max(counts, key=counts.__getitem__, default="")] * len(examples)
        scores = {
            name: score_answers(f"{name} of the commonest answer", metric, answers, examples)
            for name, metric in self.metrics.items()
        }
        return {name: sum(own) / len(own) for name, own in scores.items() if own}

    @property
    def metric_digests(self) -> dict[str, str]:
        return {name: digest_source(metric) for name, metric in self.metrics.items()}

    def max_answer_tokens(self, examples: Sequence[Example], tokenizer: Any) -> int:
        """Most tokens of a generated answer: those of the longest wanted one, and `ANSWER_MARGIN` more."""
        longest = max((len(tokenizer(example.answer)["input_ids"]) for example in examples), default=0)
        return max(self.least_answer_tokens, longest + ANSWER_MARGIN)

    def answer_examples(
        self,
        model: Any,
        tokenizer: Any,
        examples: Sequence[Example],
        max_new_tokens: int,
        *,
        max_length: int,
        batch_size: int = 8,
    ) -> list[str]:
        """Greedy answers to the examples' prompts, in the chat format where they have it; see `generate_answers`.

        Prompt and answer have `max_length` tokens at most; a longer prompt loses its left.
        """
        room = max(1, max_length - max_new_tokens)
        prompts = []
        ends: set[int] = set()
        for example in examples:
            chat = self.is_chat(example, tokenizer)
            if chat:
                ends.update(Chat(example, tokenizer).end_tokens)
            ids = encode_prompt(tokenizer, self.make_prompt(example, tokenizer), special=not chat)
            prompts.append(truncate_left(ids, room, tokenizer))
        options: dict[str, Any] = {"batch_size": batch_size, "stop": self.stop, "ends": sorted(ends)}
        return generate_answers(model, tokenizer, prompts, max_new_tokens, **options)

    def make_prompt(self, example: Example, tokenizer: Any) -> str:
        """The text that the model is given for an answer: in the tokenizer's chat format if the example goes so."""
        return Chat(example, tokenizer).question if self.is_chat(example, tokenizer) else example.prompt


class Rows:
    """The first rows of each split of a task, of at most `max_length` tokens each."""

    def __init__(self, task: Task, name: str, tokenizer: Any, max_length: int):
        self.task = task
        self.name = name
        self.tokenizer = tokenizer
        self.max_length = max_length
        self._encoded: dict[SplitName, list[Encoded]] = {}
        self._waiting: dict[SplitName, Iterator[Encoded]] = {}

    def __call__(self, split: SplitName, count: int | None) -> list[Encoded]:
        """The first `count` rows of a split; fewer where it is shorter. None: all.

        Raises:
            BadInput: the split is empty.
        """
        if split not in self._encoded:
            self._encoded[split] = []
            self._waiting[split] = self.encode(self.task.split(split))
        rows = self._encoded[split]
        rows += islice(self._waiting[split], None if count is None else max(0, count - len(rows)))
        if not rows:
            raise BadInput(f"task {self.name!r} has no rows in its {split} split: give data that has some")
        return rows[:count]

    def encode(self, examples: Iterable[Example]) -> Iterator[Encoded]:
        """Rows of examples; without a tokenizer all have the greatest length, so that their memory is a bound."""
        if self.tokenizer is not None:
            return self.task.encode(examples, self.tokenizer, self.max_length)
        import torch

        ids = torch.zeros(self.max_length, dtype=torch.long)
        return (Encoded(ids, ids) for _ in examples)

    def shuffle(self, split: SplitName, count: int, seed: int) -> list[Encoded]:
        """`count` rows of a split, or all of them, in an order drawn by the seed; seed 0 takes the first in theirs."""
        import torch  # seconds, which a task that is refused does without

        if seed == 0:
            return self(split, count)
        examples = self.task.split(split)
        generator = torch.Generator().manual_seed(ROWS_SEED + seed)
        order = torch.randperm(len(examples), generator=generator).tolist()
        return list(islice(self.encode(examples[i] for i in order), count))

    def hash(self, **counts: int | None) -> str:
        """Hash of the tokens and labels of the first rows of splits, by the splits' names, in this order."""
        digest = hashlib.sha256()
        for split, count in counts.items():
            for row in self(split, count):  # type: ignore[arg-type]
                digest.update(row.input_ids.numpy().tobytes() + row.labels.numpy().tobytes())
        return digest.hexdigest()[:16]


def render_example(task: Task, tokenizer: Any, max_length: int) -> list[tuple[str, bool]]:
    """The first row of the train split, as the model sees it: its text in pieces, and whether each is learnt."""
    row = next(task.encode(task.split("train"), tokenizer, max_length))
    ids, labels = row.input_ids.tolist(), row.labels.tolist()
    pieces = []
    done = ""
    for learnt, places in groupby(range(len(ids)), lambda i: labels[i] != IGNORED):
        # What it adds to the text: by itself a piece may lose its first space.
        text = tokenizer.decode(ids[: list(places)[-1] + 1], clean_up_tokenization_spaces=False)
        pieces.append((text[len(done) :], learnt))
        done = text
    return pieces
