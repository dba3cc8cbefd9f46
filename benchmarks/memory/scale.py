"""Peak memory of every phase of a run beside what was foretold, on random models of growing size.

    python -m benchmarks.memory.scale --sizes 0.4B 1B 3B --backends mixed-calibrated reference
    python -m benchmarks.memory.scale --depths 8 16 32
    python -m benchmarks.memory.scale --sizes FILE.gguf --data DIR --backends mixed-calibrated --bank BANK

Each phase (load, quantize at 2, 3, 4 and 8 bits, prior, two evaluations, final tuning) is a process of its own,
on the bank of the process before. Measured are the pages that belong to no file, libraries among them, looked at every
three milliseconds; foretold is the estimate that another process makes from shapes alone. Plans are the largest of the
space, which are what is foretold. A row that is there for size, backend, phase, commit, cache and `MALLOC_` variables
is not measured again. `--depths` quantizes models of one width and several depths: what a layer more adds to the peak,
and how often the calibration rows pass a layer. A model's file in place of a size is measured as
the study's 1.5B was tuned, on GSM8K with its chat template; `--bank` has codes that are there already.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.common import (
    RESULTS,
    PeakWatch,
    append_lines,
    count_own_bytes,
    find_commit,
    find_cpu_name,
    read_lines,
)
from benchmarks.memory.random_models import SHAPES, Shape, write_model, write_rows
from qra_eval.evaluators.quantized_lora import QuantizedLoRAEvaluator
from qra_eval.quantized.blocks import Blocks
from qra_search.schemas import Plan
from qra_search.sections import SpaceConfig
from qra_search.space.memory import format_bytes

PHASES = ("load", "quantize", "sensitivities", "search", "tune")
NEEDS = {"sensitivities": "quantize", "search": "quantize", "tune": "quantize"}
BITS = (2, 3, 4, 8)
SECTIONS: dict[str, dict[str, int]] = {
    "training": {"batch_size": 1, "max_length": 512},
    "evaluation": {"steps": 2, "validation_rows": 4},
    "finetune": {"steps": 4, "test_rows": 4},
}
DEEP = replace(SHAPES["0.4B"], vocabulary=2048)
"""Of models that differ in depth."""
FILE_TASK: dict[str, Any] = {"name": "gsm8k", "options": {"chat": True}}
FILE_TRAINING = {"batch_size": 4, "max_length": 256, "learning_rate": 1e-3}
FILE_SPACE, FILE_TABLES = SpaceConfig(bits=(3, 4, 8), ranks=(4, 8, 16)), (4, 8, 16)
"""How a model's file is measured: what the study's 1.5B was tuned with."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", nargs="+", default=["0.4B", "1B", "3B"], help=f"of {', '.join(SHAPES)}")
    parser.add_argument(
        "--depths", nargs="+", type=int, help="layers; quantizes with the first backend, and no more"
    )
    parser.add_argument("--backends", nargs="+", default=["mixed-calibrated", "reference"])
    parser.add_argument("--phases", nargs="+", choices=PHASES, default=[*PHASES])
    parser.add_argument("--dequantized-cache", default="0")
    parser.add_argument("--compute", default="auto")
    parser.add_argument("--data", help="of GSM8K, for a model's file")
    parser.add_argument("--bank", type=Path, help="of a model's file")
    parser.add_argument(
        "--folder", type=Path, help="of models, banks and tuned plans; default: one that is removed"
    )
    parser.add_argument("--again", action="store_true", help="measure rows that are there, too")
    parser.add_argument("--out", type=Path, default=RESULTS / "scale.jsonl")
    parser.add_argument("--phase", choices=[*PHASES, "estimate"], help="this one, in this process")
    options = parser.parse_args()
    if options.phase:
        print(json.dumps(one(options, options.sizes[0], options.backends[0])))
        return
    with tempfile.TemporaryDirectory() as made:
        options.folder = options.folder or Path(made)
        write_rows(options.folder / "rows")
        if options.depths:
            depths(options)
        else:
            table([row for size in options.sizes for b in options.backends for row in run(options, size, b)])


