"""The executor on Ray, with Ray itself."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))  # workers import the module below by its bare name
import worker_evaluators as workers  # noqa: E402
from worker_evaluators import BAD, GOOD, SLOW_START  # noqa: E402

from qra_search import Proposal, search  # noqa: E402
from qra_search.executors import DeadlineExceeded, RayExecutor, WorkerUnusable  # noqa: E402


@pytest.fixture
def importable(monkeypatch):
    """Ray's processes find the modules of the tests."""
    paths = [str(Path(__file__).parents[2])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    monkeypatch.setenv("RAY_raylet_start_wait_time_s", "120")  # a busy machine needs more than Ray's 60


def test_actors_of_ray_evaluate_are_replaced_and_keep_to_deadlines(notes, importable):
    pytest.importorskip("ray", reason="Ray is not installed (the extra `ray`)")
    with RayExecutor(workers.factory("die", notes, victims=1), 2, cpus=0.5, deadline=20) as executor:
        result = search(workers.Misbehaving(), strategy="random", evaluations=8, batch=2, executor=executor)
        assert all(t.done for t in result.trials)
        assert workers.noted(notes, "deed") == 1 and workers.noted(notes, "built") == 3
    with RayExecutor(workers.factory("hang", notes), 1, cpus=0.5, deadline=1.0) as executor:
        assert isinstance(executor.submit(Proposal(BAD)).exception(SLOW_START), DeadlineExceeded)
        assert executor.submit(Proposal(GOOD)).result(SLOW_START).loss > 0


def test_a_cluster_of_ray_that_runs_already_is_used_by_its_address_and_left_running(notes, importable):
    ray = pytest.importorskip("ray", reason="Ray is not installed (the extra `ray`)")
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    try:
        with RayExecutor(workers.factory(notes=notes), 2, cpus=0.5, address=cluster.address) as executor:
            assert len(ray.nodes()) == 1 and ray.nodes()[0]["NodeManagerPort"] == cluster.head_node.node_manager_port
            result = search(workers.Misbehaving(), strategy="random", evaluations=6, batch=2, executor=executor)
        assert all(t.done for t in result.trials) and workers.noted(notes, "built") == 2
        assert not ray.is_initialized()
        assert cluster.head_node.all_processes["raylet"][0].process.poll() is None
        with RayExecutor(workers.factory(), 1, gpus=1, address=cluster.address, start_seconds=2.0) as executor:
            error = executor.submit(Proposal(GOOD)).exception(SLOW_START)
        assert isinstance(error, WorkerUnusable) and "had no worker ready within 2 seconds" in str(error)
    finally:
        cluster.shutdown()
