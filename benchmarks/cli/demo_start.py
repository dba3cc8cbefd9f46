"""When a first-time reader of `qra demo` sees what: each line of its progress, with the second at which it came.

python benchmarks/cli/demo_start.py --seconds 120

The demo begins with an empty cache and is stopped after so many seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

RESULTS = Path(__file__).parents[1] / "results" / "cli" / "demo_start.jsonl"
WHAT = "qra demo: "
"""Begins the line that says what is happening."""
FIRST = "Before any tuning its loss is"
"""Begins the first result."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=120.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        process = subprocess.Popen(
            [str(Path(sys.executable).with_name("qra")), "demo", "--out", f"{folder}/demo"],
            stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, cwd=folder,
            env={**os.environ, "QRA_CACHE": f"{folder}/cache", "PYTHONUNBUFFERED": "1"},
        )  # fmt: skip
        seen: list[tuple[float, str]] = []

        def read() -> None:
            assert process.stderr is not None
            for line in process.stderr:
                seen.append((round(time.perf_counter() - start, 1), line.rstrip()))
                print(f"{seen[-1][0]:7.1f} s  {seen[-1][1]}", flush=True)

        threading.Thread(target=read, daemon=True).start()
        while time.perf_counter() - start < options.seconds and process.poll() is None:
            time.sleep(0.2)
        process.send_signal(signal.SIGKILL)
        process.wait()
    times = {what: next((at for at, line in seen if line.startswith(what)), None) for what in (WHAT, FIRST)}
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent
    ).stdout.strip()
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    line = {
        "commit": commit, "cores": os.cpu_count(), "load": round(os.getloadavg()[0], 1),
        "what_seconds": times[WHAT], "first_result_seconds": times[FIRST], "lines": seen,
    }  # fmt: skip
    with RESULTS.open("a") as file:
        file.write(json.dumps(line) + "\n")
    print(f"what is happening after {times[WHAT]} s (aim 10), a first result after {times[FIRST]} s (aim 60)")


if __name__ == "__main__":
    main()
