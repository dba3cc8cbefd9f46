"""An example of a task, how a row of a user's data becomes one, and splits of examples that never overlap."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import isnan
from typing import Any, Literal, get_args

from qra_search.errors import BadInput, shorten

SplitName = Literal["train", "validation", "test"]
SPLITS: tuple[SplitName, ...] = get_args(SplitName)
SPLIT_SHARES: Mapping[SplitName, float] = {"test": 0.1, "validation": 0.1, "train": 0.8}
"""Parts of a user's own rows where all three splits are taken from them."""
TRAIN_SHARES: Mapping[SplitName, float] = {"validation": 0.15, "train": 0.85}
"""Parts of a data set's training split."""

ROW_FORMS = (
    '{"prompt", "answer"}, {"question", "answer"}, {"question", "choices", "answer"}, '
    '{"instruction", "input" (may be left out), "output"}, {"messages": [{"role", "content"}, ...]} or '
    '{"conversations": [{"from", "value"}, ...]}'
)
PROMPT_FIELDS, ANSWER_FIELDS = ("prompt", "question"), ("answer", "completion", "response", "answerKey")
CHOICE_FIELDS = ("choices", "options")
FIELDS = (
    *PROMPT_FIELDS,
    *ANSWER_FIELDS,
    *CHOICE_FIELDS,
    "instruction",
    "input",
    "output",
    "messages",
    "conversations",
)
"""What columns of other names can be read as."""
ROLES = {
    **{role: role for role in ("system", "user", "assistant", "tool")},
    **dict.fromkeys(("gpt", "chatgpt", "bot", "model"), "assistant"),
    **dict.fromkeys(("function", "function_response", "observation"), "tool"),
    "human": "user",
}
"""The roles of the names that speakers have in a conversation."""
CHAT_KEY = "chat"
"""In an example's `meta`: it is a whole conversation, of which all answers are learnt."""


@dataclass(frozen=True)
class Example:
    """One row of a task.

    Attributes:
        prompt: what the model is given.
        answer: what it is to go on with, white space before it included. The text is prompt + answer.
        choices: continuations to choose from, of which `answer` is one; empty if the answer is free.
        messages: the prompt as chat messages, for models with a chat template; else empty.
        meta: what only the task itself reads.
    """

    prompt: str
    answer: str
    choices: tuple[str, ...] = ()
    messages: tuple[Mapping[str, str], ...] = ()
    meta: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """What makes two examples the same for the splits: the prompt (or else the answer) and its choices, case and
        space aside."""
        return " ".join(" ".join((self.prompt.strip() or self.answer, *self.choices)).split()).casefold()


def make_example(
    row: Mapping[str, Any], where: str, columns: Mapping[str, str | Sequence[str]] | None = None
) -> Example:
    """The example of a row.

    Args:
        where: file and line, for messages.
        columns: the columns of fields that the row has under other names, of which several make an object; it then has
            no others.
    """
    given: dict[str, Any] = {} if columns else dict(row)
    for name, taken in (columns or {}).items():
        missing = [column for column in ([taken] if isinstance(taken, str) else taken) if column not in row]
        if missing:
            raise BadInput(f"{where}: no column {missing[0]!r} for {name}, only {_list_fields(row)}")
        given[name] = row[taken] if isinstance(taken, str) else {column: row[column] for column in taken}
    # null, or NaN, is what a table has for no field
    row = {k: v for k, v in given.items() if not (v is None or (isinstance(v, float) and isnan(v)))}
    if "messages" in row or "conversations" in row:
        return _make_chat(row, where)
    asked = next((name for name in PROMPT_FIELDS if name in row), None)
    answered = next((name for name in ANSWER_FIELDS if name in row), None)
    if "instruction" in row:
        question = read_text(row, "instruction", where)
        answer = read_text(row, "output", where)
        more = str(row.get("input", ""))
        prompt = f"### Instruction:\n{question}\n\n"
        if more.strip():
            question += f"\n\n{more}"
            prompt += f"### Input:\n{more}\n\n"
        prompt += "### Response:\n"
    elif asked is not None and answered is not None:
        prompt = read_text(row, asked, where)
        several = next((name for name in CHOICE_FIELDS if name in row), None)
        if several is not None:
            prompt = prompt if asked == "prompt" else format_question(prompt)
            given_choices, label = _read_choices(row[several], row[answered], where)
            choices = tuple(_join_answer(prompt, choice) for choice in given_choices)
            return Example(prompt, choices[label], choices, ({"role": "user", "content": prompt},))
        question, answer = prompt.strip(), _join_answer(prompt, read_text(row, answered, where))
    else:
        raise BadInput(
            f"{where}: the fields {_list_fields(row)} are no known form of a row ({ROW_FORMS}). Name your own with "
            '--columns prompt=...,answer=...; for rows that have only a "text", use --task text'
        )
    return Example(prompt, answer, messages=({"role": "user", "content": question},))


