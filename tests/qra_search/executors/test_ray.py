"""The executor on Ray, with Ray itself."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))  # workers import the module below by its bare name
import worker_evaluators as workers  # noqa: E402
from worker_evaluators import BAD, GOOD, SLOW_START  # noqa: E402

from qra_search import BadInput, Proposal, search  # noqa: E402
from qra_search.config import make_config  # noqa: E402
from qra_search.executors import DeadlineExceeded, RayExecutor, WorkerUnusable, make_executor  # noqa: E402
from qra_search.executors.work import IDENTITY  # noqa: E402


@pytest.fixture
def importable(monkeypatch):
    """Ray's processes find the modules of the tests."""
    paths = [str(Path(__file__).parents[2])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    monkeypatch.setenv("RAY_raylet_start_wait_time_s", "120")  # a busy machine needs more than Ray's 60


@pytest.fixture
def two_gpus(importable):
    """Ray on this machine, told of two GPUs that need not be there."""
    ray = pytest.importorskip("ray", reason="Ray is not installed (the extra `ray`)")
    ray.init(num_cpus=2, num_gpus=2, include_dashboard=False, log_to_driver=False)
    yield ray
    ray.shutdown()


def seen(executor):
    """What two actors that are asked at the same time see of the GPUs."""
    futures = [executor.ask(IDENTITY) for _ in range(2)]
    return sorted((f.result(SLOW_START)["description"] for f in futures), key=lambda told: told["gpus"])


def test_each_actor_has_a_gpu_of_its_own_if_the_cluster_has_gpus(two_gpus):
    with RayExecutor(workers.describing_its_worker, 2, gpus=None) as executor:
        assert [(told["gpus"], told["device"]) for told in seen(executor)] == [("0", "cuda"), ("1", "cuda")]


def test_actors_that_ask_for_no_gpu_see_none_and_are_told_to_use_the_cpu(two_gpus):
    with RayExecutor(workers.describing_its_worker, 2, gpus=0) as executor:
        assert [(told["gpus"], told["device"]) for told in seen(executor)] == [("", "cpu")] * 2


def test_more_gpus_than_the_cluster_has_are_refused_with_how_many_workers_fit(two_gpus):
    config = make_config({"evaluator": "landscape"})
    with pytest.raises(BadInput, match="3 workers with a GPU each: the Ray cluster has 2 GPUs: use --workers 2"):
        make_executor(config, 3, kind="ray")
    with pytest.raises(BadInput, match="2 workers with 2 GPUs each: the Ray cluster has 2 GPUs: use --workers 1"):
        make_executor(config, 2, kind="ray", gpus_per_worker=2)
    on_cpu = make_config({"evaluator": "landscape", "model": {"device": "cpu"}})
    with make_executor(on_cpu, 3, kind="ray") as executor:
        assert executor.slots == 3
    assert two_gpus.is_initialized()  # it was there before


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
        with pytest.raises(BadInput, match="1 worker with a GPU each: the Ray cluster has no GPUs: use --device cpu"):
            RayExecutor(workers.factory(), 1, gpus=1, address=cluster.address)
        assert not ray.is_initialized()
        with RayExecutor(workers.factory(), 1, cpus=3, address=cluster.address, start_seconds=2.0) as executor:
            error = executor.submit(Proposal(GOOD)).exception(SLOW_START)
        assert isinstance(error, WorkerUnusable) and "had no worker ready within 2 seconds" in str(error)
    finally:
        cluster.shutdown()
