"""Two kinds of error: input that the user can mend, and a run that failed for the reason in its message."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

DISTRIBUTION = "qra-toolkit"
"""What pip installs; `qra` on the package index belongs to somebody else."""


class BadInput(ValueError):
    """What the user gave cannot be used; the message says what it is, what is allowed, and how to mend it.

    The base of every error that the user can mend: the command line ends them with status 2.
    """


class RunFailed(RuntimeError):
    """A run, or a part of it, failed; the message says why and was written for the user."""


class EvaluationFailed(RunFailed):
    """The plan could not be evaluated; the message is the reason that the journal keeps."""


def make_type_error(what: object, value: object, wanted: str) -> BadInput:
    """The error for an argument of the wrong kind: `what` is the argument's name, `wanted` what it has to be."""
    return BadInput(f"{what} is {shorten(value)} ({type(value).__name__}): {wanted}")


def shorten(value: object, limit: int = 80) -> str:
    """A value as one line of at most `limit` characters."""
    return one_line(repr(value), limit)


def one_line(text: str, limit: int) -> str:
    text = " ".join(text.split())
    return text if len(text) <= limit else text[: limit - 3] + "..."


def first_line(error: BaseException) -> str:
    """The first line of an exception's message, and the second if the first introduces it; its type if it has none."""
    lines = (str(error).strip() or type(error).__name__).splitlines()
    return " ".join(line.strip() for line in lines[: 1 + lines[0].rstrip().endswith(":")])


class TornLineWarning(UserWarning):
    """The last line of a journal was dropped, because its process died while it wrote it."""


@contextmanager
def convert_to_bad_input() -> Iterator[None]:
    """Raise BadInput for a wrong value, a missing file or an extra that is not installed, where the user gave it."""
    try:
        yield
    except BadInput:
        raise
    except (ValueError, OSError, ImportError) as error:
        raise BadInput(format_error(error)) from error


def describe_os_error(error: OSError) -> str:
    return (error.strerror or str(error) or type(error).__name__).lower()


def describe_problem(error: BaseException) -> str:
    """What an exception says; of those that pydantic found in a schema the first problem, in one line."""
    if not isinstance(error, ValueError) or not hasattr(error, "errors"):
        return str(error)
    first = error.errors(include_url=False)[0]
    place = ".".join(map(str, first["loc"]))
    message = first["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    return f"{place}: {message}" if place else message


def describe_failure(error: BaseException) -> str:
    """Why an evaluation failed, as a journal keeps it; with the type of an exception that is not EvaluationFailed."""
    text = describe_problem(error)
    return text if isinstance(error, EvaluationFailed) else f"{type(error).__name__}: {text}"


def format_error(error: BaseException) -> str:
    """An exception in one line: its message if it is one of ours, else with its type before it."""
    text = " ".join(describe_problem(error).split())
    if isinstance(error, ImportError) and not isinstance(error, BadInput) and getattr(error, "name", None):
        return f"{text}: install it with pip, or choose another backend, task or evaluator"
    if isinstance(error, (FileExistsError, NotADirectoryError)) and error.filename is not None:
        return f"{error.filename} is a file, but a folder is needed there: give another place"
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {describe_os_error(error)}"
    if isinstance(error, (ValueError, RuntimeError)) and text:
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
