"""Whole runs, for Python and the command line alike: `search_function.search`, `run.run`, full tuning, and dry runs."""
