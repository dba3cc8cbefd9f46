"""Makes the executor that a command line or a config asks for."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass

from qra_search import plugins
from qra_search.config import RunConfig, make_config
from qra_search.evaluation.evaluator import Evaluator
from qra_search.executors.devices import DEVICE
from qra_search.executors.futures import DaskExecutor
from qra_search.executors.process import ProcessExecutor
from qra_search.executors.ray import RayExecutor
from qra_search.executors.slots import WorkerExecutor

KINDS = ("process", "ray", "dask")


@dataclass(frozen=True)
class EvaluatorFactory:
    """Builds a run's evaluator in a worker, from the run's config as JSON.

    In a worker with a leased device (`QRA_DEVICE`), a config that leaves the device open gets that one.
    """

    config: str

    @classmethod
    def of(cls, config: RunConfig) -> EvaluatorFactory:
        """The factory of a run."""
        return cls(config.model_dump_json())

    def __call__(self) -> Evaluator:
        config = make_config(json.loads(self.config), source="the run's config")
        device = os.environ.get(DEVICE)
        if device and config.model.device == "auto":
            config = config.model_copy(update={"model": config.model.model_copy(update={"device": device})})
        return plugins.load("evaluators", config.evaluator)(config)


def make_executor(
    config: RunConfig,
    workers: int,
    *,
    kind: str = "process",
    devices: Sequence[str] | None = None,
    deadline: float | None = None,
    address: str | None = None,
    gpus: float = 0,
) -> WorkerExecutor | DaskExecutor:
    """An executor of `workers` workers for a run; use it in a `with` block.

    Args:
        kind: `process`, `ray` or `dask`.
        devices: of worker processes; default: one GPU each if there are GPUs and the run's device allows it,
            else the cores, dealt out.
        deadline: seconds that one evaluation may take; of `process` and `ray` workers.
        address: of a Ray or Dask cluster.
        gpus: of each Ray actor.

    Raises:
        ValueError: an unknown kind, or a setting that it needs or does not have.
        ImportError: the package of the kind is not installed.
    """
    factory = EvaluatorFactory.of(config)
    if kind == "process":
        if devices is None and config.model.device in ("auto", "cuda"):
            devices = visible_gpus() or None
        return ProcessExecutor(factory, workers, devices=devices, deadline=deadline)
    if kind == "ray":
        return RayExecutor(factory, workers, address=address, gpus=gpus, deadline=deadline)
    if kind == "dask":
        if address is None:
            raise ValueError("a Dask executor needs the address of a scheduler, such as tcp://host:8786")
        if deadline is not None:
            raise ValueError(f"Dask cannot stop an evaluation after {deadline:g} seconds: use process or ray workers")
        return DaskExecutor(address, factory, workers)
    raise ValueError(plugins.unknown_message("executor", kind, KINDS))


def visible_gpus() -> list[str]:
    """The GPUs of this process as device names."""
    import torch

    return [f"cuda:{i}" for i in range(torch.cuda.device_count())]
