"""Every phase on a pretended GPU, for many backends and settings: peaks beside those foretold, bytes sent and fetched.

    PYTHONPATH=tests python -m benchmarks.memory.pretended         # again: what has no row yet
    PYTHONPATH=tests python -m benchmarks.memory.pretended NAME    # anew: a scenario's last row counts

Values are computed on the CPU, with the device written on each tensor: see `tests/pretended_gpu.py` for what that
does not see. A scenario takes 10 to 60 seconds. The exit status is 1 if one breaks, or a phase's peak is not
within 0.85 and 1.15 of what was foretold in the row of any.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pretended_gpu import pretended_gpu

from benchmarks.common import RESULTS, append_lines, find_commit, read_lines
from benchmarks.memory.random_models import Shape, write_model, write_rows
from qra_eval.costs.phases import CUDA_CONTEXT_BYTES, estimate_peaks
from qra_eval.evaluators.quantized_lora import QuantizedLoRAEvaluator
from qra_search.schemas import Plan

SHAPE = Shape(256, 704, 3, 8, 2, 4096)
"""Large enough that matrices are what takes memory, as in models that are used."""
SMALL = Shape(128, 384, 2, 4, 2, 2048)
"""For the suite."""
ROWS = RESULTS / "pretended.jsonl"
WITHIN = 0.85, 1.15
TRAINING = {"batch_size": 4, "max_length": 256}
REFERENCE: dict[str, Any] = {"quantization": {"backend": "reference"}}
CALIBRATED: dict[str, Any] = {"quantization": {"backend": "reference-gptq"}}
BITSANDBYTES: dict[str, Any] = {"quantization": {"backend": "bitsandbytes"}, "space": {"bits": (4, 8)}}
DEFAULT: dict[str, Any] = {"quantization": {"embeddings": (3, 4)}}
"""Trellis codes for all: what is foretold is of the level that takes most to be dequantized."""
BACKENDS = {"reference": REFERENCE, "gptq": CALIBRATED, "bitsandbytes": BITSANDBYTES, "default": DEFAULT}


def changed(sections: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """Sections with fields of theirs set: `training={"scales": True}`."""
    found = {**sections}
    for name, fields in more.items():
        found[name] = {**found.get(name, {}), **fields} if isinstance(fields, dict) else fields
    return found


SCENARIOS: dict[str, dict[str, Any]] = {
    **{
        f"{name}{', tables' if tables else ''}{', checkpointing' if again else ''}": changed(
            sections,
            quantization={"embeddings": sections["quantization"].get("embeddings", "auto") if tables else 16},
            training={"gradient_checkpointing": again},
        )
        for name, sections in BACKENDS.items()
        for tables in (False, True)
        for again in (False, True)
    },
    "weights kept": changed(REFERENCE, model={"dequantized_cache": "auto"}),
    "weights kept, scales": changed(
        REFERENCE, model={"dequantized_cache": "auto"}, training={"scales": True}
    ),
    "scales": changed(REFERENCE, training={"scales": True}),
    "dropout": changed(REFERENCE, training={"dropout": 0.1}),
    "accumulation": changed(REFERENCE, training={"accumulation": 2}, finetune={"evaluate_every": 1}),
    "float32": changed(REFERENCE, dtype="float32"),
    "double quantization": changed(
        BITSANDBYTES, quantization={"backend": {"name": "bitsandbytes", "double_quant": True}}
    ),
    "mixed": changed(REFERENCE, quantization={"backend": "mixed", "embeddings": 16}, space={"bits": (4, 8)}),
    "gguf": changed(
        REFERENCE,
        quantization={"backend": {"name": "gguf", "types": ["IQ4_NL", "Q8_0"]}},
        space={"bits": (4,)},
    ),
    "compressed-tensors": changed(
        REFERENCE, quantization={"backend": "compressed-tensors"}, space={"bits": (4, 8)}
    ),
    "task's measure": changed(REFERENCE, metric="task", task="arithmetic"),
}


@dataclass(frozen=True)
class Phase:
    """What a phase took of the device beside what was foretold, without the driver's part; and bytes moved."""

    name: str
    peak: int
    foretold: int
    sent: int
    fetched: int

    @property
    def ratio(self) -> float:
        return self.peak / self.foretold


