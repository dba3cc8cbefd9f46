"""Whole runs, for Python and the command line alike."""

from __future__ import annotations

from qra_search.workflow.searching import search

__all__ = ["search"]
