"""Multiple-choice questions, prompted and scored as by lm-evaluation-harness: ARC, OpenBookQA, PIQA and others."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from qra_eval.tasks.base import TRAIN_SHARES, Task, key_of, partition, shuffled, without
from qra_eval.tasks.example import Example, SplitName
from qra_eval.tasks.files import field_of, folder_rows, hub_rows
from qra_eval.tasks.scoring import score_choices

Row = dict[str, Any]
Parts = tuple[str, list[str], int]


@dataclass(frozen=True)
class Source:
    """One data set: where it is on the hub, how its rows there are read, and how a question is put.

    Attributes:
        test: the hub's split with public labels that is tested on.
        read: question, choices and index of the right one, from a row of the hub.
        prompt: the prompt of a question; None: the choice fills the question's gap `_` (WinoGrande).
    """

    name: str
    dataset: str
    config: str | None
    test: str
    read: Callable[[Row], Parts]
    prompt: Callable[[str], str] | None


class MultipleChoiceTask(Task):
    """Questions with choices.

    Args:
        source: which data set.
        data: folder with `<name>_train.jsonl` and `<name>_test.jsonl`, rows `{"question", "choices", "answer"}` with
            the index of the right choice as the answer; None: the hub.
    """

    judged_by = "choice_loss"

    def __init__(self, source: Source, data: str | None = None, seed: int = 0, **options: Any):
        super().__init__(data, seed, **options)
        self.name, self.source = source.name, source

    @property
    def hub(self) -> str | None:
        return self.source.dataset if self.data is None else None

    def _load(self) -> Mapping[SplitName, Sequence[Example]]:
        test = shuffled(self._rows("test"), self.seed, key_of)
        train = without(self._rows("train"), test, key_of)
        return {**partition(train, TRAIN_SHARES, self.seed, key_of), "test": test}

    def _rows(self, split: str) -> list[Example]:
        source = self.source
        if self.data is not None:
            rows = folder_rows(self.data, source.name, split)
            return [_example(source, *_checked(row, where)) for where, row in rows]
        return [
            _example(source, *source.read(row))
            for _, row in hub_rows(source.dataset, source.config, source.test if split == "test" else split)
        ]

    def metrics(
        self, model: Any, tokenizer: Any, examples: Sequence[Example], *, batch_size: int = 8, max_length: int = 1024
    ) -> dict[str, float]:
        """accuracy, accuracy_norm (per character), accuracy_bytes, margin and choice_loss (nats)."""
        return score_choices(
            model, tokenizer, examples, batch_size=batch_size, max_length=max_length, chat=self.chat
        ).metrics()


def _example(source: Source, question: str, choices: list[str], label: int) -> Example:
    if source.prompt is None:
        before, _, after = question.partition("_")
        contexts = tuple(before + choice for choice in choices)
        rest = " " + after.strip()
        return Example(contexts[label], rest, (rest,) * len(choices), label, contexts)
    prompt = source.prompt(question)
    spaced = tuple(f" {choice}" for choice in choices)
    return Example(prompt, spaced[label], spaced, label)


def _checked(row: Row, where: str) -> Parts:
    question = field_of(row, "question", str, where)
    choices = field_of(row, "choices", list, where)
    label = field_of(row, "answer", int, where)
    if len(choices) < 2 or not all(isinstance(choice, str) and choice.strip() for choice in choices):
        raise ValueError(f"{where}: choices must be two or more texts, got {str(choices)[:60]}")
    if not 0 <= label < len(choices):
        raise ValueError(f"{where}: answer must be the index of a choice, 0 to {len(choices) - 1}, got {label}")
    return question, choices, label


def _question(text: str) -> str:
    return f"Question: {text}\nAnswer:"


def _bare(text: str) -> str:
    return text


def _read_lettered(row: Row) -> Parts:
    """ARC and OpenBookQA: choices with labels, of which the key names one."""
    choices = row["choices"]
    question = row["question"] if "question" in row else row["question_stem"]
    return question, list(choices["text"]), list(choices["label"]).index(row["answerKey"].strip())


def _read_piqa(row: Row) -> Parts:
    return row["goal"], [row["sol1"], row["sol2"]], int(row["label"])


def _read_winogrande(row: Row) -> Parts:
    return row["sentence"], [row["option1"], row["option2"]], int(row["answer"]) - 1


def _read_hellaswag(row: Row) -> Parts:
    context = f"{row['activity_label']}: {row['ctx_a']} {row['ctx_b'].capitalize()}"
    return _clean(context), [_clean(ending) for ending in row["endings"]], int(row["label"])


def _read_boolq(row: Row) -> Parts:
    return f"{row['passage']}\nQuestion: {row['question']}?", ["no", "yes"], int(row["label"])


def _clean(text: str) -> str:
    """Without the marks that the WikiHow part of HellaSwag was left with."""
    text = text.strip().replace(" [title]", ". ")
    return re.sub(r"\[.*?\]", "", text).replace("  ", " ")


SOURCES = {
    source.name: source
    for source in (
        Source("arc_easy", "allenai/ai2_arc", "ARC-Easy", "test", _read_lettered, _question),
        Source("arc_challenge", "allenai/ai2_arc", "ARC-Challenge", "test", _read_lettered, _question),
        Source("openbookqa", "allenai/openbookqa", "main", "test", _read_lettered, _bare),
        Source("piqa", "baber/piqa", None, "validation", _read_piqa, _question),
        Source("winogrande", "allenai/winogrande", "winogrande_xl", "validation", _read_winogrande, None),
        Source("hellaswag", "Rowan/hellaswag", None, "validation", _read_hellaswag, _bare),
        Source("boolq", "aps/super_glue", "boolq", "validation", _read_boolq, "{}\nAnswer:".format),
    )
}

arc_easy = partial(MultipleChoiceTask, SOURCES["arc_easy"])
arc_challenge = partial(MultipleChoiceTask, SOURCES["arc_challenge"])
openbookqa = partial(MultipleChoiceTask, SOURCES["openbookqa"])
piqa = partial(MultipleChoiceTask, SOURCES["piqa"])
winogrande = partial(MultipleChoiceTask, SOURCES["winogrande"])
hellaswag = partial(MultipleChoiceTask, SOURCES["hellaswag"])
boolq = partial(MultipleChoiceTask, SOURCES["boolq"])
