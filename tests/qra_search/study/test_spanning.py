"""An evaluation that itself spans processes runs in a worker, and all of them end with it."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import pytest
from fakes import AdditiveEvaluator

sys.path.insert(0, str(Path(__file__).parents[2]))  # workers import the module below by its bare name
from spanning_evaluator import Spanning  # noqa: E402
from worker_evaluators import has_ended  # noqa: E402

from qra_search import search  # noqa: E402
from qra_search.executors import ProcessExecutor  # noqa: E402


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs Linux to see which processes are left")
def test_an_evaluation_over_two_gloo_processes_gives_the_loss_of_one_and_both_end_with_their_worker(tmp_path):
    pytest.importorskip("torch.distributed", reason="torch has no distributed package here")
    options = {"strategy": "random", "evaluations": 6, "batch": 1}
    with ProcessExecutor(partial(Spanning, str(tmp_path)), 1) as executor:
        result = search(AdditiveEvaluator(with_sensitivities=False), **options, executor=executor)
    alone = search(AdditiveEvaluator(with_sensitivities=False), **options)
    assert [t.reason for t in result.failures()] == []
    assert [t.loss for t in result.trials] == pytest.approx([t.loss for t in alone.trials], rel=1e-12)
    pids = [int(file.name.split("-")[1]) for file in tmp_path.iterdir()]
    assert len(pids) == 2
    assert all(map(has_ended, pids))
