"""Arithmetic word problems, generated from a seed: needs no data, and no two splits share a sum."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from operator import add, floordiv, mul, sub

from qra_eval.tasks.base import Task
from qra_eval.tasks.example import SPLITS, Example, SplitName, hash_parts
from qra_eval.tasks.published import extract_answer
from qra_search.errors import BadInput

SPLIT_SIZES: Mapping[SplitName, int] = {"train": 4000, "validation": 500, "test": 1000}
SPLIT_BY_HASH: Sequence[SplitName] = ("test", "validation", *(SPLITS[:1] * 8))
"""Which split a hash of the operands belongs to, modulo ten; it knows nothing of the seed, so that no seeds overlap."""
SEED_NAMES: Mapping[SplitName, str] = {"train": "calibration", "validation": "validation", "test": "test"}
"""Part of the seed of each split; recorded figures are of problems from these."""

MAX_BARREN_DRAWS = 20_000
"""Draws in a row without a new problem, after which there are taken to be no more."""

NAMES = ("Anna", "Ben", "Carla", "David", "Emma", "Felix", "Grace", "Hugo", "Ines", "Jonas", "Kira", "Leo")
THINGS = ("apples", "books", "coins", "pens", "shells", "stamps", "marbles", "cards", "stones", "tickets")
OPERATIONS: Mapping[str, Callable[[int, int], int]] = {"+": add, "-": sub, "*": mul, "/": floordiv}


@dataclass(frozen=True)
class ProblemKind:
    """One kind of problem, over operands a, b and c (problems of one step: a and b).

    Attributes:
        steps: what is computed in turn, such as `(a, "+", b)`; the last result is the answer.
        wordings: ways to put it, with who, other and thing, the operands, and `whole`, which is a * b.
        fits: whether these operands can be asked for.
    """

    steps: Callable[[int, int, int], Sequence[tuple[int, str, int]]]
    wordings: Sequence[str]
    fits: Callable[[int, int, int], bool] = lambda a, b, c: True


PROBLEM_KINDS: Mapping[str, ProblemKind] = {
    "total": ProblemKind(
        lambda a, b, c: [(a, "+", b)],
        (
            "{who} has {a} {thing} and {other} has {b} {thing}. How many {thing} do they have together?",
            "{who} had {a} {thing}. Then {other} gave {who} {b} more. How many {thing} does {who} have now?",
            "There are {a} {thing} in one box and {b} {thing} in another box. How many {thing} are there in all?",
        ),
    ),
    "left": ProblemKind(
        lambda a, b, c: [(max(a, b), "-", min(a, b))],
        (
            "{who} had {most} {thing} and gave {least} of them to {other}. How many {thing} are left?",
            "{who} has {most} {thing}. {other} has {least} {thing}. "
            "How many more {thing} does {who} have than {other}?",
            "A shop had {most} {thing} and sold {least} of them. How many {thing} remain?",
        ),
    ),
    "product": ProblemKind(
        lambda a, b, c: [(a, "*", b)],
        (
            "{who} has {a} boxes with {b} {thing} in each box. How many {thing} does {who} have?",
            "Each of {a} children brings {b} {thing}. How many {thing} do they bring together?",
        ),
        lambda a, b, c: a * b < 10_000 and min(a, b) <= 20,
    ),
    "share": ProblemKind(
        lambda a, b, c: [(a * b, "/", b)],
        (
            "{who} shares {whole} {thing} equally among {b} friends. How many {thing} does each friend get?",
            "{whole} {thing} are packed into {b} bags of the same size. How many {thing} are in each bag?",
        ),
        lambda a, b, c: a * b < 10_000 and b <= 20,
    ),
    "buy_and_give": ProblemKind(
        lambda a, b, c: [(a, "+", b), (a + b, "-", c)],
        (
            "{who} had {a} {thing}, bought {b} more and gave {c} to {other}. How many {thing} does {who} have now?",
            "A bus carried {a} people. Then {b} people got on and {c} people got off. How many people are on the bus?",
        ),
        lambda a, b, c: c <= a + b,
    ),
    "boxes_and_more": ProblemKind(
        lambda a, b, c: [(a, "*", b), (a * b, "+", c)],
        (
            "{who} has {a} bags with {b} {thing} each, and {c} more {thing}. How many {thing} does {who} have?",
            "{other} reads {b} pages a day for {a} days, and then {c} pages more. How many pages is that in all?",
        ),
        lambda a, b, c: a * b < 10_000 and min(a, b) <= 20,
    ),
}


class ArithmeticTask(Task):
    """Word problems of one and two steps with worked answers.

    Args:
        kinds: of problems, each with the same chance; default: all of `PROBLEM_KINDS`.
        digits: of the operands, each with the same chance.
    """

    name = "arithmetic"
    judged_by = "exact_match"
    metrics = {
        "exact_match": lambda answer, example: float(extract_answer(answer) == str(example.meta["result"]))
    }
    stop = ("Question:",)

    def __init__(
        self,
        data: str | None = None,
        seed: int = 0,
        *,
        kinds: Sequence[str] | None = None,
        digits: Sequence[int] = (1, 2, 3),
        chat: bool = False,
    ):
        super().__init__(data, seed, chat=chat)
        if data is not None:
            raise BadInput(f"the arithmetic task makes its own problems: leave out the data, {data!r}")
        self.kinds = tuple(kinds or PROBLEM_KINDS)
        self.digits = tuple(digits)
        if not self.digits or min(self.digits) < 1:
            raise BadInput(
                f"option 'digits' of the arithmetic task must be one or more integers from 1 on, got "
                f"{list(self.digits)}"
            )
        if not set(self.kinds) <= set(PROBLEM_KINDS):
            raise BadInput(
                f"option 'kinds' of the arithmetic task must be among {', '.join(PROBLEM_KINDS)}, got "
                f"{', '.join(self.kinds)}"
            )

    def _load(self) -> Mapping[SplitName, Sequence[Example]]:
        return {name: _generate_split(self.seed, name, self.kinds, self.digits) for name in SPLITS}


@lru_cache(maxsize=16)
def _generate_split(
    seed: int, split: SplitName, kinds: tuple[str, ...], digits: tuple[int, ...]
) -> tuple[Example, ...]:
    """The problems of a split. Kept, as drawing them takes longer than all else of building a small evaluator."""
    draw = random.Random(hash_parts("arithmetic", seed, SEED_NAMES[split]))
    found: dict[str, Example] = {}
    barren = 0
    while len(found) < SPLIT_SIZES[split]:
        if barren == MAX_BARREN_DRAWS:
            problem = f"only {len(found)} different {split} problems exist of these kinds and digits"
            raise BadInput(f"{problem}: choose more kinds or digits")
        barren += 1
        name = draw.choice(kinds)
        kind = PROBLEM_KINDS[name]
        a, b, c = (_draw_operand(draw, draw.choice(digits)) for _ in range(3))
        who, other = draw.sample(NAMES, 2)
        thing = draw.choice(THINGS)
        if not kind.fits(a, b, c):
            continue
        words = {"who": who, "other": other, "thing": thing, "a": a, "b": b, "c": c}
        text = draw.choice(kind.wordings).format(**words, whole=a * b, most=max(a, b), least=min(a, b))
        steps = [(x, sign, y, OPERATIONS[sign](x, y)) for x, sign, y in kind.steps(a, b, c)]
        result = steps[-1][-1]
        lines = [f"{x} {sign} {y} = {value}" for x, sign, y, value in steps]
        operands = tuple(sorted((a, b, c)[: len(steps) + 1]))
        if SPLIT_BY_HASH[int(hash_parts("operands", *operands)[:8], 16) % len(SPLIT_BY_HASH)] != split:
            continue
        answer = " " + "\n".join([*lines, f"#### {result}"])
        meta = {"result": result, "kind": name, "operands": operands}
        example = Example(f"Question: {text}\nAnswer:", answer, meta=meta)
        if example.key not in found:
            found[example.key] = example
            barren = 0
    return tuple(found.values())


def _draw_operand(draw: random.Random, digits: int) -> int:
    return draw.randint(2 if digits == 1 else 10 ** (digits - 1), 10**digits - 1)
