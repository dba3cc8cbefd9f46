"""Two processes that begin a search in one new folder: one searches, the other is refused and harms nothing."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from qra_search.app.folder import RunFolder

SEARCH = """
import sys
import time
from pathlib import Path
from qra_search import BadInput, Run
from qra_search.app import search
from qra_search.app.config import make_settings

role, folder = sys.argv[1], Path(sys.argv[2])
settings = {"evaluator": "landscape", "space": {"granularity": "layer"}, "options": {"layers": 4}}
settings["search"] = {"strategy": "random", "evaluations": 6, "memory": "uniform3r8"}
make = search.Study


def make_slowly(*given, **options):
    "Called while the log is locked, and nothing is written in it."
    folder.with_name("locked").touch()
    while not folder.with_name("refused").exists():
        time.sleep(0.01)
    return make(*given, **options)


if role == "first":
    search.Study = make_slowly
try:
    Run(folder, make_settings(settings)).search(resume=False, progress=False)
except BadInput as error:
    sys.exit(f"refused: {error}")
"""


def test_the_process_that_is_refused_leaves_the_log_of_the_other(tmp_path: Path) -> None:
    script = tmp_path / "search.py"
    script.write_text(SEARCH)
    run, locked = tmp_path / "a", tmp_path / "locked"
    first = subprocess.Popen(
        [sys.executable, str(script), "first", str(run)], stderr=subprocess.PIPE, text=True
    )
    try:
        while first.poll() is None and not locked.exists():
            time.sleep(0.01)
        second = subprocess.run(
            [sys.executable, str(script), "second", str(run)], stderr=subprocess.PIPE, text=True, check=False
        )
        assert second.returncode == 1 and "is being written by" in second.stderr
        assert (run / "trials.jsonl.lock").exists()
    finally:
        (tmp_path / "refused").touch()
        _, errors = first.communicate()
    assert first.returncode == 0, errors
    assert RunFolder(run).read().result.spent == 6 and RunFolder(run).plan_file.is_file()
