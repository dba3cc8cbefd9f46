"""Splits that never overlap: what a user gives is kept, and what is missing is taken from the training rows."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from qra_eval.tasks.example import SPLITS, Example, SplitName
from qra_search.errors import BadInput

SHARES: Mapping[SplitName, float] = {"test": 0.1, "validation": 0.1, "train": 0.8}
"""Parts of a user's own rows where all three splits are taken from them."""
TRAIN_SHARES: Mapping[SplitName, float] = {"validation": 0.15, "train": 0.85}
"""Parts of a data set's training split."""


def split_examples(
    given: Mapping[SplitName, Sequence[Example]],
    seed: int = 0,
    *,
    shares: Mapping[SplitName, float] = SHARES,
    least: int = 0,
    what: str = "the data",
) -> dict[SplitName, Sequence[Example]]:
    """All three splits from those given, `train` among them: what is missing is split off that one.

    Rows that are also in a given test (or validation) split are left out of the others. Those of `train` are split by
    the hash of their key, so that equal keys fall together; within a split they are in the order of the hashes.

    Args:
        shares: parts of the rows that splits get which are not given, in proportion, up to whole keys, at least one.
        least: distinct rows from which all three splits are taken; BadInput if there are fewer.
        what: the data's name, for messages.
    """
    parts: dict[SplitName, Sequence[Example]] = {}
    held: list[Example] = []
    for name in SPLITS[:0:-1]:
        if name in given:
            parts[name] = shuffle_examples(exclude_known(given[name], held), seed)
            held += parts[name]
    missing = {name: share for name, share in shares.items() if name not in parts}
    groups: dict[str, list[Example]] = {}
    free = exclude_known(given["train"], held)
    for example in free:
        groups.setdefault(hash_parts(seed, example.key), []).append(example)
    needed = len(missing) if parts else max(least, len(missing))
    if len(groups) < needed:
        lost = len(given["train"]) - len(free)
        others = f" (beside {lost} rows of train that are in another split as well)" if lost else ""
        raise BadInput(
            f"{what}: {len(groups)} different prompts{others} are too few for {', '.join(missing)} splits: give at "
            f"least {needed}, or a folder with a file for each split"
        )
    ordered = [groups[digest] for digest in sorted(groups, reverse=True)]
    total = sum(map(len, ordered))
    whole = sum(missing.values())
    later = len(missing)
    for name, share in missing.items():
        later -= 1
        rows: list[Example] = []
        while len(ordered) > later and (not rows or not later or len(rows) < round(share / whole * total)):
            rows += ordered.pop()
        parts[name] = rows
    return parts


def exclude_known(examples: Iterable[Example], taken: Iterable[Example]) -> list[Example]:
    keys = {example.key for example in taken}
    return [example for example in examples if example.key not in keys]


def shuffle_examples(examples: Iterable[Example], seed: int) -> list[Example]:
    """Examples in the order of the hashes of their keys."""
    return sorted(examples, key=lambda example: hash_parts(seed, example.key))


def hash_parts(*parts: Any) -> str:
    """Hexadecimal SHA-256 of the parts' texts."""
    return hashlib.sha256("\x1f".join(map(str, parts)).encode()).hexdigest()
