"""From a row of a user's data to an example: prompts and answers, instructions, and chats of two kinds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qra_eval.tasks.example import Example
from qra_eval.tasks.files import field_of

FORMS = (
    '{"prompt", "answer"}, {"question", "answer"}, {"instruction", "input" (may be left out), "output"}, '
    '{"messages": [{"role", "content"}, ...]} or {"conversations": [{"from", "value"}, ...]}'
)
PROMPTS, ANSWERS = ("prompt", "question"), ("answer", "completion", "response")
FIELDS = (*PROMPTS, *ANSWERS, "instruction", "input", "output", "messages", "conversations", "system")
"""What columns of other names can be read as."""
ROLES = ("system", "user", "assistant", "tool")
SPEAKERS = {
    "system": "system", "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant",
    "chatgpt": "assistant", "bot": "assistant", "model": "assistant", "tool": "tool", "function": "tool",
    "function_response": "tool", "observation": "tool",
}  # fmt: skip
"""Roles of the names in ShareGPT's `from`."""
CHAT = "chat"
"""In an example's `meta`: it is a whole conversation, of which all answers are learnt."""


def check_columns(columns: Mapping[str, str] | None) -> dict[str, str]:
    """Columns by the fields that they are read as; raises ValueError for a field that there is not."""
    if columns is not None and not isinstance(columns, Mapping):
        raise ValueError(f"columns are a mapping such as {{prompt: question, answer: reply}}, got {columns!r}")
    for field in columns or ():
        if field not in FIELDS:
            raise ValueError(f"columns: {field!r} is no field of a row, they are {', '.join(FIELDS)}")
    return dict(columns or {})


def to_example(row: dict[str, Any], where: str, columns: Mapping[str, str] | None = None) -> Example:
    """The example of a row.

    Args:
        where: file and line, for messages.
        columns: the columns of fields that the row has under other names; it then has no others.

    Raises:
        ValueError: a row of none of the forms; the message says where, what was found, what is allowed and the mend.
    """
    if columns:
        for field, column in columns.items():
            if column not in row:
                raise ValueError(f"{where}: no column {column!r} for {field}, only {_names(row)}")
        row = {field: row[column] for field, column in columns.items()}
    if row.get("messages") is not None:
        return _chat(_turns(row, where), where)
    if row.get("conversations") is not None:
        return _chat(_sharegpt(row, where), where)
    if "instruction" in row:
        return _instruction(row, where)
    asked = next((name for name in PROMPTS if name in row), None)
    answered = next((name for name in ANSWERS if name in row), None)
    if asked is not None and answered is not None:
        prompt, answer = _text(row, asked, where), _text(row, answered, where)
        apart = not prompt[-1].isspace() and not answer[0].isspace()
        messages = (*_system(row), {"role": "user", "content": prompt.strip()})
        return Example(_before(row) + prompt, f" {answer}" if apart else answer, messages=messages)
    raise ValueError(
        f"{where}: fields are {_names(row)}; allowed are {FORMS}; name others by --columns prompt=...,answer=..."
    )


def _instruction(row: dict[str, Any], where: str) -> Example:
    instruction = _text(row, "instruction", where)
    given = field_of(row, "input", str, where) if row.get("input") is not None else ""
    asked = f"{instruction}\n\n{given}" if given.strip() else instruction
    prompt = f"### Instruction:\n{instruction}\n\n" + (f"### Input:\n{given}\n\n" if given.strip() else "")
    answer = _text(row, "output", where)
    messages = (*_system(row), {"role": "user", "content": asked})
    return Example(f"{_before(row)}{prompt}### Response:\n", answer, messages=messages)


def _system(row: Mapping[str, Any]) -> list[dict[str, str]]:
    """The turn of a row's field `system`, if it has one that is not blank."""
    text = row.get("system")
    return [{"role": "system", "content": text}] if isinstance(text, str) and text.strip() else []


def _before(row: Mapping[str, Any]) -> str:
    """What stands before a prompt that goes through no chat template."""
    return "".join(f"{turn['content']}\n\n" for turn in _system(row))


def _turns(row: dict[str, Any], where: str) -> list[dict[str, str]]:
    turns: list[dict[str, str]] = []
    for index, message in enumerate(field_of(row, "messages", list, where)):
        place = f"{where}, message {index + 1}"
        if not isinstance(message, dict):
            raise ValueError(f"{place} is a {type(message).__name__}, an object with role and content is needed")
        if field_of(message, "role", str, place) not in ROLES:
            raise ValueError(f"{place}: role is {message['role']!r}, allowed are {', '.join(ROLES)}")
        if message.get("tool_calls"):
            raise ValueError(f"{place} has tool_calls, which are not learnt: write them as content, or leave it out")
        turns.append({"role": message["role"], "content": field_of(message, "content", str, place)})
    own = any(turn["role"] == "system" for turn in turns)
    return turns if own else [*_system(row), *turns]


def _sharegpt(row: dict[str, Any], where: str) -> list[dict[str, str]]:
    turns = _system(row)
    for index, message in enumerate(field_of(row, "conversations", list, where)):
        place = f"{where}, conversation turn {index + 1}"
        if not isinstance(message, dict):
            raise ValueError(f"{place} is a {type(message).__name__}, an object with from and value is needed")
        speaker = field_of(message, "from", str, place)
        if speaker not in SPEAKERS:
            raise ValueError(f"{place}: from is {speaker!r}, allowed are {', '.join(SPEAKERS)}")
        turns.append({"role": SPEAKERS[speaker], "content": field_of(message, "value", str, place)})
    return turns


def _chat(turns: list[dict[str, str]], where: str) -> Example:
    """A conversation up to its last answer of the assistant; what comes after has nothing to learn from."""
    answers = [i for i, t in enumerate(turns) if i and t["role"] == "assistant" and t["content"].strip()]
    if not answers or all(t["role"] == "system" for t in turns[: answers[-1]]):
        raise ValueError(f"{where}: messages must end with an answer of the assistant, after at least one other")
    before, answer = turns[: answers[-1]], turns[answers[-1]]["content"]
    prompt = "".join(f"{turn['role'].capitalize()}: {turn['content']}\n" for turn in before)
    return Example(f"{prompt}Assistant:", f" {answer}", messages=tuple(before), meta={CHAT: True})


def _text(row: dict[str, Any], name: str, where: str) -> str:
    """A text field that is not blank; numbers are taken as texts."""
    value = field_of(row, name, (str, int, float), where)
    if not str(value).strip():
        raise ValueError(f"{where}: field {name!r} is blank")
    return str(value)


def _names(row: Mapping[str, Any]) -> str:
    return ", ".join(repr(key) for key in row) or "none"
