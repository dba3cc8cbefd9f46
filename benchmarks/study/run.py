"""The whole study, piece by piece: searches, final tunings, tables. Run it again until it says that all is done.

    python -m benchmarks.study.run --data DIR --minutes 55

The first pieces answer most: bytes needed for a quality, by the sensitivities and by searches, plans of other tools,
and the order of tuning and quantizing. Then comes the earlier round: the search, its plans and their rivals; other
strategies, bits alone, ranks alone; other tasks and what carries over to them. Each evaluation and each tuning is kept
as it ends, so that a piece may be stopped at any moment. `--threads` must stay the same: it changes the last digits.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time

from benchmarks.study import protocol
from qra_eval.models.loaded import cache_root

OTHER_TASKS = protocol.TASKS[1:]
PIECES: tuple[tuple[str, ...], ...] = (
    ("budgets",),
    *(("search", "--newest", "--strategy", s) for s in ("qra", "nsga2", "qr_adaptor", "autoqra")),
    ("budgets",),
    *(("budgets", "--task", t) for t in OTHER_TASKS),
    ("budgets", "--steps", str(protocol.LONGER), "--seeds", "1"),
    ("peers",),
    ("merged",),
    *(("search", "--strategy", s) for s in ("sensitivity", "qra", "qr_adaptor", "nsga2", "additive", "autoqra")),
    ("search", "--strategy", "qra", "--ranks", "8"),
    ("search", "--strategy", "qra", "--bits", "4"),
    ("search", "--strategy", "qra", "--granularity", "layer"),
    *(("search", "--strategy", s, "--embeddings", "8") for s in ("sensitivity", "qra")),
    *(("search", "--strategy", s, "--low") for s in ("sensitivity", "qra")),
    ("final",),
    *(("search", "--task", t, "--strategy", s) for t in OTHER_TASKS for s in ("sensitivity", "qra")),
    *(("final", "--task", t) for t in OTHER_TASKS),
    *(("final", "--task", t, "--plans-of", "gsm8k", "--only", "'s qra-module-0 @") for t in OTHER_TASKS),
    ("tables",),
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
        command = [sys.executable, "-m", f"benchmarks.study.{script}", *arguments]
        if script != "tables":
            command += ["--data", options.data, "--threads", str(options.threads)]
            if script == "merged":
                command += ["--work", str(cache_root() / "study" / script)]
            if until is not None:
                command += ["--minutes", f"{max(0.0, (until - time.monotonic()) / 60):.2f}"]
        print("$", " ".join(command[1:]), flush=True)
        status = subprocess.run(command, check=False).returncode
        if status:
            raise SystemExit("more is left: run this again" if status == protocol.LEFT else status)
    print("all is done")


if __name__ == "__main__":
    main()
