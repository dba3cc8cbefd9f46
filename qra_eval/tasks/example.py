"""An example of a task, and how a row of a user's data becomes one: prompts, choices, instructions and chats."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isnan
from typing import Any, Literal, get_args

from qra_search.errors import BadInput, shorten

SplitName = Literal["train", "validation", "test"]
SPLITS: tuple[SplitName, ...] = get_args(SplitName)

FORMS = (
    '{"prompt", "answer"}, {"question", "answer"}, {"question", "choices", "answer"}, '
    '{"instruction", "input" (may be left out), "output"}, {"messages": [{"role", "content"}, ...]} or '
    '{"conversations": [{"from", "value"}, ...]}'
)
PROMPTS, ANSWERS = ("prompt", "question"), ("answer", "completion", "response")
CHOICES, CHOSEN = ("choices", "options"), ("answer", "answerKey")
FIELDS = (
    *PROMPTS,
    *ANSWERS,
    *CHOICES,
    "instruction",
    "input",
    "output",
    "messages",
    "conversations",
    "system",
)
"""What columns of other names can be read as."""
SPEAKERS = {
    "system": "system",
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("gpt", "assistant", "chatgpt", "bot", "model"), "assistant"),
    **dict.fromkeys(("tool", "function", "function_response", "observation"), "tool"),
}
TURNS: Mapping[str, tuple[str, str, Mapping[str, str]]] = {
    "messages": ("role", "content", {role: role for role in ("system", "user", "assistant", "tool")}),
    "conversations": ("from", "value", SPEAKERS),
}
"""Fields of a conversation: where a message has its speaker and its text, and the roles of the speakers' names."""
CHAT = "chat"
"""In an example's `meta`: it is a whole conversation, of which all answers are learnt."""


@dataclass(frozen=True)
class Example:
    """One row of a task.

    Attributes:
        prompt: what the model is given.
        answer: what it is to go on with, white space before it included. The text is prompt + answer.
        choices: continuations to choose from, of which `answer` is one; empty if the answer is free.
        label: index of the right choice.
        messages: the prompt as chat messages, for models with a chat template; else empty.
        meta: what only the task itself reads.
    """

    prompt: str
    answer: str
    choices: tuple[str, ...] = ()
    label: int | None = None
    messages: tuple[Mapping[str, str], ...] = ()
    meta: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """What makes two examples the same for the splits: the prompt (or else the answer) and its choices, case and
        space aside."""
        return " ".join(" ".join((self.prompt.strip() or self.answer, *self.choices)).split()).casefold()


def is_text(rows: Any) -> bool:
    """Whether rows in Python are running text: the first has a field `text`, and none of another form."""
    some = next(iter(rows.values()), ()) if isinstance(rows, Mapping) else rows
    first = next(iter(some), None) if hasattr(some, "__iter__") else None
    return isinstance(first, Mapping) and "text" in first and not set(FIELDS) & set(first)


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
        several = [taken] if isinstance(taken, str) else taken
        for column in several:
            if column not in row:
                raise BadInput(f"{where}: no column {column!r} for {name}, only {_list_fields(row)}")
        given[name] = row[taken] if isinstance(taken, str) else {column: row[column] for column in taken}
    # null, or NaN, is what a table has for no field
    row = {
        name: value
        for name, value in given.items()
        if not (value is None or (isinstance(value, float) and isnan(value)))
    }
    system = read_field(row, "system", str, where) if "system" in row else ""
    system = system if system.strip() else ""
    for name in TURNS:
        if name in row:
            return _make_chat(_read_turns(row, name, where, system), where)
    asked, answered = _find_field(row, PROMPTS), _find_field(row, ANSWERS)
    choices: tuple[str, ...] = ()
    label = None
    if "instruction" in row:
        instruction = _read_text(row, "instruction", where)
        more = read_field(row, "input", str, where) if "input" in row else ""
        more = more if more.strip() else ""
        question = f"{instruction}\n\n{more}" if more else instruction
        prompt = f"### Instruction:\n{instruction}\n\n"
        prompt += f"### Input:\n{more}\n\n### Response:\n" if more else "### Response:\n"
        answer = _read_answer(row, "output", where)
    elif asked is not None and _find_field(row, CHOICES) is not None:
        question, given_choices, label = read_choices(row, where)
        prompt = question if asked == "prompt" else format_question(question)
        question = prompt
        choices = tuple(_join_answer(prompt, choice) for choice in given_choices)
        answer = choices[label]
    elif asked is not None and answered is not None:
        prompt = _read_text(row, asked, where)
        question, answer = prompt.strip(), _join_answer(prompt, _read_answer(row, answered, where))
    else:
        nulls = ", ".join(map(repr, sorted(given.keys() - row.keys())))
        raise BadInput(
            f"{where}: fields are {_list_fields(row)}{f' ({nulls} null)' if nulls else ''}; allowed are {FORMS}; name "
            'others by --columns prompt=...,answer=..., and for {"text"} use --task text'
        )
    messages = [{"role": "user", "content": question}]
    if system:
        prompt = f"{system}\n\n{prompt}"
        messages.insert(0, {"role": "system", "content": system})
    return Example(prompt, answer, choices, label, tuple(messages))


