"""Bank and prior of SmolLM2 from an empty cache, by this checkout and by an older one, in turn on one machine.

python benchmarks/evaluator/setup_time.py --before OLDER_CHECKOUT --task gsm8k --data DIR

Each run is a process of its own. Compared are seconds, the codes of the reference backend, and the order in which the
priors put the groups; also by the figures before they are scaled, summed as the older one sums them. Labels are drawn
from the model: `redrawn` is the older checkout once more, on its own bank, with other draws, and says what two orders
have in common that differ by nothing else.
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
from pathlib import Path
from typing import Any

import numpy as np
import torch
from commit import commit
from safetensors import safe_open
from scipy.stats import spearmanr

ROOT = Path(__file__).parents[2]
BITS = (2, 3, 4, 8)
RESULTS = ROOT / "benchmarks" / "results" / "setup_time.jsonl"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, help="an older checkout, to be run from its folder")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--task", default="arithmetic")
    parser.add_argument("--data")
    parser.add_argument("--backend", default="mixed-calibrated")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--polish", type=int, help="sweeps of this checkout; 0 is what the older one does")
    parser.add_argument("--as-before", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--redrawn", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child is not None:
        child(options)
        return
    for _ in range(options.repeats):
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder)
            found = {name: run(options, place, name, root) for name, root in sides(options)}
            row: dict[str, Any] = {"model": options.model, "task": options.task, "backend": options.backend}
            row |= {"polish": options.polish, "threads": torch.get_num_threads()}
            row |= {name: {k: v for k, v in facts.items() if k.endswith("seconds")} for name, facts in found.items()}
            if "before" in found:
                row["ratio"] = total(found["now"]) / total(found["before"])
                for name in ("now", "as_before", "redrawn"):
                    row[f"{name}_to_before"] = {
                        "equal_codes": equal_codes(place / "before", place / name),
                        "spearman_of_figures": spearmans(found["before"]["figures"], found[name]["figures"]),
                        "spearman_of_priors": spearmans(found["before"]["damage"], found[name]["damage"]),
                    }
            print(json.dumps(row), flush=True)
            with RESULTS.open("a") as file:
                file.write(json.dumps({**row, "commit": commit()}) + "\n")


def sides(options: argparse.Namespace) -> list[tuple[str, Path]]:
    """This checkout twice: as it is, and with rows that are not padded and labels drawn as the older one draws them."""
    if options.before is None:
        return [("now", ROOT)]
    older = options.before.resolve()
    return [("before", older), ("now", ROOT), ("as_before", ROOT), ("redrawn", older)]


def run(options: argparse.Namespace, place: Path, name: str, root: Path) -> dict[str, Any]:
    """One side, in a process of its own on that side's packages."""
    folder = place / name
    folder.mkdir()
    if name == "redrawn":
        shutil.copytree(place / "before" / "bank", folder / "bank", ignore=shutil.ignore_patterns("prior-*"))
    command = [sys.executable, __file__, "--child", str(folder), "--model", options.model, "--task", options.task]
    command += ["--backend", options.backend]
    command += ["--data", str(Path(options.data).resolve())] if options.data else []
    if options.polish is not None and root == ROOT:
        command += ["--polish", str(options.polish)]
    command += {"as_before": ["--as-before"], "redrawn": ["--redrawn"]}.get(name, [])
    environment = {**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{root / 'backends'}"}
    subprocess.run(command, check=True, env=environment, cwd=folder)
    return json.loads((folder / "facts.json").read_text())


def child(options: argparse.Namespace) -> None:
    """Quantize and measure from an empty cache, and write down what came of it."""
    from qra_eval.evaluators.quantized_lora import QuantizedLoRAEvaluator
    from qra_eval.sensitivities import cache as kept
    from qra_eval.sensitivities import measure
    from qra_eval.tasks import batches as batching
    from qra_eval.tasks.batches import bucketed

    if options.as_before and hasattr(batching, "PASS_MULTIPLE"):
        batching.PASS_MULTIPLE, sys.modules[measure.measure_fisher.__module__].LABELS = 1, 1 << 30

    if options.redrawn:
        drawn, own = torch.multinomial, torch.Generator().manual_seed(1)
        torch.multinomial = lambda chances, count, **_: drawn(chances, count, generator=own)
    backend: Any = options.backend
    if options.polish is not None:
        choice = {bits: {"name": "reference-gptq", "polish": options.polish} for bits in (2, 3, 4)}
        backend = {"name": "mixed", "choice": {**choice, 8: "reference"}}

    evaluator = QuantizedLoRAEvaluator(
        options.model,
        {"name": options.task, "data": options.data},
        quantization={"backend": backend, "embeddings": 16, "cache": str(options.child / "bank")},
    )
    start = time.perf_counter()
    evaluator.quantized.prepare()
    quantized = time.perf_counter()
    sensitivities = evaluator.sensitivities()
    done = time.perf_counter()
    facts = {"quantize_seconds": quantized - start, "prior_seconds": done - quantized}
    facts["damage"] = sensitivities.bits_damage.tolist()
    bench, model = evaluator.workbench, evaluator.quantized
    model.unquantize()
    rows = bench.rows("calibration", kept.PRIOR_ROWS)
    by_token = {"by_row": False} if "by_row" in measure.measure_fisher.__code__.co_varnames else {}
    batches = bucketed(rows, bench.settings.batch_size)
    # One batch: the older one draws other labels for the second.
    found = measure.measure_fisher(bench, BITS, batches[:1], **by_token).damage
    facts["figures"] = [sum(found[m.name] for m in group.linears).tolist() for group in bench.space.groups]
    (options.child / "facts.json").write_text(json.dumps(facts))


def total(facts: dict[str, Any]) -> float:
    return facts["quantize_seconds"] + facts["prior_seconds"]


def equal_codes(before: Path, now: Path) -> float:
    """Share of bytes of codes that are equal, over the levels of the reference backend."""
    old, new = tensors(before), tensors(now)
    assert set(old) == set(new) and old, "the two banks hold other tensors"
    same = sum(int((old[key] == new[key]).sum()) for key in old)
    return same / sum(array.size for array in old.values())


def tensors(folder: Path) -> dict[tuple[str, str], np.ndarray]:
    """Codes by level and linear."""
    from qra_backends.reference.bitpack import unpack

    found = {}
    for path in (folder / "bank").glob("*bit*.safetensors"):
        level = path.stem.split("-")[1]
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118 - safe_open is no mapping
                if key.endswith("::codes") and level != "8bit":
                    packed = file.get_tensor(key)
                    bits = int(level.removesuffix("bit"))
                    found[level, key] = unpack(packed, bits, len(packed) * 8 // bits).numpy()
    return found


def spearmans(old: list[list[float]], new: list[list[float]]) -> list[float]:
    """Rank correlation over the groups, at each width."""
    return [float(spearmanr(a, b).statistic) for a, b in zip(np.array(old).T, np.array(new).T, strict=True)]


if __name__ == "__main__":
    main()
