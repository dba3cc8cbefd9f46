"""Parametric landscapes of the loss over plans, calibrated to measurements of a real small model."""

from __future__ import annotations

from qra_eval.landscapes.families import FAMILIES, Tables, draw_tables
from qra_eval.landscapes.shapes import KINDS, make_space

__all__ = ["FAMILIES", "KINDS", "Tables", "draw_tables", "make_space"]
