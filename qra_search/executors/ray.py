"""Workers on a Ray cluster: actors that hold the evaluator, placed on GPUs and nodes by Ray's own scheduler."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from qra_search.errors import DISTRIBUTION
from qra_search.executors.base import WorkerDied, WorkerUnusable
from qra_search.executors.devices import DEVICE, SHARING, check_enough_gpus, name_device
from qra_search.executors.workers import Factory, WorkerExecutor, build_evaluator

START_SECONDS = 600.0


class RayExecutor(WorkerExecutor):
    """Evaluates in `workers` Ray actors, each of which builds its evaluator once and keeps it.

    Args:
        factory: builds the evaluator in the actor.
        workers: actors.
        address: of an existing cluster (`auto`, `ray://host:10001`); None: Ray is started on this machine, unless it
            runs already, and ended at shutdown.
        cpus, gpus: what Ray reserves for each actor; an evaluation that spans two GPUs has `gpus=2`, two that share
            one have `gpus=0.5`. An actor of none sees none. None: one, if the cluster has any. `QRA_DEVICE` tells an
            actor whether it has GPUs (`cuda`) or not (`cpu`).

    Raises:
        ImportError: Ray is not installed; the extra `ray` brings it.
        BadInput: the cluster, as it is now, has too few GPUs for so many workers.
    """

    def __init__(
        self,
        factory: Factory,
        workers: int,
        *,
        address: str | None = None,
        cpus: float = 1,
        gpus: float | None = 0,
    ):
        super().__init__(factory, workers)
        try:
            import ray
        except ImportError as error:
            raise ImportError(
                f"Ray is not installed: `pip install '{DISTRIBUTION}[ray]'`", name="ray"
            ) from error
        self._ray = ray
        self._started_ray = not ray.is_initialized()
        if self._started_ray:
            ray.init(
                address=address, log_to_driver=False, include_dashboard=False if address is None else None
            )
        if gpus is None:
            gpus = 1 if ray.cluster_resources().get("GPU") else 0
        if gpus:  # an actor that fits nowhere would wait until `START_SECONDS`
            try:
                nodes = [int(node["Resources"].get("GPU", 0)) for node in ray.nodes() if node["Alive"]]
                check_enough_gpus(nodes, workers, gpus, "the Ray cluster")
            except BaseException:
                self.shutdown()
                raise
        self._device = name_device(gpus) if gpus else "cpu"
        self._sharing = max(1, int(1 / gpus + 1e-9)) if gpus else 1
        # Ray's own restarts are off: a fresh actor is made here, and the evaluation is counted as run twice.
        self._actor_class = ray.remote(num_cpus=cpus, num_gpus=gpus, max_restarts=0, max_task_retries=0)(
            _Actor
        )

    def start_worker(self, slot: int) -> RayWorker:
        return RayWorker(self._ray, self._actor_class.remote(self._device, self._sharing))

    def shutdown(self) -> None:
        super().shutdown()
        if self._started_ray:
            self._started_ray = False
            self._ray.shutdown()


class RayWorker:
    """An actor."""

    def __init__(self, ray: Any, actor: Any):
        self._ray = ray
        self._actor = actor

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        errors = self._ray.exceptions
        reply = self._actor.call.remote(function, *args)
        try:
            return self._ray.get(reply, timeout=START_SECONDS if function is build_evaluator else None)
        except errors.GetTimeoutError:
            raise WorkerUnusable(
                f"Ray had no worker ready within {START_SECONDS:g} seconds: are there as many CPUs and GPUs "
                f"free as were asked for?"
            ) from None
        except (errors.RayActorError, errors.WorkerCrashedError, errors.NodeDiedError) as error:
            raise WorkerDied(f"the Ray actor died ({' '.join(str(error).split())[:200]})") from None

    def kill(self) -> None:
        self._ray.kill(self._actor, no_restart=True)


class _Actor:
    """Runs in Ray's worker."""

    def __init__(self, device: str, sharing: int):
        os.environ[DEVICE], os.environ[SHARING] = device, str(sharing)
        if (
            device == "cpu"
        ):  # newer Rays leave the GPUs in sight of actors that asked for none, older ones hide them
            os.environ["CUDA_VISIBLE_DEVICES"] = ""

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        return function(*args)
