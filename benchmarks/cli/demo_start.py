"""When a first-time reader of `qra demo` sees what: each line of its progress, with the second at which it came.

With it come the processor's seconds that were spent by then, which other work on the machine hardly lengthens.

python benchmarks/cli/demo_start.py --seconds 600

The demo begins with an empty cache, or goes on in `--folder`, and is stopped after so many seconds. Linux only.
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
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--folder", help="keep run and cache here, and go on from what it holds")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as empty:
        folder = options.folder or empty
        start = time.perf_counter()
        process = subprocess.Popen(
            [str(Path(sys.executable).with_name("qra")), "demo", "--out", f"{folder}/demo"],
            stderr=subprocess.STDOUT, stdout=subprocess.PIPE, text=True, cwd=folder,
            env={**os.environ, "QRA_CACHE": f"{folder}/cache", "PYTHONUNBUFFERED": "1"},
        )  # fmt: skip
        seen: list[tuple[float, float | None, str]] = []

        def read() -> None:
            assert process.stdout is not None
            for line in process.stdout:
                seen.append((round(time.perf_counter() - start, 1), processor_seconds(process.pid), line.rstrip()))
                print("{:7.1f} s {} s  {}".format(*seen[-1]), flush=True)

        threading.Thread(target=read, daemon=True).start()
        while time.perf_counter() - start < options.seconds and process.poll() is None:
            time.sleep(0.2)
        process.send_signal(signal.SIGKILL)
        process.wait()
    times = {what: next((at for at, _, line in seen if line.startswith(what)), None) for what in (WHAT, FIRST)}
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent
    ).stdout.strip()
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    line = {
        "commit": commit, "cores": os.cpu_count(), "load": round(os.getloadavg()[0], 1),
        "threads": os.environ.get("OMP_NUM_THREADS"), "ended": process.returncode == 0,
        "what_seconds": times[WHAT], "first_result_seconds": times[FIRST], "lines": seen,
    }  # fmt: skip
    with RESULTS.open("a") as file:
        file.write(json.dumps(line) + "\n")
    print(f"what is happening after {times[WHAT]} s (aim 10), a first result after {times[FIRST]} s (aim 60)")


def processor_seconds(pid: int) -> float | None:
    """Seconds of processor that a running process has spent, in user and system."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:  # it has just ended
        return None
    return round((int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"), 1)


if __name__ == "__main__":
    main()
