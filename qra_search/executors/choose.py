"""Makes the executor that a command line or a config asks for."""

from __future__ import annotations

import os
from dataclasses import dataclass

from qra_search import plugins
from qra_search.config import RunConfig
from qra_search.evaluation.evaluator import Evaluator
from qra_search.executors.devices import DEVICE
from qra_search.executors.process import ProcessExecutor
from qra_search.executors.ray import RayExecutor
from qra_search.executors.slots import WorkerExecutor

KINDS = ("process", "ray")


@dataclass(frozen=True)
class EvaluatorFactory:
    """Builds a run's evaluator in a worker.

    In a worker with a leased device (`QRA_DEVICE`), a config that leaves the device open gets that one.
    """

    config: RunConfig

    def __call__(self) -> Evaluator:
        config, device = self.config, os.environ.get(DEVICE)
        if device and config.model.device == "auto":
            config = config.model_copy(update={"model": config.model.model_copy(update={"device": device})})
        return plugins.load("evaluators", config.evaluator)(config)


def make_executor(
    config: RunConfig, workers: int, *, kind: str = "process", address: str | None = None
) -> WorkerExecutor:
    """An executor of `workers` workers for a run; use it in a `with` block.

    Worker processes get one GPU each if there are GPUs and the run's device allows it, else the cores, dealt out.

    Args:
        kind: `process` or `ray`.
        address: of a Ray cluster.

    Raises:
        ValueError: an unknown kind.
        ImportError: the package of the kind is not installed.
    """
    factory = EvaluatorFactory(config)
    if kind == "process":
        return ProcessExecutor(
            factory, workers, devices=visible_gpus() if config.model.device in ("auto", "cuda") else None
        )
    if kind == "ray":
        return RayExecutor(factory, workers, address=address)
    raise ValueError(plugins.unknown_message("executor", kind, KINDS))


def visible_gpus() -> list[str]:
    """The GPUs of this process as device names."""
    import torch

    return [f"cuda:{i}" for i in range(torch.cuda.device_count())]
