"""Exports of a tuned plan to the formats of other tools."""

from qra_eval.export.base import Exported, Exporter, export

__all__ = ["Exported", "Exporter", "export"]
