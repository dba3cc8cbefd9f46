"""Trial logs as searches leave them, ended and killed, shared by the tests of logs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from fakes import AdditiveEvaluator

from qra_search import TrialLog, search
from qra_search.log.walfile import wal_path

OPTIONS = {"strategy": "random", "evaluations": 12, "memory_budget": None}


def write_log(path: Path, trials: int = 12, **options) -> TrialLog:
    search(AdditiveEvaluator(), **{**OPTIONS, "evaluations": trials, **options}, log=path)
    return TrialLog(path)


def open_wal_log(path: Path) -> None:
    """A log as a killed search leaves it: its last results are in the write-ahead file only."""
    code = (
        f"import os, sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        f"from fakes import AdditiveEvaluator\nfrom qra_search import Callback, Study\n"
        f"class Stop(Callback):\n"
        f"    def finished(self, study, trial): trial.id == 11 and os._exit(9)\n"
        f"Study(AdditiveEvaluator(), strategy='random', evaluations=20, log={str(path)!r}, callbacks=[Stop()]).run()"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 9
    assert wal_path(path).stat().st_size > 0
