"""The executor on Ray, with Ray itself: started once for all tests, which takes seconds."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))  # workers import the module below by its bare name
import worker_evaluators as workers  # noqa: E402
from worker_evaluators import SLOW_START  # noqa: E402

from qra_search import BadInput, search  # noqa: E402
from qra_search.app.config import make_config  # noqa: E402
from qra_search.app.evaluator import Workers, make_executor  # noqa: E402
from qra_search.executors import RayExecutor  # noqa: E402
from qra_search.executors.base import identify_evaluator  # noqa: E402

ray = pytest.importorskip("ray", reason="Ray is not installed (the extra `ray`)")


@pytest.fixture(scope="module")
def cluster():
    """Ray on this machine, told of two GPUs that need not be there; its processes find the modules of the tests."""
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
        patch.setenv("RAY_raylet_start_wait_time_s", "120")  # a busy machine needs more than Ray's 60
        patch.setenv(
            "RAY_prestart_worker_first_driver", "0"
        )  # each that is made ahead takes a second, and waits
        head = {"num_cpus": 2, "num_gpus": 2, "include_dashboard": False}
        made = Cluster(initialize_head=True, head_node_args=head)
        yield made
        made.shutdown()


@pytest.fixture(scope="module")
def session(cluster):
    """What connects this process to it: a process that connects again loses actors in Ray 2.60."""
    with RayExecutor(workers.factory(), 1, address=cluster.address) as executor:
        yield executor


def seen(executor):
    """What two actors that are asked at the same time see of the GPUs."""
    futures = [executor.call(identify_evaluator) for _ in range(2)]
    return sorted((f.result(SLOW_START)[-1] for f in futures), key=lambda told: told["gpus"])


def test_each_actor_has_a_gpu_of_its_own_if_the_cluster_has_gpus(session):
    with RayExecutor(workers.describing_its_worker, 2, with_gpus=None) as executor:
        assert [(told["gpus"], told["device"]) for told in seen(executor)] == [("0", "cuda"), ("1", "cuda")]


def test_more_workers_than_the_cluster_has_gpus_are_refused(session):
    config = make_config({"evaluator": "landscape"})
    with pytest.raises(BadInput, match="each of 3 workers needs a GPU, and there are 2"):
        make_executor(config, Workers(3, "ray"))
    on_cpu = make_config({"evaluator": "landscape", "model": {"device": "cpu"}})
    with make_executor(on_cpu, Workers(3, "ray")) as executor:
        assert executor.slots == 3
    assert ray.is_initialized()  # it was there before


def test_actors_evaluate_and_are_replaced(notes, session):
    with RayExecutor(workers.factory("die", notes, victims=1), 2) as executor:
        result = search(workers.Misbehaving(), strategy="random", evaluations=8, batch=2, executor=executor)
        assert all(t.done for t in result.trials)
        assert workers.count_notes(notes, "deed") == 1 and workers.count_notes(notes, "built") == 3


def test_a_cluster_that_runs_already_is_used_by_its_address_and_left_running(cluster, session):
    assert [node["NodeManagerPort"] for node in ray.nodes()] == [cluster.head_node.node_manager_port]
    session.shutdown()
    assert not ray.is_initialized()
    with pytest.raises(BadInput, match="each of 3 workers needs a GPU, and there are 2"):
        RayExecutor(workers.factory(), 3, with_gpus=True, address=cluster.address)
    assert not ray.is_initialized()
    assert cluster.head_node.all_processes["raylet"][0].process.poll() is None
