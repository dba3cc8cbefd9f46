"""The small world in which the commands and code of the documentation run: a tiny model, data, and two runs.

Pages speak of SmolLM2 and of minutes. `shrunk` makes the same command or code one of seconds, by a few replacements
that are the same for all pages.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from brief_steps import make_brief
from qra_backends.mixed import CALIBRATED_CHOICE

from qra_search.app import run as runs
from qra_search.app.config import RunConfig, make_config, make_settings

EVALUATION = {"steps": 2, "validation_rows": 8}
FINETUNE = {"steps": 2, "test_rows": 8, "sample_answers": 0}
SMALL = {"evaluation": EVALUATION, "finetune": FINETUNE, "training": {"max_length": 64}}
EVALUATIONS = 4
REPLACED: tuple[tuple[str, str], ...] = (
    (r"\bsmollm2\b(?!\.yaml)", "tiny"),
    (r"\b[\d.]+(MiB|GiB)\b", "165KiB"),  # between the smallest plan of the tiny model and uniform 4 bits
    (r"((?:--evaluations|-n) |\bevaluations=)\d+", rf"\g<1>{EVALUATIONS}"),
    (r"(--seeds )\d+", r"\g<1>1"),
    (r"(--epochs )[\d.]+", r"\g<1>0.04"),  # two steps of the world's rows
    (r"--against all", "--against best"),
)
TAKES_SETTINGS = ("plan", "search", "demo")


def shrunk(code: str) -> str:
    """Code or a command of the documentation, for the tiny model."""
    for pattern, replacement in REPLACED:
        code = re.sub(pattern, replacement, code)
    return code


def small_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """Evaluators and runs made in Python train and test as briefly as those of shrunk commands.

    The default backend is without trellis codes, which take three times as long to make and have tests of their own.
    """
    from qra_eval.evaluators import quantized_lora

    brief = {f"{name}.{field}": value for name, own in SMALL.items() for field, value in own.items()}

    def make_brief_settings(config: Any = None, overrides: Mapping[str, Any] | None = None) -> RunConfig:
        return make_settings(config, brief | dict(overrides or {}))

    monkeypatch.setattr(runs, "make_settings", make_brief_settings)
    monkeypatch.setattr(quantized_lora, "make_config", lambda fields: make_config(fields, brief))
    make_brief(monkeypatch)
    for width in (2, 3, 4, 5):
        monkeypatch.setitem(CALIBRATED_CHOICE, width, "reference-gptq")


def run_command(words: list[str]) -> None:
    """Run a shrunk `qra` command in this process.

    Raises:
        AssertionError: it did not end with status 0.
    """
    from qra_search.app.cli.app import run_safely

    if words[1] in TAKES_SETTINGS:
        for section, fields in SMALL.items():
            words = [
                *words,
                *(part for name, value in fields.items() for part in ("--set", f"{section}.{name}={value}")),
            ]
    assert words[0] == "qra", f"{words[0]!r} is no command of qra: such a block can only be parsed"
    status = run_safely(words[1:])
    assert status == 0, f"{' '.join(words)} ended with status {status}"


def build_world(folder: Path) -> None:
    """Data, a model folder, and the runs `runs/a` (tuned) and `runs/b`, below the working folder."""
    from qra_eval.models.load import load_model
    from qra_eval.tasks import make_task

    examples = make_task("arithmetic", seed=1).split("train")[:400]
    rows = "".join(json.dumps({"prompt": e.prompt, "answer": e.answer}) + "\n" for e in examples)
    (folder / "train.jsonl").write_text(rows)
    loaded = load_model("tiny")
    for saver in (loaded.model, loaded.tokenizer):
        saver.save_pretrained(folder / "path" / "to" / "model")
    search = f"qra search --model tiny --task arithmetic --memory uniform3r8 -n {EVALUATIONS} --out".split()
    run_command([*search, "runs/a"])
    run_command(["qra", "finetune", "runs/a"])
    run_command([*search, "runs/b", "--strategy", "random"])


def copy_world(world: Path, folder: Path, code: str) -> None:
    """A copy of the world without the runs that the code makes itself."""
    made = re.findall(r"--out (runs/\S+)|log=\"(runs/[^/\"]+)", code)
    shutil.copytree(world, folder, dirs_exist_ok=True)
    for run in {name for names in made for name in names if name}:
        shutil.rmtree(folder / run, ignore_errors=True)
