"""Exports of a tuned plan to the formats of other tools."""

from qra_eval.export.base import Exported, Exporter, ExportRefused, check, export, formats

__all__ = ["ExportRefused", "Exported", "Exporter", "check", "export", "formats"]
