"""Exports of a tuned plan to the formats of other tools."""

from qra_eval.export.base import Exported, Exporter, check, export, formats

__all__ = ["Exported", "Exporter", "check", "export", "formats"]
