"""Parametric landscapes of the loss over plans, calibrated to measurements of a real small model."""
