"""Adapters on a quantized base, or a tuned model quantized afterwards? Four ways at 2, 3 and 4 bits; resumable.

    python -m benchmarks.study.merged --data DIR --work FOLDER --minutes 50

Each measurement is a line of `merged.jsonl`. One tuning in 16 bits serves all widths.
`FOLDER` keeps tuned runs, merged models and their banks; it can be deleted at the end. `--table` prints the lines.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import MIB, append, commit, read
from benchmarks.study import protocol
from benchmarks.study.intervals import by_seed, change, mean_loss, table_of
from qra_eval.evaluators.quantized_lora import QuantizedLoRAEvaluator
from qra_eval.export.merged import write_plain
from qra_eval.export.tuned import TunedRun
from qra_eval.tuning import saved
from qra_search.space.memory import UNQUANTIZED_BITS
from qra_search.space.space import Plan

WIDTHS = (2, 3, 4)
RANK = 8
KEPT = "tuned on the quantized base, adapter kept"
LATER = "tuned in 16 bits, adapter kept, base quantized afterwards"
MERGED = "tuned in 16 bits, merged, quantized"
AGAIN = "tuned on the quantized base, merged, quantized again"
UNMERGED = "tuned in 16 bits"
WAYS = (KEPT, MERGED, AGAIN, LATER)


class Runs:
    """What is measured, and the tuned models that later ways begin with.

    Args:
        base: evaluator of the model itself.
        work: folder of tuned runs and merged models.
    """

    def __init__(self, data: str, work: Path, cache: str | None, seed: int):
        self.data, self.work, self.cache, self.seed = data, work, cache, seed
        self.base = self._evaluator(protocol.MODEL, WIDTHS)

    def _evaluator(self, model: str, widths: tuple[int, ...]) -> QuantizedLoRAEvaluator:
        return protocol.evaluator(
            "gsm8k", self.data, bits=(*widths, UNQUANTIZED_BITS), ranks=(0, RANK), model=model, cache=self.cache
        )

    def plan(self, bits: int, rank: int) -> Plan:
        plan = self.base.space.uniform(bits, rank)
        assert plan is not None  # every width and rank is in the space
        return plan

    def tune(self, bits: int) -> dict[str, Any]:
        """Tune on a base of so many bits, and write the merged model."""
        plan = self.plan(bits, RANK)
        line = protocol.tuned(self.base, plan, self.seed)
        saved.save(self.base.tuner, plan, self.run_folder(bits))
        write_plain(TunedRun(self.run_folder(bits)), self.merged_folder(bits), torch.bfloat16)
        return line

    def run_folder(self, bits: int) -> Path:
        """Of what was tuned on a base of so many bits."""
        return self.work / f"seed-{self.seed}" / f"{bits}-bit"

    def merged_folder(self, bits: int) -> Path:
        """Of the same, merged."""
        return self.work / f"seed-{self.seed}" / f"{bits}-bit-merged"

    def is_merged(self, bits: int) -> bool:
        return (self.merged_folder(bits) / "config.json").is_file()

    def quantized_below(self, bits: int) -> dict[str, Any]:
        """The adapters that were tuned in 16 bits, on a base of so many bits."""
        plan, bench = self.plan(bits, RANK), self.base.tuner
        bench.switcher.prepare()
        bench.apply(plan, self.seed)
        for name, found in TunedRun(self.run_folder(UNQUANTIZED_BITS)).factors.items():
            bench.switcher.wrapped[name].set_adapter(found.A.float(), found.B.float(), found.scaling)
        return protocol.in_place(self.base, plan)

    def quantized_merged(self, tuned_bits: int, bits: int) -> dict[str, Any]:
        """A merged model, calibrated through itself and quantized, without adapters; as it is at 16 bits."""
        widths = WIDTHS if tuned_bits == UNQUANTIZED_BITS else (bits,)  # of one model all widths are quantized together
        made = self._evaluator(str(self.merged_folder(tuned_bits)), widths)
        plan = self.plan(bits, 0)
        made.tuner.switcher.prepare()
        made.tuner.apply(plan, self.seed)
        return protocol.in_place(made, plan)


def steps(runs: Runs, done: set[tuple[str, int]]) -> Iterator[tuple[str, int, dict[str, Any]]]:
    """Way, bits and figures of all that is not done, the tuning in 16 bits first."""
    wide = UNQUANTIZED_BITS
    if (UNMERGED, wide) not in done or not runs.is_merged(wide):
        yield UNMERGED, wide, runs.tune(wide)
    for bits in WIDTHS:
        if (LATER, bits) not in done:
            yield LATER, bits, runs.quantized_below(bits)
    for bits in (wide, *WIDTHS):
        if (MERGED, bits) not in done:
            yield MERGED, bits, runs.quantized_merged(wide, bits)
    for bits in WIDTHS:
        if (KEPT, bits) not in done or ((AGAIN, bits) not in done and not runs.is_merged(bits)):
            yield KEPT, bits, runs.tune(bits)
    for bits in WIDTHS:
        if (AGAIN, bits) not in done:
            yield AGAIN, bits, runs.quantized_merged(bits, bits)


def main() -> None:
    parser = protocol.options(__doc__, seeds=1)
    parser.add_argument("--work", type=Path, help="folder of tuned runs and merged models")
    options = parser.parse_args()
    path = options.out / "merged.jsonl"
    if options.table:
        print(*table(read(path)), sep="\n")
        return
    until = protocol.begin(parser, options)
    if options.work is None:
        parser.error("--work is needed")
    for seed in protocol.SEEDS[: options.seeds]:
        done = {(d["way"], d["bits"]) for d in read(path) if d["seed"] == seed}
        for way, bits, figures in steps(Runs(options.data, options.work, options.cache, seed), done):
            if (way, bits) not in done:
                append(path, {"way": way, "bits": bits, "seed": seed, **figures, "commit": commit()})
                print(f"seed {seed}  {bits}-bit, {way}: {figures['test_loss']:.4f}", flush=True)
            if until is not None and time.monotonic() > until:
                raise SystemExit(protocol.LEFT)


def table(lines: list[dict[str, Any]]) -> list[str]:
    """Test loss of every way, and the difference to adapters kept on the quantized base, 95% over rows."""
    body = []
    for bits in WIDTHS:
        rival = by_seed(d for d in lines if (d["way"], d["bits"]) == (KEPT, bits))
        for way in WAYS:
            some = [d for d in lines if (d["way"], d["bits"]) == (way, bits) and d["seed"] in rival]
            if some:
                beside = "–" if way == KEPT else change(some, [rival[d["seed"]] for d in some])
                body.append([str(bits), way, *cells(some), beside])
    for way in (UNMERGED, MERGED):
        some = [d for d in lines if (d["way"], d["bits"]) == (way, UNQUANTIZED_BITS)]
        if some:
            body.append(["16", way.removesuffix(", quantized"), *cells(some), ""])
    return table_of(["bits", "way", "MiB", "seeds", "test loss", "against the first"], body)


def cells(some: list[dict[str, Any]]) -> list[str]:
    """MiB, seeds and mean test loss."""
    return [f"{some[0]['memory_bytes'] / MIB:.1f}", str(len(some)), f"{mean_loss(some):.4f}"]


if __name__ == "__main__":
    main()