def phases(
    folder: Path, model: str, rows: str, sections: Mapping[str, Any], training: Mapping[str, Any] = TRAINING
) -> Iterator[Phase]:
    """The phases of a run on a pretended GPU, with the plan of the most bits and the highest rank in place.

    Raises:
        RuntimeError: operands of an operation are on two devices.
        AssertionError: the same evaluation gave two losses.
    """
    given = changed(
        {"task": {"name": "jsonl", "data": rows}},
        training=dict(training),
        model={"name": model, "device": "cuda", "dequantized_cache": 0},
        space={"bits": (3, 4), "ranks": (4, 8)},
        evaluation={"steps": 1, "validation_rows": 4},
        finetune={"steps": 1, "test_rows": 4, "sample_answers": 0},
    )
    given = changed(given, **sections)
    given = changed(given, quantization={"cache": str(folder / "bank")})
    with pretended_gpu() as gpu:
        start = gpu.bytes
        evaluator: QuantizedLoRAEvaluator | None = QuantizedLoRAEvaluator(given)
        plan = largest(evaluator.space)
        told = estimate_peaks(evaluator.tuner, evaluator.quantized_model.space.memory_bytes(plan))

        def phase(name: str, work: Any, *args: Any, **options: Any) -> tuple[Phase, Any]:
            gpu.peak, sent, fetched = gpu.bytes, gpu.sent, gpu.fetched
            value = work(*args, **options)
            left = told[name].device - CUDA_CONTEXT_BYTES
            return Phase(name, gpu.peak - start, left, gpu.sent - sent, gpu.fetched - fetched), value

        yield phase("quantize", evaluator.tuner.switcher.quantize_plan, plan)[0]
        yield phase("sensitivities", evaluator.sensitivities)[0]
        found, first = phase("search", evaluator.evaluate, plan)
        yield found
        # As a comparison has it, beside the untuned model.
        yield phase(
            "tune", lambda: (evaluator.tune(plan, folder=folder / "run"), evaluator.measure_untuned())
        )[0]
        assert evaluator.evaluate(plan).loss == first.loss


def largest(space: Any) -> Plan:
    """The quantized plan of the most bits and the highest ranks."""
    levels = [[level for level in group.bits or space.bits if level != 16] for group in space.groups]
    return Plan(
        tuple(some[-1] for some in levels), tuple((group.ranks or space.ranks)[-1] for group in space.groups)
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", help="default: those without a row")
    last = {row["scenario"]: row for row in read_lines(ROWS)}
    names = parser.parse_args().names or [name for name in SCENARIOS if name not in last]
    wrong, made_at = [], find_commit()
    with tempfile.TemporaryDirectory() as made:
        root = Path(made)
        model, rows = str(write_model(SHAPE, root / "model")), str(write_rows(root / "rows"))
        for name in names:
            begun = time.perf_counter()
            try:
                found = list(phases(root / name, model, rows, SCENARIOS[name]))
            except Exception as error:  # the others are to be seen all the same
                print(f"{name}: {type(error).__name__}: {str(error)[:500]}", flush=True)
                wrong.append(name)
                continue
            last[name] = {"scenario": name, "commit": made_at, "phases": list(map(asdict, found))}
            append_lines(ROWS, last[name])
            parts = [f"{p.name} {p.ratio:.3f} (sent {p.sent / 1e6:.1f} MB)" for p in found]
            print(f"{name}: {'; '.join(parts)}; {time.perf_counter() - begun:.0f} s", flush=True)
    ratios = {name: [Phase(**phase).ratio for phase in row["phases"]] for name, row in last.items()}
    wrong += [name for name, some in ratios.items() if not WITHIN[0] <= min(some) <= max(some) <= WITHIN[1]]
    print(f"{len(ratios)} of {len(SCENARIOS)} scenarios have a row, {len(wrong)} are not as foretold")
    if wrong:
        print(f"not as foretold: {'; '.join(wrong)}")
        sys.exit(1)


if __name__ == "__main__":
    main()