def format_question(text: str) -> str:
    """A question as lm-evaluation-harness puts those of ARC and PIQA."""
    return f"Question: {text}\nAnswer:"


def read_text(row: Mapping[str, Any], name: str, where: str) -> str:
    """A field that is not blank, as text; an object or list is taken as its compact JSON text.

    Raises:
        BadInput: it is missing, blank, or true or false.
    """
    if name not in row:
        raise BadInput(f"{where}: no field {name!r}, only {_list_fields(row)}")
    value = row[name]
    if isinstance(value, dict | list):
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    if isinstance(value, bool) or not isinstance(value, str | int | float) or not str(value).strip():
        raise BadInput(f"{where}: field {name!r} must be a text or a number, got {shorten(value, 60)}")
    return str(value)


def _read_choices(given: Any, answer: Any, where: str) -> tuple[list[str], int]:
    """Choices and the index of the right one.

    Choices are a list of texts, or ARC's `{"text": [...], "label": [...]}`. The answer is the index of a choice, its
    label, or its text.
    """
    labelled = isinstance(given, dict)
    choices: Any = given.get("text") if labelled else given
    labels: Any = given.get("label") if labelled else []
    lists = isinstance(choices, list) and isinstance(labels, list) and len(labels) in (0, len(choices))
    if not lists or not all(isinstance(text, str) and text.strip() for text in [*choices, *labels]):
        raise BadInput(
            f"{where}: choices must be a list of texts, or lists of text and label, got {shorten(given, 60)}"
        )
    if isinstance(answer, int):  # a number that is a label as well may mean either
        found = [answer] if 0 <= answer < len(choices) and str(answer) not in labels else []
    else:
        found = [i for i, label in enumerate(labels) if label.strip() == str(answer).strip()]
        found = found or [i for i, choice in enumerate(choices) if choice.strip() == str(answer).strip()]
    if len(found) != 1:
        raise BadInput(
            f"{where}: answer is {shorten(answer, 60)}, but the row has choices, so it must be the index (0 to "
            f"{len(choices) - 1}), the text or the label of exactly one of them. To learn the answer as text, use "
            "--columns prompt=...,answer=..."
        )
    return choices, found[0]


def _join_answer(prompt: str, answer: str) -> str:
    """An answer as it continues its prompt: after a space, unless there is white space."""
    return answer if prompt[-1].isspace() or answer[0].isspace() else f" {answer}"


def _make_chat(row: Mapping[str, Any], where: str) -> Example:
    """A conversation up to its last answer of the assistant; what comes after has nothing to learn from."""
    name = "messages" if "messages" in row else "conversations"
    speaker, said = ("role", "content") if name == "messages" else ("from", "value")
    turns: list[dict[str, str]] = []
    for message in row[name] if isinstance(row[name], list) else [row[name]]:
        place = f"{where}, message {len(turns) + 1}"
        if not isinstance(message, dict) or not isinstance(message.get(said), str):
            raise BadInput(f"{place} is {shorten(message, 60)}: give an object with {speaker} and {said}")
        if message.get(speaker) not in ROLES:
            raise BadInput(
                f"{place}: {speaker} must be one of {', '.join(ROLES)}, got {message.get(speaker)!r}"
            )
        if message.get("tool_calls"):
            raise BadInput(f"{place} has tool_calls, which are not trained on: write them as content")
        turns.append({"role": ROLES[message[speaker]], "content": message[said]})
    answers = [i for i, turn in enumerate(turns) if turn["role"] == "assistant" and turn["content"].strip()]
    if not answers or all(turn["role"] == "system" for turn in turns[: answers[-1]]):
        raise BadInput(f"{where}: messages must hold at least two, and the last must be the assistant's")
    before = turns[: answers[-1]]
    prompt = "".join(f"{turn['role'].capitalize()}: {turn['content']}\n" for turn in before)
    answer = f" {turns[answers[-1]]['content']}"
    return Example(f"{prompt}Assistant:", answer, messages=tuple(before), meta={CHAT_KEY: True})


def _list_fields(row: Mapping[str, Any]) -> str:
    return ", ".join(map(repr, row)) or "none"


# -- splits that never overlap: what a user gives is kept, and what is missing is taken from the training rows
def split_examples(
    given: Mapping[SplitName, Sequence[Example]],
    seed: int = 0,
    *,
    shares: Mapping[SplitName, float] = SPLIT_SHARES,
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
    for example in exclude_known(given["train"], held):
        groups.setdefault(hash_parts(seed, example.key), []).append(example)
    needed = len(missing) if parts else max(least, len(missing))
    if len(groups) < needed:
        raise BadInput(
            f"{what}: of {len(groups)} different prompts the splits {', '.join(missing)} cannot be made, at least "
            f"{needed} are needed: add rows, or give a folder with a file for each split"
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
