"""From a row of a user's data to an example: prompts and answers, choices, instructions, and chats of two kinds."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from math import isnan
from typing import Any

from qra_eval.tasks.example import Example
from qra_eval.tasks.sources import check_characters, read_field
from qra_search.errors import BadInput, shorten

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
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "tool": "tool",
    "function": "tool",
    "function_response": "tool",
    "observation": "tool",
}
TURNS: Mapping[str, tuple[str, str, Mapping[str, str]]] = {
    "messages": ("role", "content", {role: role for role in ("system", "user", "assistant", "tool")}),
    "conversations": ("from", "value", SPEAKERS),
}
"""Fields of a conversation: where a message has its speaker and its text, and the roles of the speakers' names."""
CHAT = "chat"
"""In an example's `meta`: it is a whole conversation, of which all answers are learnt."""


def check_columns(columns: Mapping[str, str] | None) -> dict[str, str]:
    """Columns by the fields that they are read as; raises BadInput for a field that there is not."""
    for field in columns or ():
        if field not in FIELDS:
            raise BadInput(f"columns: {field!r} is not a field of a row, they are {', '.join(FIELDS)}")
    return dict(columns or {})


def is_text(rows: Any) -> bool:
    """Whether rows in Python are running text: the first has a field `text`, and none of another form."""
    some = next(iter(rows.values()), ()) if isinstance(rows, Mapping) else rows
    first = next(iter(some), None) if hasattr(some, "__iter__") else None
    return isinstance(first, Mapping) and "text" in first and not set(FIELDS) & set(first)


def make_example(row: Mapping[str, Any], where: str, columns: Mapping[str, str] | None = None) -> Example:
    """The example of a row.

    Args:
        where: file and line, for messages.
        columns: the columns of fields that the row has under other names; it then has no others.

    Raises:
        BadInput: a row of none of the forms; the message says where, what was found, what is allowed and the mend.
    """
    for field, column in (columns or {}).items():
        if column not in row:
            raise BadInput(f"{where}: no column {column!r} for {field}, only {_list_fields(row)}")
    row = {field: row[column] for field, column in columns.items()} if columns else row
    # null, or NaN, is what a table has for no field
    nothing = {
        field for field, value in row.items() if value is None or (isinstance(value, float) and isnan(value))
    }
    row = {field: value for field, value in row.items() if field not in nothing}
    for field in TURNS:
        if field in row:
            return _make_chat(_read_turns(row, field, where), where)
    if "instruction" in row:
        return _make_instruction(row, where)
    asked, answered = _find_field(row, PROMPTS), _find_field(row, ANSWERS)
    if asked is not None and _find_field(row, CHOICES) is not None:
        question, choices, label = read_choices(row, where)
        prompt = question if asked == "prompt" else format_question(question)
        spaced = tuple(_join_answer(prompt, choice) for choice in choices)
        messages = (*_list_system_turns(row, where), {"role": "user", "content": prompt})
        return Example(
            _write_system_text(row, where) + prompt, spaced[label], spaced, label, messages=messages
        )
    if asked is not None and answered is not None:
        prompt, answer = _read_text(row, asked, where), _read_answer(row, answered, where)
        messages = (*_list_system_turns(row, where), {"role": "user", "content": prompt.strip()})
        return Example(
            _write_system_text(row, where) + prompt, _join_answer(prompt, answer), messages=messages
        )
    empty = f" ({', '.join(map(repr, sorted(nothing)))} null)" if nothing else ""
    raise BadInput(
        f"{where}: fields are {_list_fields(row)}{empty}; allowed are {FORMS}; name others by --columns "
        'prompt=...,answer=..., and for {"text"} use --task text'
    )


