"""A run for llama.cpp from end to end: searched, killed, resumed, tuned and exported, on a mixture of experts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cli_runner import Qra
from qra_backends.ggml import library
from tiny_families import tiny_config_model

from qra_eval.models.tiny import byte_tokenizer
from qra_search.log.trial_log import TrialLog
from qra_search.runs.folder import RunFolder

pytestmark = pytest.mark.skipif(library.missing() is not None, reason=str(library.missing()))

SEARCH = (
    "--engine", "llama.cpp", "--task", "arithmetic", "--strategy", "random", "-n", "30", "--memory", "75%",
    "--set", "evaluation.steps=2", "--set", "evaluation.validation_rows=2", "--set", "training.batch_size=2",
    "--set", "finetune.test_rows=2", "--set", "finetune.steps=2", "--set", "model.dtype=float32",
    "--set", "space.bits=[4, 8]", "--set", "quantization.embeddings=8",
)  # fmt: skip


@pytest.fixture
def qra(capsys: pytest.CaptureFixture[str]) -> Qra:
    return Qra(capsys)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mixture") / "model"
    tiny_config_model("qwen3_moe", normalised=False, layers=1, norm_topk_prob=True).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def trials(folder: Path) -> list[tuple[object, ...]]:
    with TrialLog(RunFolder(folder).log_file) as log:
        return [(t.proposal, t.status, t.evaluation and t.evaluation.loss) for t in log]


def test_a_killed_search_resumes_to_the_same_trials_and_its_result_is_served(
    qra: Qra, model: Path, tmp_path: Path
) -> None:
    chosen = ("search", "--model", str(model), "--granularity", "fused", *SEARCH)
    chosen += ("--set", f"quantization.cache={tmp_path / 'bank'}")
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    process = subprocess.Popen(
        [sys.executable, "-c", "from qra_search.cli import main; main()", *chosen, "--out", str(killed)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    while not (RunFolder(killed).exists and sum(status == "done" for _, status, _ in trials(killed)) >= 2):
        assert process.poll() is None, "the search ended before it could be killed"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert qra("search", killed).status == 0
    assert qra(*chosen, "--out", whole).status == 0
    assert trials(killed) == trials(whole)
    assert {str(bits) for proposal, *_ in trials(whole) for bits in proposal.plan.bits} > {"Q8_0"}
    assert qra("finetune", killed).status == 0
    exported = qra("export", killed)
    assert exported.status == 0, exported.err
    assert f"llama-server -m {killed / 'exports' / 'gguf' / 'model.gguf'}" in exported.out
    assert "copies of the plan's own blocks" in exported.out and "loaded in llama.cpp" in exported.out


def test_experts_that_choose_for_themselves_are_refused_before_the_search(
    qra: Qra, model: Path, tmp_path: Path
) -> None:
    refused = qra("search", "--model", str(model), *SEARCH, "--out", tmp_path / "out")
    assert refused.status == 2 and not (tmp_path / "out").exists()
    assert "take --granularity fused, or layer" in refused.err.splitlines()[-1]
