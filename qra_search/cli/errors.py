"""The one place that turns exceptions into an exit status and one line on stderr."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from qra_search.errors import BadInput, DamagedLines, describe

OK, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130
TRACEBACK = "QRA_TRACEBACK"


def run_safely(arguments: list[str]) -> int:
    """Run the command line; every exception becomes an exit status and, on stderr, one line.

    With the variable QRA_TRACEBACK set, the traceback comes before that line.
    """
    import typer

    from qra_search.cli.app import app

    # Typer does not export the base of its own errors, which is click's or a copy of it.
    usage_error: Any = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")
    try:
        with _saying_damage():
            status = app(arguments, standalone_mode=False, prog_name="qra")
    except usage_error as error:
        context = getattr(error, "ctx", None)
        hint = f" (see `{context.command_path} --help`)" if context is not None else ""
        return _say(error.format_message().rstrip(".") + hint, BAD_INPUT)
    except (typer.Abort, KeyboardInterrupt):
        return _say("stopped", INTERRUPTED)
    except BrokenPipeError:
        # The reader of a pipe went away (`qra show RUN | head`): nothing is wrong, and nothing may be written.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except Exception as error:
        if os.environ.get(TRACEBACK):
            import traceback

            traceback.print_exc()
        status = status_of(error)
        hint = "" if status == BAD_INPUT or _is_ours(error) or os.environ.get(TRACEBACK) else _HINT
        return _say(describe(error) + hint, status)
    return status if isinstance(status, int) else OK


def status_of(error: BaseException) -> int:
    """2 where the user can mend it by giving something else, 1 where the run failed."""
    from qra_search.plugins import UnknownName
    from qra_search.space.memory import BudgetTooSmall

    mendable: tuple[type[BaseException], ...] = (BadInput, BudgetTooSmall, UnknownName)
    if "qra_search.config" in sys.modules:
        from qra_search.config import ConfigError

        mendable += (ConfigError,)
    if "qra_search.runs.folder" in sys.modules:
        from qra_search.runs.folder import NoRun, RunExists

        mendable += (NoRun, RunExists)
    return BAD_INPUT if isinstance(error, mendable) else FAILED


@contextmanager
def _saying_damage() -> Iterator[None]:
    """Lines of a log that were left out are said once, in one line on stderr; other warnings go where they went."""
    with warnings.catch_warnings():
        warnings.simplefilter("always", DamagedLines)
        show, said = warnings.showwarning, set()

        def shown(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
            if issubclass(category, DamagedLines):
                if str(message) not in said:
                    _say(str(message), OK)
                said.add(str(message))
            else:
                show(message, category, *place, **more)

        warnings.showwarning = shown
        yield


_HINT = f" (set {TRACEBACK}=1 to see where)"


def _is_ours(error: BaseException) -> bool:
    """Whether the message says all there is to say: it was written for the user."""
    from qra_search.evaluation.evaluator import EvaluationFailed
    from qra_search.study.study import StudyFailed

    return isinstance(error, (StudyFailed, EvaluationFailed))


def _say(message: str, status: int) -> int:
    print(f"qra: {' '.join(message.split())}", file=sys.stderr)
    return status
