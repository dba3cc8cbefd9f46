"""Multiple-choice questions, prompted and scored as by lm-evaluation-harness: ARC, OpenBookQA, PIQA and others."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from qra_eval.tasks.base import TRAIN_SHARES, Task, split_examples
from qra_eval.tasks.example import Example, SplitName
from qra_eval.tasks.forms import format_question, read_choices
from qra_eval.tasks.sources import read_folder_rows, read_hub_rows, read_splits

Row = dict[str, Any]
Parts = tuple[str, list[str], int]


class MultipleChoiceTask(Task):
    """Questions with choices.

    Args:
        name: of the task.
        hub: name of the data set on the hub, and which of its configs.
        test: the hub's split with public labels that is tested on.
        read: question, choices and index of the right one, from a row of the hub.
        write_prompt: the prompt of a question.
        data: folder with `<name>_train.jsonl` and `<name>_test.jsonl`, or one file (or rows in Python), which is split
            as a user's own rows are; rows are `{"question", "choices", "answer"}`, see `read_choices`. None: the hub.
    """

    judged_by = "choice_loss"

    def __init__(
        self,
        name: str,
        hub: tuple[str, str | None],
        test: str,
        read: Callable[[Row], Parts],
        write_prompt: Callable[[str], str],
        data: Any = None,
        seed: int = 0,
        chat: bool = False,
    ):
        super().__init__(data, seed, chat=chat)
        self.name, self.hub, self.test = name, hub, test
        self.read, self.write_prompt = read, write_prompt

    def _load(self) -> Mapping[SplitName, Sequence[Example]]:
        rows: dict[SplitName, list[Example]] = {}
        if self.data is not None and not (isinstance(self.data, str) and Path(self.data).is_dir()):
            for split, found in read_splits(self.data).items():
                rows[split] = [self._make_example(*read_choices(row, where)) for where, row in found]
            return split_examples(rows, self.seed)
        splits: dict[SplitName, str] = {"test": self.test, "train": "train"}
        for split, of_hub in splits.items():
            if self.data is None:
                parts = [self.read(row) for _, row in read_hub_rows(*self.hub, of_hub)]
            else:
                parts = [
                    read_choices(row, where) for where, row in read_folder_rows(self.data, self.name, split)
                ]
            rows[split] = [self._make_example(*some) for some in parts]
        return split_examples(rows, self.seed, shares=TRAIN_SHARES)

    def _make_example(self, question: str, choices: list[str], label: int) -> Example:
        spaced = tuple(f" {choice}" for choice in choices)
        return Example(self.write_prompt(question), spaced[label], spaced, label)


def _read_lettered(row: Row) -> Parts:
    """ARC and OpenBookQA: choices with labels, of which the key names one."""
    choices = row["choices"]
    question = row["question"] if "question" in row else row["question_stem"]
    return question, list(choices["text"]), list(choices["label"]).index(row["answerKey"].strip())


def _read_piqa(row: Row) -> Parts:
    return row["goal"], [row["sol1"], row["sol2"]], int(row["label"])


def _read_boolq(row: Row) -> Parts:
    return f"{row['passage']}\nQuestion: {row['question']}?", ["no", "yes"], int(row["label"])


def _make_task(name: str, hub: tuple[str, str | None], *fields: Any) -> Callable[..., MultipleChoiceTask]:
    task = partial(MultipleChoiceTask, name, hub, *fields)
    task.__doc__ = f"Multiple-choice questions of {hub[0]}, prompted and scored as by lm-evaluation-harness."
    return task


ARC = "allenai/ai2_arc"
arc_easy = _make_task("arc_easy", (ARC, "ARC-Easy"), "test", _read_lettered, format_question)
arc_challenge = _make_task("arc_challenge", (ARC, "ARC-Challenge"), "test", _read_lettered, format_question)
openbookqa = _make_task("openbookqa", ("allenai/openbookqa", "main"), "test", _read_lettered, "{}".format)
piqa = _make_task("piqa", ("baber/piqa", None), "validation", _read_piqa, format_question)
boolq = _make_task("boolq", ("aps/super_glue", "boolq"), "validation", _read_boolq, "{}\nAnswer:".format)
