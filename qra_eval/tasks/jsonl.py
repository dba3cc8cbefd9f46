"""A user's own data: JSON Lines of prompts and answers, instructions, or chats."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qra_eval.tasks.base import Task, split_off
from qra_eval.tasks.example import Example, SplitName
from qra_eval.tasks.files import field_of, read_jsonl

FORMS = (
    '{"prompt", "answer"}, {"question", "answer"}, {"instruction", "input" (may be left out), "output"} '
    'or {"messages": [{"role", "content"}, ...]}'
)
FILES: Mapping[SplitName, Sequence[str]] = {
    "calibration": ("train", "calibration"),
    "validation": ("validation", "valid", "dev"),
    "test": ("test",),
}
ROLES = ("system", "user", "assistant", "tool")
MAX_NEW_TOKENS = 128


class JSONLTask(Task):
    """Rows of one file, split by the hash of their prompts, or of separate files.

    A prompt with no white space at its end and an answer with none at its start are joined by a space; those of a
    chat are not. A row whose prompt is also in the test (or validation) file is left out of the others.

    Args:
        data: a .jsonl file, or a folder with train.jsonl and, if there are, validation.jsonl and test.jsonl.
        validation, test: separate files; what is missing is split off `data`.
    """

    name = "jsonl"

    def __init__(
        self,
        data: str | None = None,
        seed: int = 0,
        *,
        validation: str | None = None,
        test: str | None = None,
        **options: Any,
    ):
        super().__init__(data, seed, **options)
        if data is None:
            raise ValueError("the jsonl task needs data: a .jsonl file, or a folder with train.jsonl")
        self.files = _files(Path(data))
        self.files["validation"] = Path(validation) if validation else self.files["validation"]
        self.files["test"] = Path(test) if test else self.files["test"]

    def _load(self) -> Mapping[SplitName, Sequence[Example]]:
        given = {name: read_examples(path) for name, path in self.files.items() if path is not None}
        try:
            return split_off(given, self.seed)
        except ValueError as error:
            raise ValueError(f"{self.files['calibration']}: {error}") from None

    def metrics(
        self, model: Any, tokenizer: Any, examples: Sequence[Example], *, batch_size: int = 8, max_length: int = 1024
    ) -> dict[str, float]:
        """exact_match: share of greedy answers that are the row's answer, white space around them aside."""
        longest = max((len(tokenizer(e.answer)["input_ids"]) for e in examples), default=1)
        new = min(MAX_NEW_TOKENS, longest + 1)
        answers = self.answers(model, tokenizer, examples, new, batch_size=batch_size, max_length=max_length)
        right = [a.strip() == e.answer.strip() for a, e in zip(answers, examples, strict=True)]
        return {"exact_match": sum(right) / max(1, len(right))}


def read_examples(path: str | Path) -> list[Example]:
    """The examples of one file, in any of the forms; several in a file are fine.

    Raises:
        ValueError: a row of none of the forms; the message gives file, line, what was found and what is allowed.
    """
    examples = [_example(row, f"{path}, line {number}") for number, row in read_jsonl(path)]
    if not examples:
        raise ValueError(f"{path} has no rows: one JSON object a line is needed, as {FORMS}")
    return examples


def _example(row: dict[str, Any], where: str) -> Example:
    if "messages" in row:
        return _from_chat(field_of(row, "messages", list, where), where)
    if "instruction" in row:
        instruction = _text(row, "instruction", where)
        given = field_of(row, "input", str, where) if "input" in row else ""
        asked = f"{instruction}\n\n{given}" if given.strip() else instruction
        prompt = f"### Instruction:\n{instruction}\n\n" + (f"### Input:\n{given}\n\n" if given.strip() else "")
        answer = _text(row, "output", where)
        return Example(f"{prompt}### Response:\n", answer, messages=({"role": "user", "content": asked},))
    if "answer" in row and ("prompt" in row or "question" in row):
        prompt, answer = _text(row, "prompt" if "prompt" in row else "question", where), _text(row, "answer", where)
        asked = prompt.strip()
        apart = not prompt[-1].isspace() and not answer[0].isspace()
        return Example(prompt, f" {answer}" if apart else answer, messages=({"role": "user", "content": asked},))
    found = ", ".join(repr(key) for key in row) or "none"
    raise ValueError(f"{where}: fields are {found}; allowed are {FORMS}")


def _from_chat(messages: list[Any], where: str) -> Example:
    """A chat whose last message, the assistant's, is the answer."""
    for index, message in enumerate(messages):
        place = f"{where}, message {index + 1}"
        if not isinstance(message, dict):
            raise ValueError(f"{place} is a {type(message).__name__}, an object with role and content is needed")
        if field_of(message, "role", str, place) not in ROLES:
            raise ValueError(f"{place}: role is {message['role']!r}, allowed are {', '.join(ROLES)}")
        field_of(message, "content", str, place)
    if len(messages) < 2 or messages[-1]["role"] != "assistant" or not messages[-1]["content"].strip():
        raise ValueError(f"{where}: messages must end with an answer of the assistant, after at least one other")
    turns = tuple({"role": m["role"], "content": m["content"]} for m in messages)
    prompt = "".join(f"{turn['role'].capitalize()}: {turn['content']}\n" for turn in turns[:-1])
    return Example(f"{prompt}Assistant:", f" {turns[-1]['content']}", messages=turns[:-1])


def _text(row: dict[str, Any], name: str, where: str) -> str:
    """A text field that is not blank; numbers are taken as texts."""
    value = field_of(row, name, (str, int, float), where)
    if not str(value).strip():
        raise ValueError(f"{where}: field {name!r} is blank")
    return str(value)


def _files(data: Path) -> dict[SplitName, Path | None]:
    """The file of each split, None if it is to be split off another."""
    if data.is_file():
        return {"calibration": data, "validation": None, "test": None}
    if not data.is_dir():
        raise ValueError(f"no file or folder {str(data)!r}: a .jsonl file, or a folder with train.jsonl, is needed")
    files = {
        name: next((p for stem in stems if (p := data / f"{stem}.jsonl").is_file()), None)
        for name, stems in FILES.items()
    }
    if files["calibration"] is None:
        raise ValueError(f"{data} has no train.jsonl")
    return files
