"""Fine-tunings of half an epoch, judged by right answers on all test questions: one line a row, resumable.

    python -m benchmarks.study.finetunes --data DIR --task banking77 --only '16-bit' --seeds 0
    python -m benchmarks.study.finetunes --task banking77 --table
    python -m benchmarks.study.finetunes --task banking77 --page docs/study.md

Rows and settings are those of `finetunes.yaml`. Each row is a line of `results/study/finetunes.jsonl`, made in a
process of its own, so that its peak of memory is its own. A tuning that is killed is resumed from its last checkpoint.
All rows see the same batches and the same test questions; losses are of the first `loss_rows` of these.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import sys
import time
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import yaml

from benchmarks.common import MIB, PeakWatch, append_lines, find_commit, find_cpu_name, read_lines
from benchmarks.study.finetune_rows import measure_row
from benchmarks.study.finetune_settings import RESULTS, Row, read_settings
from benchmarks.study.finetunes_table import REFERENCE, fill_page, make_table
from qra_eval.models.loaded import get_cache_root


def main() -> None:
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="folder with the task's files")
    parser.add_argument("--task", default="banking77")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--only", default="", help="rows whose name this regular expression matches")
    parser.add_argument(
        "--row", type=yaml.safe_load, help="another row, such as '{kind: plan, budget: 62MiB}'"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="change a setting")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument(
        "--work", type=Path, default=get_cache_root() / "study" / "finetunes", help="folder of checkpoints"
    )
    parser.add_argument("--table", action="store_true", help="print the table of the lines, and tune nothing")
    parser.add_argument("--beside", default=REFERENCE, help="row that the table's others stand beside")
    parser.add_argument(
        "--page", type=Path, help="put the table into a page, between its marks, and tune nothing"
    )
    options = parser.parse_args()
    if options.table or options.page:
        model = Path(options.model).stem
        table = make_table(read_lines(options.out), options.task, model, options.beside, read_lines(RESULTS))
        print(*table, sep="\n")
        if options.page:
            fill_page(options.page, f"{options.task} {model}", table)
        return
    if options.data is None:
        parser.error("--data is needed")
    settings, rows = read_settings(options.set)
    rows = rows if options.row is None else [Row(**options.row)]
    for seed in options.seeds:
        for row in rows:
            if re.search(options.only, row.name):
                add_row(options, settings, row, seed)


def add_row(options: Namespace, settings: dict[str, Any], row: Row, seed: int) -> None:
    """Measure a row and append its line, unless there is one."""
    own = {name: value for name, value in settings.items() if row.is_ours or name != "plans"}
    model = Path(options.model).stem  # of a file too, wherever it lies
    key = {"task": options.task, "model": model, "row": row.name, "seed": seed}
    key |= {"spec": row.to_dict(), "settings": own}
    if any(key.items() <= line.items() for line in read_lines(options.out)):
        return
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:12]
    folder = options.work / f"{options.task}-{model}-{seed}-{digest}"
    print(f"{options.task} {model} seed {seed}: {row.name}, in {folder}", flush=True)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        line = pool.submit(measure_apart, options, row, seed, settings, folder).result()
    machine = {"commit": find_commit(), "cpu": find_cpu_name(), "threads": options.threads}
    append_lines(options.out, {**key, **line, **machine})
    shutil.rmtree(folder, ignore_errors=True)
    size, right, asked = line["memory_bytes"] / MIB, line["row_right"].count("1"), len(line["row_right"])
    print(
        f"  {size:.1f} MiB, loss {line['test_loss']:.4f}, {right} of {asked} right, {line['seconds']:.0f} s",
        flush=True,
    )


def measure_apart(
    options: Namespace, row: Row, seed: int, settings: dict[str, Any], folder: Path
) -> dict[str, Any]:
    """A row's figures; seconds are of the whole row, in all processes that it took, but those killed with SIGKILL."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    torch.set_num_threads(options.threads)
    folder.mkdir(parents=True, exist_ok=True)
    spent, begun = folder / "spent.jsonl", time.monotonic()
    try:
        with PeakWatch(0.02) as watch:
            line = measure_row(options, row, seed, settings, folder)
    finally:
        append_lines(spent, {"seconds": time.monotonic() - begun, "cpu_seconds": sum(os.times()[:2])})
    seconds = {name: round(sum(d[name] for d in read_lines(spent)), 1) for name in ("seconds", "cpu_seconds")}
    return {**line, "peak_bytes": watch.peak_bytes, **seconds}


if __name__ == "__main__":
    main()