def read_choices(row: Mapping[str, Any], where: str) -> tuple[str, list[str], int]:
    """Question, choices and index of the right one.

    Choices are a list of texts, or ARC's `{"text": [...], "label": [...]}`. The answer is the index of a choice, its
    label, or its text.
    """
    question = _read_text(row, _find_field(row, PROMPTS) or "question", where)
    given: Any = read_field(row, _find_field(row, CHOICES) or "choices", (list, dict), where)
    labelled = isinstance(given, dict)
    choices: Any = given.get("text") if labelled else given
    labels: Any = given.get("label") if labelled else []
    if not _has_texts(choices) or len(choices) < 2:
        raise BadInput(f"{where}: choices must be two or more strings, got {shorten(choices, 60)}")
    if labelled and not (_has_texts(labels) and len(labels) == len(choices)):
        raise BadInput(
            f"{where}: choices.label must be a list of strings, one for each choice, got {shorten(labels, 60)}"
        )
    answer = read_field(row, _find_field(row, CHOSEN) or "answer", (int, str), where)
    if isinstance(answer, int):  # a number that is a label as well may mean either
        found = [answer] if 0 <= answer < len(choices) and str(answer) not in labels else []
    else:
        found = [i for i, label in enumerate(labels) if label.strip() == answer.strip()]
        found = found or [i for i, choice in enumerate(choices) if choice.strip() == answer.strip()]
    if len(found) != 1:
        raise BadInput(
            f"{where}: answer is {shorten(answer, 60)}, but the row has choices, so it must be the index (0 to "
            f"{len(choices) - 1}), the text or the label of exactly one of them. To learn the answer as text, use "
            "--columns prompt=...,answer=..."
        )
    return question, choices, found[0]


def format_question(text: str) -> str:
    """A question as lm-evaluation-harness puts those of ARC and PIQA."""
    return f"Question: {text}\nAnswer:"


def read_field(row: Mapping[str, Any], name: str, kind: type | tuple[type, ...], where: str) -> Any:
    """A row's field; raises BadInput if it is missing or of another type."""
    kinds = kind if isinstance(kind, tuple) else (kind,)
    wanted = " or ".join(k.__name__ for k in kinds)
    if name not in row:
        raise BadInput(f"{where}: no field {name!r} ({wanted}), only {_list_fields(row)}")
    value = row[name]
    if not isinstance(value, kind) or (isinstance(value, bool) and bool not in kinds):
        raise BadInput(f"{where}: field {name!r} is {shorten(value, 60)}, a {wanted} is needed")
    return value


def _join_answer(prompt: str, answer: str) -> str:
    """An answer as it continues its prompt: after a space, unless there is white space."""
    return answer if prompt[-1].isspace() or answer[0].isspace() else f" {answer}"


def _read_turns(row: Mapping[str, Any], name: str, where: str, system: str) -> list[dict[str, str]]:
    """The turns of `messages` or of `conversations`, with the row's system text first if they have none."""
    speaker, said, roles = TURNS[name]
    turns: list[dict[str, str]] = []
    for number, message in enumerate(read_field(row, name, list, where), start=1):
        place = f"{where}, message {number}"
        if not isinstance(message, dict):
            raise BadInput(f"{place} is a {type(message).__name__}: give an object with {speaker} and {said}")
        role = read_field(message, speaker, str, place)
        if role not in roles:
            raise BadInput(f"{place}: {speaker} is {role!r}, allowed are {', '.join(roles)}")
        if message.get("tool_calls"):
            raise BadInput(f"{place} has tool_calls, which are not trained on: write them as content")
        content = read_field(message, said, str, place)
        turns.append({"role": roles[role], "content": content})
    if system and not any(turn["role"] == "system" for turn in turns):
        turns.insert(0, {"role": "system", "content": system})
    return turns


def _make_chat(turns: list[dict[str, str]], where: str) -> Example:
    """A conversation up to its last answer of the assistant; what comes after has nothing to learn from."""
    answers = [i for i, t in enumerate(turns) if i and t["role"] == "assistant" and t["content"].strip()]
    if not answers or all(t["role"] == "system" for t in turns[: answers[-1]]):
        raise BadInput(f"{where}: messages must end with a message of the assistant that follows another")
    before = turns[: answers[-1]]
    answer = turns[answers[-1]]["content"]
    prompt = "".join(f"{turn['role'].capitalize()}: {turn['content']}\n" for turn in before)
    return Example(f"{prompt}Assistant:", f" {answer}", messages=tuple(before), meta={CHAT: True})


def _read_text(row: Mapping[str, Any], name: str, where: str) -> str:
    """A text field that is not blank; numbers are taken as texts."""
    value = read_field(row, name, (str, int, float), where)
    if not str(value).strip():
        raise BadInput(f"{where}: field {name!r} is blank")
    return str(value)


def _read_answer(row: Mapping[str, Any], name: str, where: str) -> str:
    """A text field; an object or list is taken as its compact JSON text."""
    value = row.get(name)
    if isinstance(value, dict | list):
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return _read_text(row, name, where)


def _find_field(row: Mapping[str, Any], names: Sequence[str]) -> str | None:
    return next((name for name in names if name in row), None)


def _has_texts(values: Any) -> bool:
    return isinstance(values, list | tuple) and all(isinstance(v, str) and v.strip() for v in values)


def _list_fields(row: Mapping[str, Any]) -> str:
    return ", ".join(map(repr, row)) or "none"
