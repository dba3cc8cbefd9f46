"""What the worker benchmarks share: where results go, and what machine they were made on."""

from __future__ import annotations

import json
import os
import platform
import time
from typing import Any

from benchmarks.common import RESULTS, append_lines, find_commit


def record(name: str, **figures: Any) -> dict[str, Any]:
    """Append one line to the results of a benchmark, and print it."""
    line = {
        "benchmark": name,
        **figures,
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "commit": find_commit(),
        "date": time.strftime("%Y-%m-%d"),
    }
    append_lines(RESULTS / "workers" / f"{name}.jsonl", line)
    print(json.dumps(line), flush=True)
    return line
