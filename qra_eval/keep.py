"""Priors that are kept from one run to the next."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from qra_search.evaluation import Prior


def read_prior(path: Path) -> tuple[Prior, dict[str, Any]] | None:
    """The prior of a file and the report of its measuring; None where there is none, or it is not whole."""
    try:
        data = json.loads(path.read_text())
        return Prior.from_dict(data["prior"]), data["report"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write_prior(path: Path, prior: Prior, report: dict[str, Any]) -> None:
    """Keep a prior and the report of its measuring."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.partial")
    partial.write_text(json.dumps({"prior": prior.to_dict(), "report": report}))
    partial.replace(path)
