"""What the worker benchmarks share: where results go, and what machine they were made on."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parents[2] / "results" / "workers"


def record(name: str, **figures: Any) -> dict[str, Any]:
    """Append one line to the results of a benchmark, and print it."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    line = {
        "benchmark": name,
        **figures,
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "commit": commit(),
        "date": time.strftime("%Y-%m-%d"),
    }
    with (RESULTS / f"{name}.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
    print(json.dumps(line), flush=True)
    return line


def commit() -> str:
    """The commit of the checkout that was measured; empty outside one."""
    git = ["git", "rev-parse", "--short", "HEAD"]
    return subprocess.run(git, cwd=RESULTS.parent, capture_output=True, text=True, check=False).stdout.strip()
