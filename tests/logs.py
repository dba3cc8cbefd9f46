"""Trial logs as searches leave them, ended and killed, and child processes that may not write them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from fakes import AdditiveEvaluator

from qra_search import TrialLog, search

OPTIONS = {"strategy": "random", "evaluations": 12, "memory_budget": None}


def write_log(path: Path, trials: int = 12, **options) -> TrialLog:
    search(AdditiveEvaluator(), **{**OPTIONS, "evaluations": trials, **options}, log=path)
    return TrialLog(path)


def kill_a_search(path: Path) -> None:
    """A log as a killed search leaves it: 12 trials with results, and the beginning of a line."""
    code = (
        f"import os, sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        f"from fakes import AdditiveEvaluator\nfrom qra_search import Callback, Study\n"
        f"class Stop(Callback):\n"
        f"    def on_result(self, study, trial): trial.id == 11 and os._exit(9)\n"
        f"Study(AdditiveEvaluator(), strategy='random', evaluations=20, log={str(path)!r}, callbacks=[Stop()]).run()"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 9
    with path.open("ab") as file:
        file.write(b'{"trial":12,"bits":[2,')


def run_in_child(prepare: Callable[[], object], work: Callable[[], object]) -> str:
    """What a function returns or raises in a forked child process, after another limited what that process may do."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            prepare()
            text = str(work())
        except BaseException as error:
            text = f"{type(error).__name__}: {error}"
        os.write(write, text.encode())
        os._exit(0)
    os.close(write)
    with open(read) as file:
        text = file.read()
    os.waitpid(child, 0)
    return text
