"""Which commit measures."""

from __future__ import annotations

import subprocess


def commit() -> str:
    """Its short hash; empty outside a checkout."""
    found = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return found.stdout.strip()
