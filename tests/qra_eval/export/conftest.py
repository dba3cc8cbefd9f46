"""Tuned runs of tiny models, their exports, and the logits that the other tools compute from these."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from evaluators import make_evaluator
from safetensors.torch import load_file, save_file
from tiny_families import tiny_config_model

from qra_eval.export import export
from qra_eval.export.tuned import TunedRun
from qra_eval.models.tiny import byte_tokenizer
from qra_search.config import QuantizationConfig, SpaceConfig
from qra_search.space.space import Plan

PYTHON = os.environ.get("QRA_TEST_PYTHON", sys.executable)
"""Interpreter that loads the exports; another environment may have compressed-tensors."""

ROUND_TRIPS = {
    "llama": ("merged", "gguf"),
    "qwen2": ("merged", "gguf"),
    "gpt2": ("merged",),
    "mixtral": ("merged",),
    "llama-compressed-tensors": ("compressed-tensors",),
    "qwen2-compressed-tensors": ("compressed-tensors",),
}
"""Formats of each run, which is named by its family, and its backend where that is not `DEFAULT`'s."""
DEFAULT = {"gpt2": "reference", "mixtral": "reference", "uneven": "compressed-tensors"}
BACKENDS: dict[str, tuple[Any, tuple[Any, ...], tuple[int, ...]]] = {
    "gguf": ({"name": "gguf", "types": ["Q4_0", "Q8_0"]}, ("Q4_0", "Q8_0", 16), (4, 8, 16)),
    "compressed-tensors": ("compressed-tensors", (4, 8, 16), (4, 8, 16)),
    "reference": ("reference", (3, 2, 4, 16), (2, 3, 4, 16)),
}
"""What each is, the levels of its plans in turn, and their bits."""


class Runs:
    """Makes each run once; `uneven` is a llama whose linears choose each for themselves."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._made: dict[str, TunedRun] = {}

    def __getitem__(self, name: str) -> TunedRun:
        if name not in self._made:
            self._made[name] = TunedRun(self._tune(name))
        return self._made[name]

    def _tune(self, name: str) -> Path:
        model = self.folder / "models" / name
        family, _, backend = name.partition("-")
        spec, levels, bits = BACKENDS[backend or DEFAULT.get(family, "gguf")]
        tiny = "llama" if family == "uneven" else family
        tiny_config_model(tiny, normalised=False).save_pretrained(model)
        byte_tokenizer().save_pretrained(model)
        evaluator = make_evaluator(
            str(model),
            "arithmetic",
            quantization=QuantizationConfig(backend=spec, embeddings=16, cache=str(self.folder / "bank" / name)),
            space=SpaceConfig(bits=bits, ranks=(0, 4, 8), granularity="module" if name == "uneven" else "fused"),
            training={"learning_rate": 2e-2, "batch_size": 2},
            evaluation={"validation_rows": 2},
            finetune={"test_rows": 2, "sample_answers": 0},
            dtype="float32",
        )
        groups = len(evaluator.space)
        plan = Plan(
            tuple(levels[i % len(levels)] for i in range(groups)), tuple((8, 4, 8, 0)[i % 4] for i in range(groups))
        )
        evaluator.tune(plan, steps=3, folder=self.folder / "runs" / name)
        return self.folder / "runs" / name


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    torch.set_num_threads(1)
    return Runs(tmp_path_factory.mktemp("export"))


@pytest.fixture(scope="session")
def exported(runs: Runs) -> dict[tuple[str, str], Any]:
    """Every round trip's export."""
    out = runs.folder / "exports"
    done = {}
    for name, formats in ROUND_TRIPS.items():
        for format in formats:
            options = {"dtype": "float32"} if format == "merged" else {}
            done[name, format] = export(runs[name], format, out / name / format, **options)
    return done


@pytest.fixture(scope="session")
def loaded(runs: Runs, exported: dict[tuple[str, str], Any]) -> Any:
    """Logits that the other tool computes from an export; skips where the tool is missing."""
    jobs = []
    for (name, format), done in exported.items():
        ids = runs.folder / f"ids-{name}.safetensors"
        save_file({str(i): value for i, value in enumerate(runs[name].input_ids)}, ids)
        jobs.append(
            {
                "kind": format,
                "path": str(done.path),
                "dtype": "float32",
                "ids": str(ids),
                "out": str(runs.folder / f"{name}-{format}.safetensors"),
            }
        )
    twice = next(job for job in jobs if job["kind"] == "compressed-tensors")
    other = {
        "kind": "compressed-dequantize",
        "out": str(runs.folder / "llama-compressed-tensors-compressed-dequantize.safetensors"),
    }
    jobs.append({**twice, **other})
    (runs.folder / "jobs.json").write_text(json.dumps(jobs))
    script = Path(__file__).with_name("loader.py")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    result = subprocess.run(
        [PYTHON, str(script), str(runs.folder / "jobs.json")], capture_output=True, text=True, env=environment
    )
    assert result.returncode == 0, result.stderr[-4000:]

    def logits(name: str, format: str) -> list[torch.Tensor]:
        file = runs.folder / f"{name}-{format}.safetensors"
        if file.with_suffix(".skipped").is_file():
            pytest.skip(f"{file.with_suffix('.skipped').read_text()} (in {Path(PYTHON).name})")
        found = load_file(file)
        return [found[str(i)] for i in range(len(found))]

    return logits
