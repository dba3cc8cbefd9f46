"""How long `qra plan` takes with an empty cache, start to end: by the clock, of the processor, and each of its stages.

Of a stage that says how long it still takes, the first forecast after a tenth of its steps is kept, over what it took.
With `--steps` the plan is then encoded and tuned for so many steps of 8 rows by `qra finetune`, a row of its own.

python -m benchmarks.speed.plan --data DIR [--model NAME] [--task NAME] [--memory 34.6MiB] [--threads N] [--steps 60]
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
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.common import RESULTS, append_lines, find_commit, find_cpu_name

DONE = re.compile(r"(?P<stage>.+): done in (?P<time>.+)")
STEP = re.compile(r"(?P<stage>.+): (?P<done>\d+) of (?P<total>\d+)(?:, about (?P<left>.+) left)?")
SECONDS = {"s": 1, "min": 60, "h": 3600}


def read_stages(lines: Iterable[str]) -> tuple[dict[str, str], dict[str, float]]:
    """What a command says of its stages as it goes: the time of each, and its first forecast over what it took."""
    begun: dict[str, float] = {}
    foretold: dict[str, float] = {}
    times: dict[str, str] = {}
    ratios: dict[str, float] = {}
    for line in lines:
        now = time.perf_counter()
        if step := STEP.fullmatch(line.strip()):
            stage = step["stage"]
            since = now - begun.setdefault(stage, now)
            if step["left"] and 10 * int(step["done"]) >= int(step["total"]):
                foretold.setdefault(stage, since + parse_seconds(step["left"]))
        elif done := DONE.fullmatch(line.strip()):
            stage = done["stage"]
            times[stage] = done["time"]
            if stage in foretold:
                ratios[stage] = round(foretold[stage] / (now - begun[stage]), 2)
    return times, ratios


def parse_seconds(text: str) -> float:
    """Seconds of a time as the command writes it: `6 min 12 s`."""
    words = text.split()
    return sum(float(number) * SECONDS[unit] for number, unit in zip(words[::2], words[1::2], strict=True))


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
    parser.add_argument("--steps", type=int, help="tune the plan for so many steps as well")
    options = parser.parse_args()
    given = [f"--{name}={getattr(options, name)}" for name in ("model", "task", "memory")]
    if options.data:
        given.append(f"--data={options.data}")
    with tempfile.TemporaryDirectory() as folder:
        commands = [["plan", *given, f"--out={folder}/run"]]
        if options.steps:
            more = ["--set=training.learning_rate=0.002", "--set=training.batch_size=8"]
            commands.append(
                ["finetune", f"{folder}/run", "--against=none", f"--steps={options.steps}", *more]
            )
        for words in commands:
            row = {
                "command": words[0],
                **({"steps": options.steps} if words[0] == "finetune" else {}),
                "model": Path(options.model).name,
                "task": options.task,
                "memory": options.memory,
                "threads": options.threads,
                **measure(words, f"{folder}/cache", options.threads),
                "cpu": find_cpu_name(),
                "commit": find_commit(),
            }
            append_lines(options.out, row)
            print(row, flush=True)


def measure(words: list[str], cache: str, threads: int) -> dict[str, Any]:
    """Seconds, peak and stages of a command."""
    load = os.getloadavg()[0]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    begun = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, "-m", "qra_search", *words],
        env=os.environ | {"QRA_CACHE": cache, "OMP_NUM_THREADS": str(threads)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        stages, forecasts = read_stages(process.stderr)
    clock = time.perf_counter() - begun
    if process.returncode:
        raise SystemExit(f"qra {words[0]} ended with status {process.returncode}")
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime
    return {
        "clock_seconds": round(clock, 1),
        "processor_seconds": round(processor, 1),
        "peak_mib": used.ru_maxrss >> 10,
        "stages": stages,
        "forecasts": forecasts,
        "load": load,
    }


if __name__ == "__main__":
    main()
