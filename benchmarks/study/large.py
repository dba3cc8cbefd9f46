"""The paper's setting on one GPU: instruction tuning of a 4 to 8 billion parameter model, then eight zero-shot tasks.

    python benchmarks/study/large.py qwen3-4b --out runs/qwen3-4b
    python benchmarks/study/large.py llama-3.1-8b --instructions alpaca.jsonl --out runs/llama

Searches at the bytes of uniform 3-bit and 4-bit, tunes the plan and the best uniform plan with three seeds, scores both
with lm-evaluation-harness, and tunes and scores GSM8K the same way. Every stage is a `qra` command that is printed
before it runs and goes on where it stopped. Needs the hub, a GPU and the extra `lm-eval`; it was not run on a large
model by us. `tiny` runs the same stages in a minute on a CPU, on made-up word problems and without the harness.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

ZERO_SHOT = "arc_challenge,arc_easy,boolq,hellaswag,openbookqa,piqa,winogrande,mmlu"
ALPACA = "yahma/alpaca-cleaned"


@dataclass(frozen=True)
class Setting:
    """A model with what its memory and time allow."""

    model: str
    fields: dict[str, str] = field(default_factory=dict)
    memory: tuple[str, ...] = ("uniform3r8", "uniform4r8")
    evaluations: int = 50
    seeds: int = 3


GPU = {
    "model.device": "cuda",
    "space.granularity": "fused",
    "training.steps": "24",
    "training.batch_size": "16",
    "training.learning_rate": "2e-4",
    "training.max_length": "512",
    "training.validation_rows": "128",
    "training.final_steps": "800",
    "training.test_rows": "512",
}
SETTINGS = {
    "qwen3-4b": Setting("Qwen/Qwen3-4B", GPU),
    "llama-3.1-8b": Setting("meta-llama/Llama-3.1-8B", {**GPU, "training.batch_size": "8"}),
    "tiny": Setting(
        "tiny",
        {"training.steps": "4", "training.batch_size": "4", "training.final_steps": "3", "training.test_rows": "4"},
        evaluations=14,
        seeds=2,
    ),
}


def run(*words: str) -> None:
    """Print a `qra` command and run it; ends this script where it fails."""
    print("$ qra " + " ".join(words), flush=True)
    status = subprocess.run([sys.executable, "-c", "from qra_search.cli import main; main()", *words]).returncode
    if status != 0:
        sys.exit(status)


def instructions(given: str | None, folder: Path) -> str:
    """A JSONL file of instruction data: the one given, or Alpaca (cleaned) from the hub."""
    if given is not None:
        return given
    path = folder / "alpaca.jsonl"
    if not path.exists():
        from datasets import load_dataset

        folder.mkdir(parents=True, exist_ok=True)
        rows = load_dataset(ALPACA, split="train")
        partial = path.with_suffix(".part")
        with partial.open("w") as file:
            for row in rows:
                file.write(json.dumps({name: row[name] for name in ("instruction", "input", "output")}) + "\n")
        partial.rename(path)
    return str(path)


def study(setting: Setting, task: list[str], out: Path, scored: str | None) -> None:
    """Search, tune against the best uniform plan at both budgets, and score; into `out`."""
    fields = [word for name, value in setting.fields.items() for word in ("--set", f"{name}={value}")]
    budgets = [word for size in setting.memory for word in ("--memory", size)]
    again = ["--resume"] if (out / "trials.jsonl").exists() else []
    run("search", "--model", setting.model, *task, *budgets, "--evaluations", str(setting.evaluations), *fields,
        "--out", str(out), *again)  # fmt: skip
    run("finetune", str(out), "--seeds", str(setting.seeds), "--against", "best")
    if scored is not None:
        run("evaluate", str(out), "--tasks", scored, "--against", "best")
    run("report", str(out))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("setting", choices=SETTINGS)
    parser.add_argument("--instructions", help="JSONL of instruction data (default: Alpaca from the hub)")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    setting = SETTINGS[options.setting]
    if options.setting == "tiny":
        study(setting, ["--task", "arithmetic"], options.out / "instructions", None)
        return
    data = instructions(options.instructions, options.out)
    study(setting, ["--task", data], options.out / "instructions", ZERO_SHOT)
    study(setting, ["--task", "gsm8k"], options.out / "gsm8k", "gsm8k")


if __name__ == "__main__":
    main()
