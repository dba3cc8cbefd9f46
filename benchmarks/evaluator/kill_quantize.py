"""Quantizing killed with SIGKILL again and again, resumed, and compared with an undisturbed bank; then two at once.

python benchmarks/evaluator/kill_quantize.py --model smollm2 --kills 5
"""

from __future__ import annotations

import argparse
import hashlib
import json
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from commit import commit

RESULTS = Path(__file__).parents[1] / "results" / "kill_quantize.jsonl"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--backend", default="reference-gptq")
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child is not None:
        quantize(options)
        return
    with tempfile.TemporaryDirectory() as made:
        whole, killed, shared = (Path(made) / name for name in ("whole", "killed", "shared"))
        assert start(options, whole).wait() == 0
        files = digests(whole)
        rewritten = 0
        for number in range(options.kills):
            wanted = (number + 1) * len(files) // (options.kills + 1)
            before = times(killed)
            process = start(options, killed)
            while process.poll() is None and len(times(killed)) < wanted:
                time.sleep(0.01)
            process.send_signal(signal.SIGKILL)
            process.wait()
            rewritten += sum(times(killed)[name] != when for name, when in before.items())
        before = times(killed)
        assert start(options, killed).wait() == 0
        rewritten += sum(times(killed)[name] != when for name, when in before.items())
        both = [start(options, shared) for _ in range(2)]
        assert [process.wait() for process in both] == [0, 0]
        counts = [json.loads((shared / f"made-{process.pid}.json").read_text()) for process in both]
        row = {
            "model": options.model, "backend": options.backend, "files": len(files), "kills": options.kills,
            "kept": len(before), "rewritten": rewritten, "equal": digests(killed) == files == digests(shared),
            "linears_quantized_by_each_of_two": counts, "commit": commit(),
        }  # fmt: skip
    print(json.dumps(row, indent=1))
    with RESULTS.open("a") as file:
        file.write(json.dumps(row) + "\n")


def quantize(options: argparse.Namespace) -> None:
    """In a process of its own: make the bank, and write down how many linears this process quantized."""
    import os

    from qra_eval.evaluators.quantized_lora import QuantizedLoRAEvaluator

    evaluator = QuantizedLoRAEvaluator(
        options.model, "arithmetic", quantization={"backend": options.backend, "cache": str(options.child)},
        space={"bits": (2, 3, 4)},
    )  # fmt: skip
    backend, made = evaluator.quantized.backend, []
    once = backend.quantize_levels
    backend.quantize_levels = lambda *args, **kwargs: (made.append(1), once(*args, **kwargs))[1]  # type: ignore
    evaluator.quantized.prepare()
    (options.child / f"made-{os.getpid()}.json").write_text(json.dumps(len(made)))


def start(options: argparse.Namespace, folder: Path) -> subprocess.Popen[bytes]:
    folder.mkdir(exist_ok=True)
    command = [sys.executable, __file__, "--child", str(folder), "--model", options.model, "--backend", options.backend]
    return subprocess.Popen(command, stderr=subprocess.DEVNULL)


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("*.safetensors")}


def times(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("*.safetensors")}


if __name__ == "__main__":
    main()
