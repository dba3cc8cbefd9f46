"""Multiple-choice questions, prompted and scored as by lm-evaluation-harness: ARC, OpenBookQA, PIQA and others."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from qra_eval.tasks.base import TRAIN_SHARES, Task, split_examples
from qra_eval.tasks.example import Example, SplitName
from qra_eval.tasks.forms import format_question, read_choices
from qra_eval.tasks.sources import read_folder_rows, read_hub_rows, read_splits
from qra_search.errors import BadInput

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
        data: folder with `<name>_train.jsonl` and `<name>_test.jsonl`, or one file (or rows in Python), which is split
            as a user's own rows are; rows are `{"question", "choices", "answer"}`, see `read_choices`. None: the hub.
    """

    judged_by = "choice_loss"

    def __init__(self, source: Source, data: Any = None, seed: int = 0, **options: Any):
        super().__init__(data, seed, **options)
        self.name, self.source = source.name, source

    def _load(self) -> Mapping[SplitName, Sequence[Example]]:
        if self.data is not None and not (isinstance(self.data, str) and Path(self.data).is_dir()):
            given = {split: self._read(rows) for split, rows in read_splits(self.data).items()}
            return split_examples(given, self.seed)
        source = self.source
        rows: dict[SplitName, list[Example]] = {}
        splits: dict[SplitName, str] = {"test": source.test, "train": "train"}
        for split, of_hub in splits.items():
            if self.data is not None:
                rows[split] = self._read(read_folder_rows(self.data, source.name, split))
            else:
                found = read_hub_rows(source.dataset, source.config, of_hub)
                rows[split] = [_example(source, *source.read(row)) for _, row in found]
        return split_examples(rows, self.seed, shares=TRAIN_SHARES)

    def _read(self, rows: Sequence[tuple[str, Row]]) -> list[Example]:
        return [_example(self.source, *read_choices(row, where)) for where, row in rows]


def _example(source: Source, question: str, choices: list[str], label: int) -> Example:
    if source.prompt is None:
        before, gap, after = question.partition("_")
        if not gap:
            raise BadInput(f"no `_` marks the gap in {question[:60]!r}")
        contexts = tuple(before + choice for choice in choices)
        rest = " " + after.strip()
        return Example(contexts[label], rest, (rest,) * len(choices), label, contexts)
    prompt = source.prompt(question)
    spaced = tuple(f" {choice}" for choice in choices)
    return Example(prompt, spaced[label], spaced, label)


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


def _task(*source: Any) -> Callable[..., MultipleChoiceTask]:
    return partial(MultipleChoiceTask, Source(*source))


arc_easy = _task("arc_easy", "allenai/ai2_arc", "ARC-Easy", "test", _read_lettered, format_question)
arc_challenge = _task("arc_challenge", "allenai/ai2_arc", "ARC-Challenge", "test", _read_lettered, format_question)
openbookqa = _task("openbookqa", "allenai/openbookqa", "main", "test", _read_lettered, "{}".format)
piqa = _task("piqa", "baber/piqa", None, "validation", _read_piqa, format_question)
winogrande = _task("winogrande", "allenai/winogrande", "winogrande_xl", "validation", _read_winogrande, None)
hellaswag = _task("hellaswag", "Rowan/hellaswag", None, "validation", _read_hellaswag, "{}".format)
boolq = _task("boolq", "aps/super_glue", "boolq", "validation", _read_boolq, "{}\nAnswer:".format)
