"""YAML as plain data: no objects, no aliases, and bounded depth and length, whoever wrote it."""

from __future__ import annotations

from typing import Any

MAX_DEPTH = 32
MAX_TEXT = 2000


def read_yaml(text: str) -> Any:
    """The value of a YAML text.

    Aliases are refused, since a few of them stand for gigabytes, as are values nested deeper than `MAX_DEPTH` or
    longer than `MAX_TEXT` characters.

    Raises:
        ValueError: it is not YAML, or not plain; in one line.
    """
    import yaml

    try:
        _check(yaml.parse(text, Loader=yaml.SafeLoader))
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        message = " ".join((_place(error) or str(error)).split())
        raise ValueError(message if len(message) <= 500 else message[:497] + "...") from None


def _place(error: Exception) -> str:
    """A YAML error without the text it quotes: line, column, and what is wrong there."""
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    if mark is None or not problem:
        return ""
    return f"line {mark.line + 1}, column {mark.column + 1}: {problem}"


def _check(events: Any) -> None:
    import yaml

    depth = 0
    for event in events:
        line = event.start_mark.line + 1
        if isinstance(event, yaml.AliasEvent):
            raise ValueError(f"line {line}: *{str(event.anchor)[:40]} is an alias: write the value out")
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        elif isinstance(event, yaml.ScalarEvent) and len(event.value) > MAX_TEXT:
            raise ValueError(f"line {line}: a value has {len(event.value)} characters, at most {MAX_TEXT} are read")
        if depth > MAX_DEPTH:
            raise ValueError(f"line {line}: values are nested deeper than {MAX_DEPTH}")
