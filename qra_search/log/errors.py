"""What can be wrong with a trial log, by how it is mended."""

from __future__ import annotations

from qra_search.errors import BadInput


class LogMismatch(BadInput):
    """The log cannot be used as it is: of another space, evaluator or version, or one of the cases below."""


class LogBusy(LogMismatch):
    """Another process writes the log."""


class LogDamaged(LogMismatch):
    """The file cannot be read, or no line of it is a trial log's."""


class LogReadOnly(LogMismatch):
    """The file or its folder cannot be written."""


class LogUnwritable(RuntimeError):
    """Writing failed in the middle of a search: the disk is full, or the file was taken away."""
