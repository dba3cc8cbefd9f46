"""How long `qra plan` takes with an empty cache, start to end: by the clock, of the processor, and each of its stages.

python -m benchmarks.speed.plan --data DIR [--model NAME] [--task NAME] [--memory 34.6MiB] [--threads N]
"""

from __future__ import annotations

import argparse
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.common import RESULTS, append_lines, find_commit, find_cpu_name

DONE = re.compile(r"^(.+): done in (.+)$", re.MULTILINE)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", help="folder with the task's files")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--task", default="banking77")
    parser.add_argument("--memory", default="34.6MiB")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--out", type=Path, default=RESULTS / "plan.jsonl")
    options = parser.parse_args()
    given = [f"--{name}={getattr(options, name)}" for name in ("model", "task", "memory")]
    if options.data:
        given.append(f"--data={options.data}")
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "qra_search", "plan", *given, f"--out={folder}/run"]
        environment = os.environ | {"QRA_CACHE": f"{folder}/cache", "OMP_NUM_THREADS": str(options.threads)}
        begun = time.perf_counter()
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        clock = time.perf_counter() - begun
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    row = {
        "model": Path(options.model).name,
        "task": options.task,
        "memory": options.memory,
        "threads": options.threads,
        "clock_seconds": round(clock, 1),
        "processor_seconds": round(used.ru_utime + used.ru_stime, 1),
        "peak_mib": used.ru_maxrss >> 10,
        "stages": dict(DONE.findall(done.stderr)),
        "load": load,
        "cpu": find_cpu_name(),
        "commit": find_commit(),
    }
    append_lines(options.out, row)
    print(row)


if __name__ == "__main__":
    main()
