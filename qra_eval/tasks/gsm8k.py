"""GSM8K: grade-school word problems with worked answers, scored by the number after `####`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from qra_eval.tasks.base import TRAIN_SHARES, Task, partition, shuffled, without
from qra_eval.tasks.example import Example, SplitName
from qra_eval.tasks.sources import field_of, folder_rows, hub_rows
from qra_search.errors import BadInput

HUB = ("openai/gsm8k", "main")
STOP = ("Question:", "</s>", "<|im_end|>")
SHOTS = 8
MAX_NEW_TOKENS = 256
# As lm-evaluation-harness finds numbers.
STRICT = re.compile(r"#### (\-?[0-9\.\,]+)")
FLEXIBLE = re.compile(r"(-?[$0-9.,]{2,})|(-?[0-9]+)")


class GSM8KTask(Task):
    """Prompts as lm-evaluation-harness has them: `Question: ...`, then `Answer:`.

    Args:
        data: folder with gsm8k_train.jsonl and gsm8k_test.jsonl; None: openai/gsm8k from the hub.
        shots: solved problems before each one, in the calibration rows as well: 0, or up to 8. They are rows of the
            training split kept out of calibration and validation.
    """

    name = "gsm8k"
    judged_by = "exact_match"

    def __init__(self, data: str | None = None, seed: int = 0, *, shots: int = 0, **options: Any):
        super().__init__(data, seed, **options)
        if not 0 <= shots <= SHOTS:
            raise BadInput(f"shots must be from 0 to {SHOTS}, got {shots}")
        self.shots = shots

    @property
    def hub(self) -> str | None:
        return HUB[0] if self.data is None else None

    def _load(self) -> Mapping[SplitName, Sequence[Example]]:
        test = shuffled(self._rows("test"), self.seed)
        train = shuffled(without(self._rows("train"), test), 0)
        # The solved problems do not depend on the seed, and are kept apart whether or not they are shown.
        solved, train = train[:SHOTS], train[SHOTS:]
        if len(solved) < self.shots:
            raise BadInput(f"{self.shots} solved problems are wanted, there are {len(solved)}")
        splits = {**partition(train, TRAIN_SHARES, self.seed), "test": test}
        shown = solved[: self.shots]
        return {name: [_after(shown, example) for example in examples] for name, examples in splits.items()}

    def _rows(self, split: Literal["train", "test"]) -> list[Example]:
        rows = hub_rows(*HUB, split) if self.data is None else folder_rows(self.data, "gsm8k", split)
        return [_example(row, where) for where, row in rows]

    def metrics(
        self, model: Any, tokenizer: Any, examples: Sequence[Example], *, batch_size: int = 8, max_length: int = 1024
    ) -> dict[str, float]:
        """exact_match and flexible_match: share of greedy answers with the right number, by the two ways to find it."""
        length = max_length + MAX_NEW_TOKENS
        answers = self.answers(
            model, tokenizer, examples, MAX_NEW_TOKENS, batch_size=batch_size, stop=STOP, max_length=length
        )
        return exact_match(answers, examples)


def exact_match(answers: Sequence[str], examples: Sequence[Example]) -> dict[str, float]:
    """exact_match (number after `####`) and flexible_match (last number), each a share of the answers."""
    wanted = [number_of(example.answer) for example in examples]
    strict = [number_of(a) == w for a, w in zip(answers, wanted, strict=True)]
    flexible = [number_of(a, "flexible") == w for a, w in zip(answers, wanted, strict=True)]
    count = max(1, len(examples))
    return {"exact_match": sum(strict) / count, "flexible_match": sum(flexible) / count}


def number_of(text: str, how: Literal["strict", "flexible"] = "strict") -> str | None:
    """The answer's number without commas, dollar signs and a final point; None if there is none.

    strict: the first number after `####`. flexible: the last thing that looks like a number.
    """
    if how == "strict":
        found = STRICT.findall(text)[:1]
    else:
        found = [part for match in FLEXIBLE.findall(text)[-1:] for part in match if part]
    return found[0].replace(",", "").replace("$", "").removesuffix(".") if found else None


def _after(solved: Sequence[Example], example: Example) -> Example:
    """The example with solved problems before it, in its prompt and in its chat messages."""
    prefix = "".join(f"{shot.prompt}{shot.answer}\n\n" for shot in solved)
    turns = [m for s in solved for m in (*s.messages, {"role": "assistant", "content": s.answer.strip()})]
    return replace(example, prompt=prefix + example.prompt, messages=(*turns, *example.messages))


def _example(row: dict[str, Any], where: str) -> Example:
    question, answer = field_of(row, "question", str, where), field_of(row, "answer", str, where)
    if number_of(answer) is None:
        raise BadInput(f"{where}: the answer has no number after '####'")
    return Example(f"Question: {question}\nAnswer:", f" {answer}", messages=({"role": "user", "content": question},))
