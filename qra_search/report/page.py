"""The HTML report."""

from __future__ import annotations

from pathlib import Path


def write_page(runs, path: Path) -> Path:
    path.write_text("<!doctype html><title>report</title>")
    return path
