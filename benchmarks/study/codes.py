"""What codes that see the loss bring: a uniform plan's loss before and after tuning, by how tokens and outputs count.

    python -m benchmarks.study.codes --data DIR [--only REGEX] [--model FILE.gguf] [--table]

SmolLM2 on GSM8K, rank 8, embeddings and head in 16 bits; 36 steps of 4 rows, 96 test rows, seed 0, in float32. Another
model computes in bfloat16, and its loss on ARC's easy questions is measured too: text that codes were not fitted to. A
line a setting, in results/study/codes.jsonl; what is there is not measured again.
"""

from __future__ import annotations

import re
import time
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import RESULTS, append_lines, find_commit, find_cpu_name, read_lines
from benchmarks.study.finetune_rows import measure_text_loss
from qra_eval.evaluators.quantized_lora import QuantizedLoRAEvaluator
from qra_eval.quantized import model
from qra_eval.quantized.calibration import WEIGHTINGS, Weighting
from qra_eval.tasks.sources import read_folder_rows

FILE = RESULTS / "study" / "codes.jsonl"
MODEL = "smollm2"
STEPS, TEST_ROWS, VALIDATION_ROWS, TEXT_ROWS, MAX_LENGTH, BATCH = 36, 96, 64, 256, 160, 4
OPTIONS = ("damping", "L")
HALF = Weighting(mix=0.5, power=1.0)
SETTINGS: tuple[tuple[Weighting, int, float, bool, dict[str, Any]], ...] = (
    (HALF, 64, 2, True, {}),
    (HALF, 64, 3, False, {}),
    (Weighting(mix=0.5, power=1.0, labels="rows"), 64, 2, False, {}),
    (HALF, 128, 2, False, {}),
    (Weighting(mix=1.0, power=0.0), 64, 3, False, {}),
    (Weighting(mix=1.0, power=1.0), 64, 2, False, {}),
    (Weighting(mix=0.2, power=1.0), 64, 2, False, {}),
    (Weighting(mix=0.5, power=0.5), 64, 2, False, {}),
    (HALF, 64, 4, False, {}),
    (Weighting(mix=1.0, power=0.0), 128, 4, False, {}),
    (HALF, 256, 4, False, {}),
    (HALF, 128, 2, False, {"damping": 0.01}),
    (HALF, 128, 2, False, {"damping": 0.1}),
    (HALF, 256, 2, False, {}),
    (HALF, 128, 3, False, {}),
    (HALF, 128, 3, False, {"damping": 0.01}),
    (HALF, 128, 4, False, {}),
    (Weighting(mix=0.8, power=1.0), 128, 4, False, {}),
    (Weighting(mix=0.8, power=1.0), 128, 2, False, {}),
    (Weighting(mix=0.8, power=1.0), 128, 3, False, {}),
    (HALF, 128, 2, True, {}),
    (Weighting(mix=0.8, power=1.0), 128, 2, True, {}),
    (Weighting(mix=1.0, power=0.0), 128, 2, False, {}),
    (HALF, 128, 1, False, {}),
    (HALF, 128, 1, False, {"L": 14}),
)
"""How tokens and outputs count, rows that calibrate, bits, whether the plan is tuned, and options of the codes."""


def main() -> None:
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="folder of gsm8k_train.jsonl")
    parser.add_argument("--cache", help="folder of the bank of quantized weights")
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--only", default="", help="settings whose name this regular expression matches")
    parser.add_argument("--out", type=Path, default=FILE)
    parser.add_argument("--table", action="store_true", help="print what is there, and measure nothing")
    options = parser.parse_args()
    if options.table:
        print(*table(read_lines(options.out)), sep="\n")
        return
    torch.set_num_threads(1)
    for name, key in settings(options.model):
        if re.search(options.only, name) and not any(
            is_line_of(key, line) for line in read_lines(options.out)
        ):
            append_lines(options.out, {**key, **measure(key, options), "commit": find_commit()})
            print(name, table(read_lines(options.out))[-1], flush=True)


