"""Exports of a tuned plan to the formats of other tools, and plans imported from theirs."""

from qra_eval.export.base import Exported, Exporter, ExportRefused, check, export, formats, make_exporter
from qra_search.exchange.plans import Imported, import_plan, importers

__all__ = [
    "ExportRefused",
    "Exported",
    "Exporter",
    "Imported",
    "check",
    "export",
    "formats",
    "import_plan",
    "importers",
    "make_exporter",
]
