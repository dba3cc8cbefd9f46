"""AutoRound's own rounding beside ours: uniform plans of rank 8, tuned alike, at 2 and 3 bits; resumable.

    python benchmarks/study/rounded.py make --bits 2 --data DIR --work FOLDER
    python benchmarks/study/rounded.py tune --data DIR --work FOLDER
    python benchmarks/study/rounded.py table

`make` needs `auto-round`: it learns the rounding block by block on GSM8K's training rows, as by default in 200 steps,
and writes the rounded model into FOLDER. `tune` tunes adapters on it as the study's other final tunings are, a line of
`rounded.jsonl` each. Its scales and zero points are counted as it packs them, in groups of 32: a scale of 16 bits and a
zero point as wide as the codes, which is 0.06 to 0.09 bits a weight more than our groups of 64. `table` sets the lines
beside those of `pieces.jsonl` with polish, the same rows and seeds.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import protocol
import torch
from lines import MIB, RESULTS, change, read
from peer_plans import linears

from qra_eval.models.load import load_model
from qra_eval.tasks import make_task
from qra_search.files import write_json

WIDTHS = (2, 3)
RANK = 8
GROUP = 32
ROWS, TOKENS = 128, 128
"""That it learns from: its rows have one length, shorter ones are left out, so it is given four times as many."""
SEEDS = 1
OURS = "polish"


def make(data: str, work: Path, bits: int) -> None:
    """Write the model with its linears rounded by AutoRound."""
    from auto_round import AutoRound

    examples = make_task("gsm8k", data=data, seed=0).split("calibration")[: 4 * ROWS]
    work.mkdir(parents=True, exist_ok=True)
    rows = work / "rows.json"
    write_json(rows, [{"text": example.prompt + example.answer} for example in examples])
    loaded, plain = load_model(protocol.MODEL), load_model(protocol.MODEL)
    rounder = AutoRound(
        loaded.model, loaded.tokenizer, bits=bits, group_size=GROUP, sym=False, dataset=str(rows), nsamples=ROWS,
        seqlen=TOKENS, enable_torch_compile=False,
    )  # fmt: skip
    start = time.perf_counter()
    rounded = rounder.quantize()[0]
    for name in linears(plain.model):
        weight = rounded.get_submodule(name).weight.detach()
        levels = max(map(len, map(torch.unique, weight[:8].unflatten(1, (-1, GROUP)).flatten(0, 1))))
        if levels > 2**bits:
            raise RuntimeError(f"{name} has {levels} levels in a group: it was not rounded to {bits} bits")
        plain.model.get_submodule(name).weight.data = weight.to(torch.bfloat16).clone()
    plain.model.save_pretrained(folder(work, bits))
    plain.tokenizer.save_pretrained(folder(work, bits))
    print(f"{bits} bits: {time.perf_counter() - start:.0f} s", flush=True)


def folder(work: Path, bits: int) -> Path:
    return work / f"{bits}-bit"


def tune(data: str, work: Path, widths: Iterable[int], seeds: int, path: Path) -> None:
    """Adapters on the rounded models, a line each."""
    from pieces import tuned

    for bits in widths:
        made = protocol.evaluator("gsm8k", data, bits=(16,), ranks=(RANK,), model=str(folder(work, bits)))
        plan = made.space.uniform(16, RANK)
        assert plan is not None
        weights = sum(linears(made.quantized.loaded.model).values())
        saved = weights * (16 - bits - (16 + bits) / GROUP) / 8
        for seed in range(seeds):
            if any((d["bits"], d["seed"]) == (bits, seed) for d in read(path)):
                continue
            line = {"rounding": "autoround", "bits": bits, "seed": seed, **tuned(made, plan, seed)}
            line["memory_bytes"] = round(line["memory_bytes"] - saved)
            with path.open("a") as file:
                file.write(json.dumps(line) + "\n")
            print(
                f"seed {seed}  {bits} bits: {line['memory_bytes'] / MIB:.1f} MiB, {line['test_loss']:.4f}", flush=True
            )


def print_table(lines: list[dict[str, Any]], pieces: list[dict[str, Any]]) -> None:
    """AutoRound's rounding, and the change from it to ours."""
    print("| bits | MiB | seeds | test loss | ours, MiB | its loss | change |\n|" + "---|" * 7)
    for bits in dict.fromkeys(d["bits"] for d in lines):
        theirs = {d["seed"]: d for d in lines if d["bits"] == bits}
        ours = {d["seed"]: d for d in pieces if (d["plan"], d["pieces"]) == (f"{bits}-bit r{RANK}", OURS)}
        both = [seed for seed in theirs if seed in ours]
        if not both:
            continue
        mine, others = ([side[seed] for seed in both] for side in (ours, theirs))
        (our_size, our_loss), (size, loss) = (
            (side[0]["memory_bytes"] / MIB, sum(d["test_loss"] for d in side) / len(side)) for side in (mine, others)
        )
        print(
            f"| {bits} | {size:.1f} | {len(both)} | {loss:.4f} | {our_size:.1f} | {our_loss:.4f} | "
            f"{change(mine, others)} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("make", "tune", "table"))
    parser.add_argument("--data", type=protocol.data_folder, help="folder with gsm8k_train.jsonl")
    parser.add_argument("--work", type=Path, help="folder of the rounded models")
    parser.add_argument("--bits", type=int, choices=WIDTHS, help="only these")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    path = options.out / "rounded.jsonl"
    if options.what == "table":
        print_table(read(path), read(options.out / "pieces.jsonl"))
        return
    if options.data is None or options.work is None:
        parser.error("--data and --work are needed")
    torch.set_num_threads(options.threads)
    widths = [options.bits] if options.bits else WIDTHS
    if options.what == "make":
        for bits in widths:
            make(options.data, options.work, bits)
    else:
        tune(options.data, options.work, widths, options.seeds, path)


if __name__ == "__main__":
    main()
