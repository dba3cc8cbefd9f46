"""Whole runs, for Python and the command line alike: `run.Run` with `plan` and `open_run`, and `search.search`."""
