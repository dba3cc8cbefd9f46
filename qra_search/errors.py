"""What the user gave and cannot be used: one kind of error, told apart from a run that failed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class BadInput(ValueError):
    """What the user gave cannot be used; the message says what it is, what is allowed, and how to mend it."""


class DamagedLines(UserWarning):
    """Lines of a trial log were left out when it was read, because they are not what was written."""


@contextmanager
def bad_input() -> Iterator[None]:
    """What goes wrong in here is what the user gave: a value, a missing file, an extra that is not installed."""
    try:
        yield
    except (ValueError, OSError, ImportError) as error:
        raise BadInput(describe(error)) from error


def describe(error: BaseException) -> str:
    """An exception in one line: its message where it is one of ours, else with its type before it."""
    text = " ".join(str(error).split())
    if isinstance(error, ImportError) and not isinstance(error, BadInput) and getattr(error, "name", None):
        return f"{text}: install it with pip, or choose another backend, task or evaluator"
    if isinstance(error, (FileExistsError, NotADirectoryError)) and error.filename is not None:
        return f"{error.filename}: a file is in the way, a folder is needed there: give another place"
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {(error.strerror or type(error).__name__).lower()}"
    if isinstance(error, (ValueError, RuntimeError)) and text:
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
