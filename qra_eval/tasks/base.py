"""What a task is: examples in three splits that never overlap, and how they are tokenized and scored."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from qra_eval.tasks.encoding import IGNORED, Encoded, chat_prompt, encode_example
from qra_eval.tasks.example import SPLITS, Example, SplitName
from qra_eval.tasks.generation import generate_answers
from qra_search.errors import BadInput, shortened

SHARES: Mapping[SplitName, float] = {"test": 0.1, "validation": 0.1, "train": 0.8}
"""Parts of a user's own rows where all three splits are taken from them."""
TRAIN_SHARES: Mapping[SplitName, float] = {"validation": 0.15, "train": 0.85}
"""Parts of a data set's training split."""


class Task(ABC):
    """Examples to train on, for validation (the search's loss) and for test (never seen by the search).

    A split is a fixed sequence: its first n examples are the same whatever n is, so that a cheap evaluation sees a
    prefix of what a full one sees. Train and validation come from a data set's training split, test from its
    test split.

    Args:
        data: what the task reads, such as a folder or file; None: generated, or from the hub.
        seed: of the splits.
        chat: put prompts through the tokenizer's chat template.
    """

    name: str = ""
    judged_by: str | None = None
    """Figure of `metrics` that a search by the task's own measure is after: a loss (`..._loss`), or a share of rows."""
    judges_long = False
    """Whether `metrics` say something of long answers too, since they do not go word by word."""

    def __init__(self, data: Any = None, seed: int = 0, *, chat: bool = False):
        self.data, self.seed, self.chat = data, seed, chat
        self._splits: Mapping[SplitName, Sequence[Example]] | None = None

    def split(self, name: SplitName) -> Sequence[Example]:
        """The examples of a split, always in the same order."""
        if name not in SPLITS:
            raise BadInput(f"unknown split {name!r}: splits are {', '.join(SPLITS)}")
        if self._splits is None:
            self._splits = _checked(self.name, self._load())
        return self._splits[name]

    @abstractmethod
    def _load(self) -> Mapping[SplitName, Sequence[Example]]:
        """All three splits, with no key in two of them."""

    def encode(self, examples: Iterable[Example], tokenizer: Any, max_length: int) -> Iterator[Encoded]:
        """Rows for training and for the loss, each made when it is asked for: labels on the answer's tokens only."""
        for example in examples:
            yield encode_example(example, tokenizer, max_length, chat=self.is_chat(example, tokenizer))

    def metrics(
        self, model: Any, tokenizer: Any, examples: Sequence[Example], *, batch_size: int = 8, max_length: int = 1024
    ) -> dict[str, float]:
        """What the task is judged by beside the loss, by name; higher is better but for perplexities."""
        return {}

    def objective(self, model: Any, tokenizer: Any, examples: Sequence[Example], **options: Any) -> float:
        """What a search by the task's own measure lowers: the loss of `judged_by`, or the share that misses it.

        Args:
            options: of `metrics`.

        Raises:
            BadInput: the task has no measure of its own.
        """
        if self.judged_by is None:
            raise BadInput(f"the task {self.name!r} has no measure of its own: leave search.metric at loss")
        value = self.metrics(model, tokenizer, examples, **options)[self.judged_by]
        return value if self.judged_by.endswith("loss") else 1.0 - value

    def answers(
        self, model: Any, tokenizer: Any, examples: Sequence[Example], max_new_tokens: int, **options: Any
    ) -> list[str]:
        """Greedy answers to the examples' prompts, in the chat format where they have it; see `generate_answers`."""
        found: dict[int, str] = {}
        most = options.get("max_length")
        room = None if most is None else max(1, most - max_new_tokens)
        for chat in (False, True):
            some = [i for i, example in enumerate(examples) if self.is_chat(example, tokenizer) == chat]
            prompts = [self.prompt(examples[i], tokenizer, room) for i in some]
            answers = generate_answers(model, tokenizer, prompts, max_new_tokens, special=not chat, **options)
            found.update(zip(some, answers, strict=True))
        return [found[i] for i in range(len(examples))]

    def prompt(self, example: Example, tokenizer: Any, room: int | None = None) -> str:
        """The text that the model is given for an answer: in the tokenizer's chat format if the example goes so.

        Args:
            room: tokens; a conversation is cut to fit, see `chat_prompt`.
        """
        return chat_prompt(example, tokenizer, room) if self.is_chat(example, tokenizer) else example.prompt

    def is_chat(self, example: Example, tokenizer: Any) -> bool:
        """Whether an example goes through the tokenizer's chat template."""
        return self.chat


