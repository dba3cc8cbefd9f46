"""The whole study, piece by piece: searches, final tunings, tables. Run it again until it says that all is done.

    python benchmarks/study/run.py --data DIR --minutes 55

The first pieces answer most: bytes needed for a quality, by the sensitivities and by searches, what each piece brings,
plans of other tools, and the order of tuning and quantizing. Then come earlier rounds: the search, its plans and their
closest rivals with every seed; other strategies, bits alone, ranks alone; other tasks and what carries over to them.
Each evaluation and each tuning is kept as it ends, so that a piece may be broken off at any moment. `--threads` must
stay the same: it changes the last digits.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

import protocol

from qra_eval.models.loaded import cache_root

HERE = Path(__file__).parent
STRATEGIES = ("qr_adaptor", "nsga2", "additive", "autoqra", "random")
OTHER_TASKS = protocol.TASKS[1:]
TIMED = ("search", "final", "budgets", "pieces", "peers", "merged")
"""Scripts that end by themselves after so many minutes."""
LONGER = r"^((qra|sensitivity)-module-0 @ (3-bit|midway)|gptq 3-bit r\d+|gptq 4-bit r8|16-bit r32|hqq 3-bit r2)$"
PIECES: tuple[tuple[str, ...], ...] = (
    ("budgets",),
    *(("search", "--newest", "--strategy", s) for s in ("qra", "nsga2", "qr_adaptor", "autoqra")),
    ("budgets",),
    *(("budgets", "--task", t) for t in ("arc_easy", "arc_challenge")),
    ("budgets", "--init", "calibrated"),
    ("budgets", "--steps", str(protocol.LONGER), "--seeds", "1"),
    ("pieces",),
    ("peers",),
    ("merged",),
    ("search", "--strategy", "sensitivity"),
    ("search", "--strategy", "qra"),
    ("search", "--strategy", "sensitivity", "--embeddings", "8"),
    ("final",),
    *(("search", "--strategy", s) for s in STRATEGIES),
    ("search", "--strategy", "qra", "--ranks", "8"),
    ("search", "--strategy", "qra", "--bits", "4"),
    ("search", "--strategy", "qra", "--embeddings", "8"),
    ("search", "--strategy", "sensitivity", "--low"),
    ("search", "--strategy", "qra", "--low"),
    ("search", "--strategy", "qra", "--granularity", "layer"),
    ("search", "--strategy", "qra", "--flat"),
    ("search", "--strategy", "qra", "--seeds", "3"),
    ("search", "--strategy", "qra", "--short"),
    ("search", "--strategy", "qra", "--wide"),
    ("search", "--strategy", "qra", "--seed", "1"),
    ("final",),
    ("final", "--steps", str(protocol.EVALUATION.steps), "--only", r"^(qra|sensitivity)-module-0(-low)? @ (?!4-bit)"),
    ("final", "--steps", str(protocol.LONGER), "--seeds", "1", "--only", LONGER),
    *(("search", "--task", t, "--strategy", s) for t in OTHER_TASKS for s in ("sensitivity", "qra")),
    *(("final", "--task", t) for t in OTHER_TASKS),
    *(("final", "--task", t, "--plans-of", "gsm8k", "--only", "'s qra-module-0 @") for t in OTHER_TASKS),
    ("pace",),
    ("calibration",),
    ("tables",),
    ("looks",),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, type=protocol.data_folder, help="folder with gsm8k_train.jsonl")
    parser.add_argument("--minutes", type=float, help="begin nothing after so many minutes")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--pieces", type=int, help="only the first so many")
    options = parser.parse_args()
    until = None if options.minutes is None else time.monotonic() + 60 * options.minutes
    for script, *arguments in PIECES[: options.pieces]:
        command = [sys.executable, str(HERE / f"{script}.py"), *arguments]
        if script not in ("tables", "looks"):
            command += ["--data", options.data, "--threads", str(options.threads)]
            if script == "merged":
                command += ["--work", str(cache_root() / "study" / script)]
            if until is not None and script in TIMED:
                command += ["--minutes", f"{max(0.0, (until - time.monotonic()) / 60):.2f}"]
        print("$", " ".join(command[1:]), flush=True)
        status = subprocess.run(command, check=False).returncode
        if status:
            raise SystemExit("more is left: run this again" if status == protocol.LEFT else status)
    print("all is done")


if __name__ == "__main__":
    main()
