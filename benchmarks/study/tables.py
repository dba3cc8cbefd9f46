"""What SmolLM2's table of embeddings loses by how much its tokens count: before tuning, with all linears in 16 bits.

    python -m benchmarks.study.tables --data DIR [--task banking77] [--table]

A line each, in results/study/tables.jsonl: nats by which predictions differ from those of the table in 16 bits, on test
rows of the task that the table is calibrated for, and on questions of GSM8K, which are other text. With a floor, a
token's row counts by the square root of its use plus the floor (see `LayerMoments.weigh_tokens`); without, all alike.
"""

from __future__ import annotations

import time
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from qra_backends import make_backend
from torch import Tensor

from benchmarks.common import RESULTS, append_lines, find_commit, find_cpu_name, read_lines
from qra_eval.evaluators.quantized_lora import QuantizedLoRAEvaluator
from qra_eval.quantized.calibration import TOKEN_FLOOR, pass_layers
from qra_eval.sensitivities.measure import compute_divergence
from qra_eval.tasks.encoding import IGNORED
from qra_eval.tasks.sources import read_folder_rows

FILE = RESULTS / "study" / "tables.jsonl"
SETTINGS: tuple[tuple[float, float | None], ...] = (
    (3, None),
    (3, 0.3),
    (2, None),
    (2, 0.03),
    (2, 0.1),
    (2, 0.3),
    (2, 1.0),
    (1, None),
    (1, 0.3),
)
"""Bits, and the floor of a token's weight; None: all tokens alike."""
TEST_ROWS, OTHER_ROWS, OTHER_TOKENS = 64, 24, 128
POSITIONS = 256
"""Whose logits are compared at a time."""


def main() -> None:
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="folder of the task's files, and of gsm8k_test.jsonl")
    parser.add_argument("--task", default="banking77")
    parser.add_argument("--out", type=Path, default=FILE)
    parser.add_argument("--table", action="store_true", help="print what is there, and measure nothing")
    options = parser.parse_args()
    if not options.table:
        torch.set_num_threads(1)
        measure_all(options.data, options.task, options.out)
    print(*(format_line(line) for line in read_lines(options.out)), sep="\n")


def measure_all(data: str, task: str, out: Path) -> None:
    """Append a line for each setting that has none."""
    known = {(line["task"], line["bits"], line["floor"]) for line in read_lines(out)}
    settings = [(bits, floor) for bits, floor in SETTINGS if (task, bits, floor) not in known]
    if not settings:
        return
    evaluator = QuantizedLoRAEvaluator(
        {"model": {"name": "smollm2", "compute": "float32"}, "task": {"name": task, "data": data}}
    )
    quantized, model = evaluator.quantized_model, evaluator.quantized_model.model
    ((name, table),) = quantized.tables.items()
    blocks, batches = quantized.blocks, quantized.calibration_batches()
    evaluator.tuner.switcher.unquantize()
    at = len(blocks)
    ((_, moments),) = pass_layers(blocks, batches, lambda _: {name: table}, quantized.weighting, [at], name)
    hessian, weights = moments.compute_hessian(name), moments.compute_output_weights(name)
    assert weights is not None
    texts = list_texts(evaluator, data)
    whole = table.weight.detach().clone()
    reference = [compute_logits(model, some) for some in texts]
    backend = make_backend("trellis")
    for bits, floor in settings:
        begun = time.process_time()
        own = None if floor is None else weights - TOKEN_FLOOR + floor
        module = backend.quantize(table, bits, hessian=hessian, output_weights=own)
        seconds = time.process_time() - begun
        table.weight.data = backend.dequantize(module).to(whole.dtype)
        model.get_input_embeddings().weight.data = table.weight.data
        nats = [
            compare(*pair)
            for pair in zip(reference, (compute_logits(model, some) for some in texts), strict=True)
        ]
        table.weight.data = model.get_input_embeddings().weight.data = whole
        line = {"task": task, "bits": bits, "floor": floor, "nats": nats[0], "nats_other_text": nats[1]}
        machine = {"quantize_cpu_seconds": round(seconds, 1), "commit": find_commit(), "cpu": find_cpu_name()}
        append_lines(out, {**line, **machine})


def list_texts(evaluator: QuantizedLoRAEvaluator, data: str) -> list[list[tuple[Tensor, Tensor]]]:
    """Token ids and the positions that are compared: of test rows, and of other text."""
    rows, tokenizer = evaluator.tuner.rows("test", TEST_ROWS), evaluator.tuner.tokenizer
    own = [(row.input_ids, (row.labels[1:] != IGNORED).nonzero().flatten()) for row in rows]
    questions = [line["question"] for _, line in read_folder_rows(data, "gsm8k", "test")[:OTHER_ROWS]]
    ids = [torch.tensor(tokenizer(question)["input_ids"][:OTHER_TOKENS]) for question in questions]
    return [own, [(some, torch.arange(len(some))) for some in ids]]


@torch.no_grad()
def compute_logits(model: Any, texts: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Float32 (positions, vocabulary)."""
    return torch.cat([model(input_ids=ids[None]).logits[0, positions].float() for ids, positions in texts])


def compare(reference: Tensor, logits: Tensor) -> float:
    """Mean divergence in nats of what logits predict from what a reference does."""
    total = 0.0
    for own, other in zip(reference.split(POSITIONS), logits.split(POSITIONS), strict=True):
        total += compute_divergence(own.log_softmax(-1), own.softmax(-1), other.log_softmax(-1)) * len(own)
    return round(total / len(reference), 5)


def format_line(line: dict[str, Any]) -> str:
    """A row of a Markdown table."""
    how = "all alike" if line["floor"] is None else f"by use, floor {line['floor']}"
    return f"| {line['bits']} | {how} | {line['nats']:.3f} | {line['nats_other_text']:.3f} |"


if __name__ == "__main__":
    main()
