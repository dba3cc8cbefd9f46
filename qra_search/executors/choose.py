"""Makes the executor that a command line or a config asks for."""

from __future__ import annotations

import os
from dataclasses import dataclass

from qra_search import plugins
from qra_search.config import RunConfig
from qra_search.errors import BadInput
from qra_search.evaluation.evaluator import Evaluator
from qra_search.executors import devices
from qra_search.executors.pool import WorkerExecutor
from qra_search.executors.process import ProcessExecutor
from qra_search.executors.ray import RayExecutor

KINDS = ("process", "ray")


@dataclass(frozen=True)
class EvaluatorFactory:
    """Builds a run's evaluator in a worker.

    In a worker with a device of its own (`QRA_DEVICE`), a config that asks for GPUs or leaves the device open gets that
    one: of the machine's GPUs a worker sees its own only, whatever their numbers are outside.
    """

    config: RunConfig

    def __call__(self) -> Evaluator:
        config, device = self.config, os.environ.get(devices.DEVICE)
        if device and (config.model.device == "auto" or devices.uses_gpus(config.model.device)):
            config = config.model_copy(update={"model": config.model.model_copy(update={"device": device})})
        return plugins.load("evaluators", config.evaluator)(config)


def make_executor(
    config: RunConfig,
    workers: int,
    *,
    kind: str = "process",
    address: str | None = None,
    gpus_per_worker: float | None = None,
) -> WorkerExecutor:
    """An executor of `workers` workers for a run; use it in a `with` block.

    Args:
        kind: `process` or `ray`.
        address: of a Ray cluster.
        gpus_per_worker: below 1 several workers share one; default: one each if there are GPUs and the run's device
            allows it (as many as the device names, if it names several), else none.

    Raises:
        BadInput: more GPUs than there are, or an address without a cluster.
        ValueError: an unknown kind.
        ImportError: the package of the kind is not installed.
    """
    if kind not in KINDS:
        raise ValueError(plugins.unknown_message("executor", kind, KINDS))
    device = config.model.device
    devices.check_share(gpus_per_worker, device)
    factory = EvaluatorFactory(config)
    if kind == "process":
        if address is not None:
            raise BadInput("--address is that of a Ray cluster: give --executor ray")
        return ProcessExecutor(factory, workers, devices=devices.devices_of_workers(device, workers, gpus_per_worker))
    if devices.named_gpus(device):
        raise BadInput(
            f"--device {device} cannot be used with --executor ray, which assigns GPUs itself: use --device cuda"
        )
    share = gpus_per_worker
    if share is None and device != "auto":
        share = 1 if devices.uses_gpus(device) else 0
    return RayExecutor(factory, workers, address=address, gpus=share)
