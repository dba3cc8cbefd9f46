"""Whole runs, for Python and the command line alike: `searching.search`, `run.run`, full tuning, and dry runs."""