def read_choices(row: Mapping[str, Any], where: str) -> tuple[str, list[str], int]:
    """Question, choices and index of the right one.

    Choices are a list of texts, or ARC's `{"text": [...], "label": [...]}`. The answer is the index of a choice, its
    label, or its text.

    Raises:
        BadInput: fewer than two choices, or an answer that names none or several of them.
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
            f"{where}: there must be one label, a string, for each choice, got {shorten(labels, 60)}"
        )
    answer = read_field(row, _find_field(row, CHOSEN) or "answer", (int, str), where)
    if isinstance(answer, int):  # a number that is a label as well may mean either
        found = [answer] if 0 <= answer < len(choices) and str(answer) not in labels else []
    else:
        found = [i for i, label in enumerate(labels) if label.strip() == answer.strip()]
        found = found or [i for i, choice in enumerate(choices) if choice.strip() == answer.strip()]
    if len(found) != 1:
        raise BadInput(
            f"{where}: answer is {shorten(answer, 60)}, but the row has choices, so it must be the index (0 "
            f"to {len(choices) - 1}), the text or the label of exactly one of them. To learn the answer as "
            "text, use --columns prompt=...,answer=..."
        )
    return question, [check_characters(choice, "choices", where) for choice in choices], found[0]


def format_question(text: str) -> str:
    """A question as lm-evaluation-harness puts those of ARC and PIQA."""
    return f"Question: {text}\nAnswer:"


def _join_answer(prompt: str, answer: str) -> str:
    """An answer as it continues its prompt: after a space, unless there is white space."""
    return answer if prompt[-1].isspace() or answer[0].isspace() else f" {answer}"


def _make_instruction(row: Mapping[str, Any], where: str) -> Example:
    instruction = _read_text(row, "instruction", where)
    given = read_field(row, "input", str, where) if "input" in row else ""
    asked = f"{instruction}\n\n{given}" if given.strip() else instruction
    prompt = f"### Instruction:\n{instruction}\n\n" + (f"### Input:\n{given}\n\n" if given.strip() else "")
    answer = _read_answer(row, "output", where)
    messages = (*_list_system_turns(row, where), {"role": "user", "content": asked})
    return Example(f"{_write_system_text(row, where)}{prompt}### Response:\n", answer, messages=messages)


def _list_system_turns(row: Mapping[str, Any], where: str) -> list[dict[str, str]]:
    """The turn of a row's field `system`, if it has one that is not blank."""
    if row.get("system") is None or not (text := read_field(row, "system", str, where)).strip():
        return []
    return [{"role": "system", "content": check_characters(text, "system", where)}]


def _write_system_text(row: Mapping[str, Any], where: str) -> str:
    """What stands before a prompt that goes through no chat template."""
    return "".join(f"{turn['content']}\n\n" for turn in _list_system_turns(row, where))


def _read_turns(row: Mapping[str, Any], field: str, where: str) -> list[dict[str, str]]:
    """The turns of `messages` or of `conversations`, with the row's system text first if they have none."""
    speaker, said, roles = TURNS[field]
    turns: list[dict[str, str]] = []
    for number, message in enumerate(read_field(row, field, list, where), start=1):
        place = f"{where}, message {number}"
        if not isinstance(message, dict):
            raise BadInput(
                f"{place} is a {type(message).__name__}, an object with {speaker} and {said} is needed"
            )
        role = read_field(message, speaker, str, place)
        if role not in roles:
            raise BadInput(f"{place}: {speaker} is {role!r}, allowed are {', '.join(roles)}")
        if message.get("tool_calls"):
            raise BadInput(
                f"{place} has tool_calls, which are not trained on: write them as content, or drop it"
            )
        content = check_characters(read_field(message, said, str, place), said, place)
        turns.append({"role": roles[role], "content": content})
    own = any(turn["role"] == "system" for turn in turns)
    return turns if own else [*_list_system_turns(row, where), *turns]


def _make_chat(turns: list[dict[str, str]], where: str) -> Example:
    """A conversation up to its last answer of the assistant; what comes after has nothing to learn from."""
    answers = [i for i, t in enumerate(turns) if i and t["role"] == "assistant" and t["content"].strip()]
    if not answers or all(t["role"] == "system" for t in turns[: answers[-1]]):
        raise BadInput(
            f"{where}: messages must end with a message of the assistant that follows another message"
        )
    before, answer = turns[: answers[-1]], turns[answers[-1]]["content"]
    prompt = "".join(f"{turn['role'].capitalize()}: {turn['content']}\n" for turn in before)
    return Example(f"{prompt}Assistant:", f" {answer}", messages=tuple(before), meta={CHAT: True})


def _read_text(row: Mapping[str, Any], name: str, where: str) -> str:
    """A text field that is not blank; numbers are taken as texts."""
    value = read_field(row, name, (str, int, float), where)
    if not str(value).strip():
        raise BadInput(f"{where}: field {name!r} is blank")
    return check_characters(str(value), name, where)


def _read_answer(row: Mapping[str, Any], name: str, where: str) -> str:
    """A text field; an object or list is taken as its compact JSON text."""
    value = row.get(name)
    if isinstance(value, dict | list):
        return check_characters(json.dumps(value, ensure_ascii=False, separators=(",", ":")), name, where)
    return _read_text(row, name, where)


def _find_field(row: Mapping[str, Any], names: Sequence[str]) -> str | None:
    """The first of the names that the row has."""
    return next((name for name in names if name in row), None)


def _has_texts(values: Any) -> bool:
    return isinstance(values, list | tuple) and all(
        isinstance(value, str) and value.strip() for value in values
    )


def _list_fields(row: Mapping[str, Any]) -> str:
    return ", ".join(map(repr, row)) or "none"
