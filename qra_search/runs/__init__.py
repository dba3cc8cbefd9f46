"""The folder of a run: its files, and the final comparison on test data."""

from __future__ import annotations

from qra_search.runs.final_test import Tested, compare_on_test
from qra_search.runs.folder import NoRun, RunExists, RunFolder, find_runs

__all__ = ["NoRun", "RunExists", "RunFolder", "Tested", "compare_on_test", "find_runs"]
