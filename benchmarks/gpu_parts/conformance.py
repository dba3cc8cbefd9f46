"""Every backend through the conformance kit on the device: how many tests passed, and why others did not."""

from __future__ import annotations

import argparse
import json
import os
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from qra_backends import backend_names

KIT = Path(__file__).with_name("kit_on_device.py")
VARIANTS = (
    {"name": "bitsandbytes", "quant_type": "nf4", "double_quant": True},
    "mixed-calibrated",
    {"name": "gguf", "types": ["IQ4_NL", "Q4_1", "Q8_0"]},
    {"name": "gguf", "types": ["Q2_K", "IQ3_XXS", "Q4_K"]},
)
"""Beside the backends by their names; gguf alone has more types than one layer can have."""
LAST = 1500
"""Characters kept of a failure, from its end."""


class Outcomes:
    """A pytest plug-in that keeps how tests ended."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.reasons: dict[str, str] = {}

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.when != "call" and report.passed:
            return
        self.counts[report.outcome] += 1
        if report.failed:
            self.reasons[report.nodeid.rpartition("::")[2]] = report.longreprtext[-LAST:]
        elif report.skipped:
            self.reasons["skipped"] = report.longrepr[-1]


def rows(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A row for each backend that has none without failures yet; raises at the end if a test failed."""
    os.environ["QRA_KIT_DEVICE"] = options.device
    if options.small:
        os.environ["QRA_KIT_SMALL"] = "1"
    failed, known = (
        [],
        [row["backend"] for row in options.known if "backend" in row and not row.get("failed")],
    )
    for spec in (*(name for name in backend_names() if name != "gguf"), *VARIANTS):
        if spec in known:
            continue
        os.environ["QRA_KIT_BACKEND"] = json.dumps(spec)
        outcomes, start = Outcomes(), time.perf_counter()
        pytest.main(
            [str(KIT), "-q", "-p", "no:cacheprovider", "--no-header", "--tb=short"], plugins=[outcomes]
        )
        if not outcomes.counts:
            raise RuntimeError("pytest ran no test of the kit")
        yield {
            "backend": spec,
            **outcomes.counts,
            "reasons": outcomes.reasons,
            "seconds": time.perf_counter() - start,
        }
        failed += [spec] if outcomes.counts["failed"] else []
    if failed:
        raise RuntimeError(f"tests of {failed} failed, as their rows say")
