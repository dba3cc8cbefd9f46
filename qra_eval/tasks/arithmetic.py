"""Arithmetic word problems, generated from a seed: needs no data, and no two splits share a sum."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from qra_eval.tasks.base import Task, hash_of
from qra_eval.tasks.example import SPLITS, Example, SplitName
from qra_eval.tasks.numbers import number_of

SIZES: Mapping[str, int] = {"calibration": 4000, "validation": 500, "test": 1000}
OWNERS: Sequence[SplitName] = ("test", "validation", *(SPLITS[:1] * 8))
"""Which split a hash, modulo ten, belongs to; the hash knows nothing of the seed, so that no two seeds overlap."""

PATIENCE = 20_000
"""Draws in a row without a new problem, after which there are taken to be no more."""

NAMES = ("Anna", "Ben", "Carla", "David", "Emma", "Felix", "Grace", "Hugo", "Ines", "Jonas", "Kira", "Leo")
THINGS = ("apples", "books", "coins", "pens", "shells", "stamps", "marbles", "cards", "stones", "tickets")

Problem = tuple[str, list[str], int]
Template = Callable[[random.Random, list[int], str, str, str], Problem | None]


class ArithmeticTask(Task):
    """Word problems of one and two steps with worked answers.

    Args:
        digits: digits of the operands, each with the same chance.
        kinds: which kinds of problems; default: all of `KINDS`.
        sizes: examples of each split.
    """

    name = "arithmetic"
    judged_by = "exact_match"

    def __init__(
        self,
        data: str | None = None,
        seed: int = 0,
        *,
        digits: Sequence[int] = (1, 2, 3),
        kinds: Sequence[str] | None = None,
        sizes: Mapping[str, int] | None = None,
        **options: Any,
    ):
        super().__init__(data, seed, **options)
        if data is not None:
            raise ValueError(f"the arithmetic task is generated and takes no data, got {data!r}")
        unknown = set(kinds or ()) - set(KINDS)
        if unknown:
            raise ValueError(f"unknown kind {min(unknown)!r} of arithmetic problem: known are {', '.join(KINDS)}")
        if not digits or min(digits) < 1 or max(digits) > 9:
            raise ValueError(f"digits must be from 1 to 9, got {list(digits)}")
        self.digits, self.kinds = tuple(digits), tuple(kinds or KINDS)
        self.sizes = {**SIZES, **(sizes or {})}

    def _load(self) -> Mapping[SplitName, Sequence[Example]]:
        return {name: self._draw(name, self.sizes[name]) for name in SPLITS}

    def _draw(self, split: SplitName, size: int) -> list[Example]:
        draw = random.Random(hash_of("arithmetic", self.seed, split))
        found: dict[str, Example] = {}
        barren = 0
        for problem in self._problems(draw):
            if owner(problem) == split and problem.key not in found:
                found[problem.key] = problem
                barren = 0
            if len(found) >= size:
                break
            barren += 1
            if barren > PATIENCE:
                raise ValueError(
                    f"only {len(found)} of {size} different {split} problems exist with digits {list(self.digits)}: "
                    "allow more digits or fewer examples"
                )
        return list(found.values())

    def _problems(self, draw: random.Random) -> Iterator[Example]:
        while True:
            kind = draw.choice(self.kinds)
            operands = [_operand(draw, draw.choice(self.digits)) for _ in range(3)]
            who, other = draw.sample(NAMES, 2)
            made = KINDS[kind](draw, operands, who, other, draw.choice(THINGS))
            if made is not None:
                text, steps, result = made
                used = sorted(operands[: 2 if kind in TWO_OPERANDS else 3])
                yield Example(
                    f"Question: {text}\nAnswer:",
                    " " + "\n".join([*steps, f"#### {result}"]),
                    meta={"result": result, "kind": kind, "operands": tuple(used)},
                )

    def metrics(
        self, model: Any, tokenizer: Any, examples: Sequence[Example], *, batch_size: int = 8, max_length: int = 1024
    ) -> dict[str, float]:
        """exact_match: share of greedy answers whose number after `####` is right."""
        answers = self.answers(model, tokenizer, examples, 64, batch_size=batch_size, stop=("Question:",))
        right = [number_of(a) == str(e.meta["result"]) for a, e in zip(answers, examples, strict=True)]
        return {"exact_match": sum(right) / max(1, len(right))}


def owner(example: Example) -> SplitName:
    """The split that a problem belongs to, by a hash of its operands, in whatever order or wording they come."""
    return OWNERS[int(hash_of("operands", *example.meta["operands"])[:8], 16) % len(OWNERS)]


def _operand(draw: random.Random, digits: int) -> int:
    return draw.randint(2 if digits == 1 else 10 ** (digits - 1), 10**digits - 1)


def _total(draw: random.Random, x: list[int], who: str, other: str, thing: str) -> Problem:
    a, b = x[:2]
    text = draw.choice(
        (
            f"{who} has {a} {thing} and {other} has {b} {thing}. How many {thing} do they have together?",
            f"{who} had {a} {thing}. Then {other} gave {who} {b} more. How many {thing} does {who} have now?",
            f"There are {a} {thing} in one box and {b} {thing} in another box. How many {thing} are there in all?",
        )
    )
    return text, [f"{a} + {b} = {a + b}"], a + b


def _left(draw: random.Random, x: list[int], who: str, other: str, thing: str) -> Problem:
    a, b = max(x[:2]), min(x[:2])
    text = draw.choice(
        (
            f"{who} had {a} {thing} and gave {b} of them to {other}. How many {thing} are left?",
            f"{who} has {a} {thing}. {other} has {b} {thing}. How many more {thing} does {who} have than {other}?",
            f"A shop had {a} {thing} and sold {b} of them. How many {thing} remain?",
        )
    )
    return text, [f"{a} - {b} = {a - b}"], a - b


def _product(draw: random.Random, x: list[int], who: str, other: str, thing: str) -> Problem | None:
    a, b = x[:2]
    if a * b >= 10_000 or min(a, b) > 20:
        return None
    text = draw.choice(
        (
            f"{who} has {a} boxes with {b} {thing} in each box. How many {thing} does {who} have?",
            f"Each of {a} children brings {b} {thing}. How many {thing} do they bring together?",
        )
    )
    return text, [f"{a} * {b} = {a * b}"], a * b


def _share(draw: random.Random, x: list[int], who: str, other: str, thing: str) -> Problem | None:
    a, b = x[:2]
    if a * b >= 10_000 or b > 20:
        return None
    text = draw.choice(
        (
            f"{who} shares {a * b} {thing} equally among {b} friends. How many {thing} does each friend get?",
            f"{a * b} {thing} are packed into {b} bags of the same size. How many {thing} are in each bag?",
        )
    )
    return text, [f"{a * b} / {b} = {a}"], a


def _buy_and_give(draw: random.Random, x: list[int], who: str, other: str, thing: str) -> Problem | None:
    a, b, c = x
    if c > a + b:
        return None
    text = draw.choice(
        (
            f"{who} had {a} {thing}, bought {b} more and gave {c} to {other}. How many {thing} does {who} have now?",
            f"A bus carried {a} people. Then {b} people got on and {c} people got off. How many people are on the bus?",
        )
    )
    return text, [f"{a} + {b} = {a + b}", f"{a + b} - {c} = {a + b - c}"], a + b - c


def _boxes_and_more(draw: random.Random, x: list[int], who: str, other: str, thing: str) -> Problem | None:
    a, b, c = x
    if a * b >= 10_000 or min(a, b) > 20:
        return None
    text = draw.choice(
        (
            f"{who} has {a} bags with {b} {thing} each, and {c} more {thing}. How many {thing} does {who} have?",
            f"{other} reads {b} pages a day for {a} days, and then {c} pages more. How many pages is that in all?",
        )
    )
    return text, [f"{a} * {b} = {a * b}", f"{a * b} + {c} = {a * b + c}"], a * b + c


KINDS: Mapping[str, Template] = {
    "total": _total,
    "left": _left,
    "product": _product,
    "share": _share,
    "buy_and_give": _buy_and_give,
    "boxes_and_more": _boxes_and_more,
}
TWO_OPERANDS = frozenset({"total", "left", "product", "share"})
