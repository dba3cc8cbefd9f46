"""How long commands that only read or refuse take, start to end, each in a process of its own, beside a bare Python.

python -m benchmarks.speed.startup --repeats 7
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.common import RESULTS, append_lines, find_commit

AIM = 1.0
"""Seconds that the project aims at; `qra report` and `qra show` are of a run of 224 groups and 60 evaluations."""
BARE = "bare python"
REFUSED = 2
"""Exit status of a command that refuses what it was given."""
SEARCH = ["search", "--evaluator", "landscape", "--strategy", "additive", "-n", "60"]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--repeats", type=int, default=7, help="the median and the slowest of so many are kept"
    )
    options = parser.parse_args()
    rows = []
    bare = 0.0
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "misspelt.yaml").write_text("model: {name: tiny}\ntask: {name: arithmatic}\n")
        for name in "ab":
            budgets = ["--memory", "uniform3r8", "--memory", "uniform4r8"]
            run([*SEARCH, *budgets, "--seed", str(ord(name)), "--out", name], folder)
        commands = {
            BARE: [],
            "--help": ["--help"],
            "--version": ["--version"],
            "search --help": ["search", "--help"],
            "show": ["show", "a"],
            "report": ["report", "a"],
            "show two": ["show", "a", "b"],
            "tasks": ["tasks"],
            "misspelt task": ["plan", "--model", "tiny", "--task", "arithmatic", "--memory", "75%"],
            "misspelt model": ["plan", "--model", "smolm2", "--task", "arithmetic", "--memory", "75%"],
            "misspelt config": ["search", "misspelt.yaml"],
            "refused task": ["search", "--model", "tiny", "--task", "none.jsonl"],
            "refused device": [
                "plan",
                "--model",
                "tiny",
                "--task",
                "arithmetic",
                "--device",
                "gpu",
                "--memory",
                "75%",
            ],
            "refused size": [
                "plan",
                "--model",
                "smollm2",
                "--task",
                "gsm8k",
                "--memory",
                "108",
                "--out",
                "x",
            ],
            "refused run": ["finetune", "nothing"],
        }
        for name, arguments in commands.items():
            run(arguments, folder)  # once for the file cache and the compiled modules
            began = resource.getrusage(resource.RUSAGE_CHILDREN)
            seconds = sorted(run(arguments, folder) for _ in range(options.repeats))
            ended = resource.getrusage(resource.RUSAGE_CHILDREN)
            spent = ended.ru_utime + ended.ru_stime - began.ru_utime - began.ru_stime
            row = {
                "command": name if name == BARE else f"qra {name}",
                "median_seconds": round(seconds[len(seconds) // 2], 3),
                "slowest_seconds": round(seconds[-1], 3),
                "cpu_seconds": round(spent / options.repeats, 3),
                "aim_seconds": AIM,
            }
            bare = bare or spent
            row["bare_starts"] = round(spent / bare, 1)
            rows.append(row)
            met = "met" if row["median_seconds"] < row["aim_seconds"] else "MISSED"
            print(
                f"{row['command']:20} {row['median_seconds']:.2f} s, slowest {row['slowest_seconds']:.2f} s, "
                f"processor {row['cpu_seconds']:.2f} s, {row['bare_starts']} bare starts: "
                f"aim {row['aim_seconds']:.1f} s {met}"
            )
    record(rows, options.repeats)


def run(arguments: list[str], folder: str) -> float:
    """Seconds of a command in a folder; its output is thrown away."""
    command = (
        [str(Path(sys.executable).with_name("qra")), *arguments] if arguments else [sys.executable, "-c", "0"]
    )
    compiled = {
        key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"
    }  # as pip does
    start = time.perf_counter()
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=compiled)
    elapsed = time.perf_counter() - start
    if done.returncode not in (0, REFUSED):
        raise SystemExit(f"{' '.join(command)} ended with status {done.returncode}: {done.stderr[-500:]}")
    return elapsed


def record(rows: list[dict[str, object]], repeats: int) -> None:
    """Append what was measured, with the commit and the load that the machine was under."""
    line = {
        "commit": find_commit(),
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "repeats": repeats,
        "rows": rows,
    }
    append_lines(RESULTS / "cli" / "startup.jsonl", line)


if __name__ == "__main__":
    main()