def _checked(task: str, loaded: Mapping[SplitName, Sequence[Example]]) -> dict[SplitName, tuple[Example, ...]]:
    """The splits of a task, which may be a user's own.

    Raises:
        BadInput: one is missing, holds something else, or shares examples with another.
    """
    splits: dict[SplitName, tuple[Example, ...]] = {}
    seen: dict[str, SplitName] = {}
    for name in SPLITS:
        if name not in loaded:
            raise BadInput(f"the task {task!r} gives no {name} examples: its _load returns {', '.join(SPLITS)}")
        splits[name] = tuple(loaded[name])
        for example in splits[name]:
            if not isinstance(example, Example):
                raise BadInput(f"the task {task!r} has a {type(example).__name__} for a row: an Example is needed")
            if (first := seen.setdefault(example.key, name)) != name:
                raise BadInput(
                    f"the task {task!r} has a row in {first} and in {name}, {shortened(example.key)}: figures of rows "
                    "that were tuned on say nothing; `qra_eval.tasks.base.partition` keeps splits apart"
                )
    return splits


def rendered_example(task: Task, tokenizer: Any, max_length: int, seed: int = 0) -> list[tuple[str, bool]]:
    """One row of the train split, as the model sees it: its text in pieces, and whether each is learnt.

    Args:
        seed: row `seed` of the train split, counted around.

    Raises:
        BadInput: the row cannot be tokenized, or the tokenizer's chat template refuses it.
    """
    examples = task.split("train")
    row = next(task.encode([examples[seed % len(examples)]], tokenizer, max_length))
    ids, labels = row.input_ids.tolist(), row.labels.tolist()
    pieces, done = [], ""
    for learnt, places in groupby(range(len(ids)), lambda i: labels[i] != IGNORED):
        # What it adds to the text: by itself a piece may lose its first space.
        text = tokenizer.decode(ids[: list(places)[-1] + 1], clean_up_tokenization_spaces=False)
        pieces.append((text[len(done) :], learnt))
        done = text
    return pieces


def split_off(given: Mapping[SplitName, Sequence[Example]], seed: int) -> dict[SplitName, Sequence[Example]]:
    """All three splits from those given, `train` among them: what is missing is split off that one.

    Rows that are also in a given test (or validation) split are left out of the others.
    """
    held: dict[SplitName, Sequence[Example]] = {}
    taken: list[Example] = []
    for name in SPLITS[:0:-1]:
        if name in given:
            held[name] = shuffled(without(given[name], taken), seed)
            taken += held[name]
    missing = {name: share for name, share in SHARES.items() if name not in held}
    shares = {name: share / sum(missing.values()) for name, share in missing.items()}
    return {**held, **partition(without(given["train"], taken), shares, seed)}


def partition(
    examples: Iterable[Example], shares: Mapping[SplitName, float], seed: int
) -> dict[SplitName, Sequence[Example]]:
    """Split examples by the hash of their key, so that those of equal keys fall together.

    Args:
        shares: part of the examples that each split gets, up to whole keys, at least one; the shares sum to 1.

    Returns:
        Examples by split, in the order of their hashes (a fixed shuffle).

    Raises:
        BadInput: fewer distinct keys than splits.
    """
    groups: dict[str, list[Example]] = {}
    for example in examples:
        groups.setdefault(hash_of(seed, example.key), []).append(example)
    if len(groups) < len(shares):
        raise BadInput(
            f"{len(groups)} distinct examples cannot be split into {', '.join(shares)}: {len(shares)} are needed"
        )
    ordered = [groups[digest] for digest in sorted(groups, reverse=True)]
    total, names = sum(map(len, ordered)), list(shares)
    parts: dict[SplitName, Sequence[Example]] = {}
    for index, name in enumerate(names):
        later = len(names) - index - 1
        taken: list[Example] = []
        while len(ordered) > later and (not taken or not later or len(taken) < round(shares[name] * total)):
            taken += ordered.pop()
        parts[name] = taken
    return parts


def without(examples: Iterable[Example], taken: Iterable[Example]) -> list[Example]:
    """The examples whose key none of `taken` has."""
    keys = {example.key for example in taken}
    return [example for example in examples if example.key not in keys]


def shuffled(examples: Iterable[Example], seed: int) -> list[Example]:
    """Examples in the order of the hashes of their keys."""
    return sorted(examples, key=lambda example: hash_of(seed, example.key))


def text_hash(task: Task, **counts: int | None) -> str:
    """Hash of the first examples of splits as the task has them, by the splits' names; None: of all."""
    digest = hashlib.sha256()
    for split, count in counts.items():
        for example in task.split(split)[:count]:  # type: ignore[arg-type]
            digest.update(repr(example).encode())
    return digest.hexdigest()[:16]


def hash_of(*parts: Any) -> str:
    """Hexadecimal SHA-256 of the parts' texts."""
    return hashlib.sha256("\x1f".join(map(str, parts)).encode()).hexdigest()