def settings(model_name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every setting's name, and what its line is known by."""
    other = {} if model_name == MODEL else {"model": Path(model_name).name}
    for weighting, rows, bits, tuned, own in SETTINGS:
        name = f"{bits} bits, {rows} rows, mix {weighting.mix}, power {weighting.power}, {weighting.labels} labels"
        name += "".join(f", {option} {value}" for option, value in own.items()) + (", tuned" if tuned else "")
        yield (
            name,
            {"bits": bits, "rows": rows, **asdict(weighting), "tuned": tuned, "seed": 0, **own} | other,
        )


def is_line_of(key: dict[str, Any], line: dict[str, Any]) -> bool:
    return key.items() <= line.items() and not any(
        name in line for name in (*OPTIONS, "model") if name not in key
    )


def measure(key: dict[str, Any], options: Namespace) -> dict[str, Any]:
    """The loss of the uniform plan as quantized, and tuned."""
    own = {option: key[option] for option in OPTIONS if option in key}
    WEIGHTINGS["loss"] = Weighting(**{name: key[name] for name in ("mix", "power", "labels")})
    model.MIN_ROWS = model.MAX_ROWS = key["rows"]
    evaluator = QuantizedLoRAEvaluator(
        {
            "model": {"name": options.model, "compute": "bfloat16" if "model" in key else "float32"},
            "task": {"name": "gsm8k", "data": options.data},
            "quantization": {"backend": {"name": "trellis", **own}, "embeddings": 16, "cache": options.cache},
            "space": {"bits": (key["bits"],), "ranks": (8,), "granularity": "module"},
            "training": {
                "batch_size": BATCH,
                "max_length": MAX_LENGTH,
                "learning_rate": 2e-3,
                "scales": True,
            },
            "finetune": {"steps": STEPS, "test_rows": TEST_ROWS},
        }
    )
    tuner, plan = evaluator.tuner, evaluator.space.uniform(key["bits"], 8)
    start = time.perf_counter(), time.process_time()
    tuner.switcher.quantize_plan(plan)
    line = {
        "quantize_seconds": round(time.perf_counter() - start[0], 1),
        "quantize_cpu_seconds": round(time.process_time() - start[1], 1),
        "memory_bytes": evaluator.space.memory_bytes(plan),
        "cpu": find_cpu_name(),
    }
    texts = [line["question"] for _, line in read_folder_rows(options.data, "arc_easy", "test")[:TEXT_ROWS]]
    if "model" in key and not any(line.get("model") == key["model"] for line in read_lines(options.out)):
        with tuner.switcher.use_unquantized():
            line["loss_16_bits"] = round(tuner.measure_loss("test", TEST_ROWS), 5)
            line["text_loss_16_bits"] = round(
                measure_text_loss(evaluator, tuner.model, texts, MAX_LENGTH, BATCH), 5
            )
    tuner.switcher.put_plan(plan, key["seed"])
    line["untuned_loss"] = round(tuner.measure_loss("test", TEST_ROWS), 5)
    if "model" in key:
        line["text_loss"] = round(measure_text_loss(evaluator, tuner.model, texts, MAX_LENGTH, BATCH), 5)
    if key["tuned"]:
        tuner.train(STEPS, key["seed"], batches=tuner.get_final_batches(STEPS, key["seed"]))
        line["test_loss"] = round(tuner.measure_loss("test", TEST_ROWS), 5)
        line["validation_loss"] = round(tuner.measure_loss("validation", VALIDATION_ROWS), 5)
    return line


def table(lines: list[dict[str, Any]]) -> list[str]:
    """A row a setting, in Markdown."""
    losses = ("untuned_loss", "text_loss", "test_loss", "validation_loss")
    names = ("model", "bits", "rows", "mix", "power", "labels", *OPTIONS, *losses)
    heads = [f"| {' | '.join(name.replace('_', ' ') for name in names)} |", "|---" * len(names) + "|"]
    return heads + [f"| {' | '.join(str(line.get(name, '')) for name in names)} |" for line in lines]


if __name__ == "__main__":
    main()
