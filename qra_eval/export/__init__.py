"""Exports of a tuned plan to the formats of other tools, and plans imported from theirs."""

from qra_eval.export.base import Exported, Exporter, ExportRefused, check, export, formats
from qra_eval.export.imports import import_plan, importers

__all__ = ["ExportRefused", "Exported", "Exporter", "check", "export", "formats", "import_plan", "importers"]
