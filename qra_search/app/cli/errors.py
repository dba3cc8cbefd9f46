"""The one place that turns exceptions into an exit status and one line on stderr."""

from __future__ import annotations

import os
import sys
import traceback
import warnings
from typing import Any

import typer

from qra_search.app.cli.app import BAD_INPUT, FAILED, INTERRUPTED, OK, app, check_names
from qra_search.errors import BadInput, RunFailed, describe

TRACEBACK = "QRA_TRACEBACK"


def run_safely(arguments: list[str]) -> int:
    """Run the command line; every exception becomes an exit status and, on stderr, one line.

    With the variable QRA_TRACEBACK set, the traceback comes before that line.
    """
    # Typer does not export the base of its own errors, which is click's or a copy of it.
    usage_error: Any = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _print_warning
            check_names(arguments)
            status = app(arguments, standalone_mode=False, prog_name="qra")
    except usage_error as error:
        context = getattr(error, "ctx", None)
        hint = f" (see `{context.command_path} --help`)" if context is not None else ""
        return _print_line(error.format_message().rstrip(".") + hint, BAD_INPUT)
    except (typer.Abort, KeyboardInterrupt):
        return _print_line("stopped", INTERRUPTED)
    except BrokenPipeError:
        # The reader of a pipe went away (`qra show RUN | head`): nothing is wrong, and nothing may be written.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except Exception as error:
        if os.environ.get(TRACEBACK):
            traceback.print_exc()
        explained = isinstance(error, (BadInput, RunFailed)) or os.environ.get(TRACEBACK)
        hint = "" if explained else f" (set {TRACEBACK}=1 to see where)"
        return _print_line(describe(error) + hint, exit_status(error))
    return status if isinstance(status, int) else OK


def exit_status(error: BaseException) -> int:
    """2 if the user can mend it by giving something else, 1 if the run failed."""
    return BAD_INPUT if isinstance(error, BadInput) else FAILED


def _print_warning(message: Warning | str, *place: Any, **more: Any) -> None:
    _print_line(str(message), OK)


def _print_line(message: str, status: int) -> int:
    print(f"qra: {' '.join(message.split())}", file=sys.stderr)
    return status