def run(options: argparse.Namespace, size: str, backend: str) -> list[dict[str, Any]]:
    """The rows of a model and a backend, measured where they are missing."""
    if options.data is None:
        write_model(shape_of(size), options.folder / size)
    known = {} if options.again else recorded(options, size, backend)
    phases = ["quantize"] if options.depths else options.phases
    missing = {phase for phase in phases if phase not in known}
    for phase in reversed(PHASES):  # what a missing phase works on may be gone
        before = NEEDS.get(phase)
        if phase in missing and before and not made_by(before, options, size, backend).exists():
            missing.add(before)
    foretold = child(options, "estimate", size, backend)["phases"] if missing else {}
    for phase in sorted(missing, key=PHASES.index):
        if made_by(phase, options, size, backend) != options.bank:
            shutil.rmtree(made_by(phase, options, size, backend), ignore_errors=True)
        if phase == "sensitivities":
            for kept in made_by("quantize", options, size, backend).glob("prior-*.json"):
                kept.unlink()
        found = child(options, phase, size, backend)
        expected = foretold[phase]["host"]
        row = key(options, size, backend) | {
            "phase": phase,
            "cpu": find_cpu_name(),
            "torch": torch.__version__,
        }
        row |= {"foretold": expected, "ratio": found["measured"] / expected, **found}
        append_lines(options.out, row)
        known[phase] = row
        print(
            f"{size} {backend} {phase}: measured {format_bytes(row['measured'])}, foretold {format_bytes(expected)}, "
            f"ratio {row['ratio']:.2f}, {row['seconds']:.0f} s, peak at {row['at']!r}",
            flush=True,
        )
    return [known[phase] for phase in PHASES if phase in known]


def child(options: argparse.Namespace, phase: str, size: str, backend: str) -> dict[str, Any]:
    """What a process of its own finds of a phase."""
    command = [sys.executable, "-m", "benchmarks.memory.scale", "--phase", phase, "--sizes", size]
    command += ["--data", options.data, "--bank", str(options.bank)] if options.data else []
    command += ["--backends", backend, "--folder", str(options.folder)]
    command += ["--dequantized-cache", options.dequantized_cache, "--compute", options.compute]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{size} {backend} {phase} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


# -- in a process of its own -------------------------------------------------------------------
def one(options: argparse.Namespace, size: str, backend: str) -> dict[str, Any]:
    """Do a phase, and measure its peak; or estimate the peaks of all."""
    with PeakWatch(0.003) as watch:
        at_start, began = count_own_bytes(), time.perf_counter()

        def make(weights: bool = True) -> QuantizedLoRAEvaluator:
            return evaluator_of(options, size, backend, weights, watch.progress)

        if options.phase == "estimate":
            return {"phases": make(weights=False).estimate_search_cost()["phases"]}
        found = WORK[options.phase](make, made_by("tune", options, size, backend))
        seconds, processor_seconds = time.perf_counter() - began, time.process_time()
    measured = {
        "measured": watch.peak_bytes,
        "at": watch.peak_stage,
        "at_start": at_start,
        "at_end": count_own_bytes(),
    }
    took = {"seconds": seconds, "processor_seconds": round(processor_seconds, 1)}
    return {**found, **measured, **took, "threads": torch.get_num_threads()}


def evaluator_of(
    options: argparse.Namespace,
    size: str,
    backend: str,
    weights: bool,
    progress: Callable[[str, int, int], None],
) -> QuantizedLoRAEvaluator:
    model: dict[str, Any] = {"name": str(options.folder / size), "device": "cpu", "compute": options.compute}
    task: dict[str, Any] = {"name": "jsonl", "data": str(options.folder / "rows")}
    space, tables, sections = SpaceConfig(bits=BITS), 16, SECTIONS
    if options.data is not None:
        model["name"], task = size, {**FILE_TASK, "data": options.data}
        space, tables, sections = FILE_SPACE, FILE_TABLES, SECTIONS | {"training": FILE_TRAINING}
    bank = str(made_by("quantize", options, size, backend))
    config = {
        "model": {**model, "dequantized_cache": options.dequantized_cache},
        "task": task,
        "space": space,
        "quantization": {"backend": backend, "embeddings": tables, "cache": bank},
        **sections,
    }
    return QuantizedLoRAEvaluator(config, weights=weights, progress=progress)


Make = Callable[[], QuantizedLoRAEvaluator]


def load(make: Make, folder: Path) -> dict[str, Any]:
    evaluator = make()
    model = evaluator.quantized_model
    return {"compute": str(model.compute), "blocks_compute": str(model.blocks.compute)}


def quantize(make: Make, folder: Path) -> dict[str, Any]:
    """Also counts how often a batch of the calibration rows goes through a layer."""
    seen: Counter[int] = Counter()
    advance = Blocks.advance_flow

    def counted(self: Blocks, index: int, flow: Any) -> None:
        seen[index] += 1
        advance(self, index, flow)

    Blocks.advance_flow = counted  # type: ignore[method-assign]
    evaluator = make()
    evaluator.tuner.switcher.quantize_plan(largest(evaluator))
    batches = len(evaluator.quantized_model.calibration_batches())
    passes = [seen[layer] / batches for layer in range(len(evaluator.quantized_model.blocks))]
    return {"passes": [min(passes), max(passes)]}


