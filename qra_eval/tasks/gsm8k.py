"""GSM8K: grade-school word problems with worked answers, scored by the number after `####`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from qra_eval.tasks.base import Task, key_of, partition, shuffled, without
from qra_eval.tasks.encoding import chat_prompt
from qra_eval.tasks.example import Example, SplitName
from qra_eval.tasks.files import field_of, folder_rows, hub_rows, read_jsonl
from qra_eval.tasks.generation import generate_answers
from qra_eval.tasks.numbers import number_of

HUB = ("openai/gsm8k", "main")
STOP = ("Question:", "</s>", "<|im_end|>")
VALIDATION_SHARE = 0.15
SHOTS = 8
MAX_NEW_TOKENS = 256


class GSM8KTask(Task):
    """Prompts as lm-evaluation-harness has them: `Question: ...`, then `Answer:`.

    Args:
        data: folder with gsm8k_train.jsonl and gsm8k_test.jsonl; None: openai/gsm8k from the hub.
        shots: solved problems before each one, in the calibration rows as well: 0, or up to 8. They are rows of the
            training split kept out of calibration and validation, or those of `shots_file`.
        shots_file: a JSON Lines file of `{"question", "answer"}`, for another choice of solved problems.
        validation_share: part of the training split that the search's loss is measured on.
    """

    name = "gsm8k"

    def __init__(
        self,
        data: str | None = None,
        seed: int = 0,
        *,
        shots: int = 0,
        shots_file: str | None = None,
        validation_share: float = VALIDATION_SHARE,
        **options: Any,
    ):
        super().__init__(data, seed, **options)
        if not 0 <= shots <= SHOTS:
            raise ValueError(f"shots must be from 0 to {SHOTS}, got {shots}")
        if not 0 < validation_share < 1:
            raise ValueError(f"validation_share must lie between 0 and 1, got {validation_share}")
        self.shots, self.shots_file, self.validation_share = shots, shots_file, validation_share

    def _load(self) -> Mapping[SplitName, Sequence[Example]]:
        test = shuffled(self._rows("test"), self.seed, key_of)
        train = shuffled(without(self._rows("train"), test, key_of), 0, key_of)
        # The solved problems do not depend on the seed, and are kept apart whether or not they are shown.
        solved, train = train[:SHOTS], train[SHOTS:]
        if self.shots_file is not None:
            solved = [_example(row, f"{self.shots_file}, line {n}") for n, row in read_jsonl(self.shots_file)]
        if len(solved) < self.shots:
            raise ValueError(f"{self.shots} solved problems are wanted, there are {len(solved)}")
        shares = {"validation": self.validation_share, "calibration": 1 - self.validation_share}
        parts = partition(train, shares, self.seed, key_of)
        shown = solved[: self.shots]
        return {
            "calibration": [_after(shown, example) for example in parts["calibration"]],
            "validation": [_after(shown, example) for example in parts["validation"]],
            "test": [_after(shown, example) for example in test],
        }

    def _rows(self, split: Literal["train", "test"]) -> list[Example]:
        rows = hub_rows(*HUB, split) if self.data is None else folder_rows(self.data, "gsm8k", split)
        return [_example(row, where) for where, row in rows]

    def metrics(
        self, model: Any, tokenizer: Any, examples: Sequence[Example], *, batch_size: int = 8, max_length: int = 1024
    ) -> dict[str, float]:
        """exact_match and flexible_match: share of greedy answers with the right number, by the two ways to find it."""
        prompts = [chat_prompt(e, tokenizer) if self.chat else e.prompt for e in examples]
        answers = generate_answers(
            model,
            tokenizer,
            prompts,
            MAX_NEW_TOKENS,
            batch_size=batch_size,
            stop=STOP,
            max_length=max_length + MAX_NEW_TOKENS,
            special=not self.chat,
        )
        return exact_match(answers, examples)


def exact_match(answers: Sequence[str], examples: Sequence[Example]) -> dict[str, float]:
    """exact_match (number after `####`) and flexible_match (last number), each a share of the answers."""
    wanted = [number_of(example.answer) for example in examples]
    strict = [number_of(a) == w for a, w in zip(answers, wanted, strict=True)]
    flexible = [number_of(a, "flexible") == w for a, w in zip(answers, wanted, strict=True)]
    count = max(1, len(examples))
    return {"exact_match": sum(strict) / count, "flexible_match": sum(flexible) / count}


def _after(solved: Sequence[Example], example: Example) -> Example:
    """The example with solved problems before it, in its prompt and in its chat messages."""
    prefix = "".join(f"{shot.prompt}{shot.answer}\n\n" for shot in solved)
    turns = [m for s in solved for m in (*s.messages, {"role": "assistant", "content": s.answer.strip()})]
    return replace(example, prompt=prefix + example.prompt, messages=(*turns, *example.messages))


def _example(row: dict[str, Any], where: str) -> Example:
    question, answer = field_of(row, "question", str, where), field_of(row, "answer", str, where)
    if number_of(answer) is None:
        raise ValueError(f"{where}: the answer has no number after '####'")
    return Example(f"Question: {question}\nAnswer:", f" {answer}", messages=({"role": "user", "content": question},))
