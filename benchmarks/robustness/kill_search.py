"""Kills a real search with SIGKILL midway, resumes it, and compares it with a search that nobody disturbed.

python -m benchmarks.robustness.kill_search --data DIR --evaluations 24
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.common import RESULTS
from qra_eval.models.load import load_model
from qra_search import TrialLog
from qra_search.app.folder import RunFolder

QRA = [sys.executable, "-m", "qra_search"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2", help="saved as a folder first, and searched from there")
    parser.add_argument("--data", required=True)
    parser.add_argument("--memory", default="108MiB")
    parser.add_argument("--evaluations", type=int, default=24)
    parser.add_argument("--set", action="append", default=[], dest="sets")
    parser.add_argument("--kill-after", type=int, default=9, help="trials after which the search is killed")
    parser.add_argument("--out", type=Path, default=RESULTS / "kill_resume.json")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        folder = save_model(options.model, work / "model")
        broken, unbroken = work / "broken", work / "unbroken"
        kill_after(command(options, folder, broken), broken / "trials.jsonl", options.kill_after)
        known = len(TrialLog(broken / "trials.jsonl"))
        for words in ([*QRA, "search", str(broken)], command(options, folder, unbroken)):
            subprocess.run(words, check=True)
        first, second = (TrialLog(path / "trials.jsonl").trials for path in (broken, unbroken))
        best = RunFolder(broken).read().result.to_dict()["budgets"][0]
    pairs = zip(first, second, strict=False)
    same = [a.proposal == b.proposal and a.done and b.done and a.loss == b.loss for a, b in pairs]
    report = {
        "memory": options.memory,
        "sets": options.sets,
        "trials": len(second),
        "killed_after": known,
        "same_trials_and_losses": sum(same),
        "best_loss": best["best"]["loss"],
        "best_uniform_loss": best["best_uniform"]["loss"],
        "loss_change": best["loss_change"],
        "seconds_an_evaluation": sorted(t.evaluation.seconds for t in second if t.evaluation)[
            len(second) // 2
        ],
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report))
    sys.exit(0 if all(same) and len(first) == len(second) else 1)


def save_model(name: str, folder: Path) -> Path:
    """The model as an ordinary folder of safetensors and tokenizer files."""
    if not (folder / "config.json").is_file():
        loaded = load_model(name)
        loaded.model.save_pretrained(folder)  # type: ignore[operator]
        loaded.tokenizer.save_pretrained(folder)
    return folder


def command(options: argparse.Namespace, model: Path, out: Path) -> list[str]:
    some = ["search", "--model", str(model), "--task", "gsm8k", "--memory", options.memory]
    some += ["--evaluations", str(options.evaluations), "--data", options.data, "--out", str(out)]
    return [*QRA, *some, *(f"--set={s}" for s in options.sets)]


def kill_after(words: list[str], log: Path, trials: int) -> None:
    process = subprocess.Popen(words)
    while process.poll() is None:
        time.sleep(0.5)
        if log.exists() and sum(trial.done for trial in TrialLog(log)) >= trials:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            return
    raise SystemExit(f"the search ended by itself with status {process.returncode} before {trials} trials")


if __name__ == "__main__":
    main()