def sensitivities(make: Make, folder: Path) -> dict[str, Any]:
    evaluator = quantized(make)
    return {"cost": evaluator.sensitivities().cost}


def search(make: Make, folder: Path) -> dict[str, Any]:
    """Of the largest plan, then of the smallest."""
    evaluator = quantized(make)
    losses = []
    for n, plan in enumerate((largest(evaluator), evaluator.space.uniform_plans()[0])):
        stage(evaluator, "evaluate", n, 2)
        losses.append(evaluator.evaluate(plan).loss)
    return {"losses": losses}


def tune(make: Make, folder: Path) -> dict[str, Any]:
    evaluator = quantized(make)
    stage(evaluator, "tune", 0, SECTIONS["finetune"]["steps"])
    tuned = evaluator.tune(largest(evaluator), folder=folder, progress=evaluator.progress)
    return {"test_loss": tuned.test_loss}


WORK = {
    "load": load,
    "quantize": quantize,
    "sensitivities": sensitivities,
    "search": search,
    "tune": tune,
}


def quantized(make: Make) -> QuantizedLoRAEvaluator:
    """An evaluator whose bank is there: to quantize is no part of what is measured."""
    evaluator = make()
    if not evaluator.quantized_model.is_quantized():
        sys.exit("the bank is not whole: run this with --again --phases quantize first")
    evaluator.tuner.switcher.prepare()
    return evaluator


def largest(evaluator: QuantizedLoRAEvaluator) -> Plan:
    """The plan of most bytes that the space has."""
    memory = evaluator.space.memory
    most = np.where(memory.allowed, memory.choice_bytes, -1)
    return evaluator.space.decode(
        np.stack(np.unravel_index(most.reshape(len(most), -1).argmax(1), most.shape[1:]))
    )


def stage(evaluator: QuantizedLoRAEvaluator, name: str, done: int, total: int) -> None:
    assert evaluator.progress is not None
    evaluator.progress(name, done, total)


# -- rows --------------------------------------------------------------------------------------
def shape_of(size: str) -> Shape:
    depth = size.removeprefix("depth-")
    return replace(DEEP, layers=int(depth)) if depth != size else SHAPES[size]


def made_by(phase: str, options: argparse.Namespace, size: str, backend: str) -> Path:
    """What a phase leaves for those after it."""
    return (phase == "quantize" and options.bank) or options.folder / f"{Path(size).name}-{backend}-{phase}"


def key(options: argparse.Namespace, size: str, backend: str) -> dict[str, Any]:
    malloc = {name: value for name, value in sorted(os.environ.items()) if name.startswith("MALLOC_")}
    made = {"commit": find_commit(), "size": Path(size).name, "backend": backend}
    made |= {"dequantized_cache": options.dequantized_cache, "compute_asked": options.compute}
    return made | {"malloc": malloc}


def recorded(options: argparse.Namespace, size: str, backend: str) -> dict[str, dict[str, Any]]:
    """Rows that are there, by phase."""
    wanted = key(options, size, backend)
    return {row["phase"]: row for row in read_lines(options.out) if wanted.items() <= row.items()}


def table(rows: list[dict[str, Any]]) -> None:
    """Measured over foretold, a line for each size and backend."""
    print("\nmeasured MiB / foretold MiB = ratio")
    print("| size | backend | " + " | ".join(PHASES) + " |\n|---|---|" + "---|" * len(PHASES))
    for size, backend in dict.fromkeys((row["size"], row["backend"]) for row in rows):
        found = {row["phase"]: row for row in rows if (row["size"], row["backend"]) == (size, backend)}
        cells = [cell(found[phase]) if phase in found else "" for phase in PHASES]
        print(f"| {size} | {backend} | " + " | ".join(cells) + " |")


def cell(row: dict[str, Any]) -> str:
    return f"{row['measured'] / 2**20:.0f} / {row['foretold'] / 2**20:.0f} = {row['ratio']:.2f}"


def depths(options: argparse.Namespace) -> None:
    """What a layer more adds to the peak of quantizing, as a share of its bytes."""
    backend, layer = options.backends[0], 2 * DEEP.layer_weights
    rows = {depth: run(options, f"depth-{depth}", backend)[0] for depth in sorted(options.depths)}
    table(list(rows.values()))
    for depth, row in rows.items():
        print(f"{depth} layers: a batch passes a layer {row['passes'][0]:g} to {row['passes'][1]:g} times")
    for a, b in zip([*rows][:-1], [*rows][1:], strict=True):
        for name in ("measured", "foretold"):
            growth = (rows[b][name] - rows[a][name]) / (b - a)
            print(
                f"{a} to {b} layers, {name}: {growth / 2**20:.2f} MiB a layer, {growth / layer:.3f} of its bytes"
            )


if __name__ == "__main__":
    main()
