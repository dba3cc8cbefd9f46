"""The evaluator of a run: built in this process, or in worker processes and on Ray."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from qra_search import plugins
from qra_search.app.config import RunConfig
from qra_search.app.tunable import TunableEvaluator
from qra_search.errors import BadInput, convert_to_bad_input
from qra_search.evaluator import Evaluator, Progress
from qra_search.executors import (
    Executor,
    ProcessExecutor,
    RayExecutor,
    RemoteEvaluator,
    WorkerExecutor,
    WorkerUnusable,
)
from qra_search.executors.workers import DEVICE, assign_devices
from qra_search.sections import DEFAULT_STRATEGY
from qra_search.strategies import make_strategy
from qra_search.study.study import Listener

KINDS = ("process", "ray")
"""Kinds of workers."""


def build_evaluator(
    config: RunConfig, progress: Progress, *, weights: bool = True, objects: Mapping[str, Any] | None = None
) -> Evaluator:
    """The evaluator that a config names; raises BadInput for settings or objects that it refuses.

    Args:
        weights: False: it will only be asked for its space and estimates; one that can then does without weights.
        objects: task and metrics in memory, by these names.
    """
    with convert_to_bad_input():
        search, objects = config.search, objects or {}
        if search.options or search.strategy != DEFAULT_STRATEGY:  # scipy is for no refusal
            make_strategy(search.strategy, **search.options)  # before the model is loaded for nothing
        given = {"model": config.model.name, "task": config.task.name}
        named = {name: value for name, value in given.items() if name not in objects}
        plugins.check_names(config.evaluator, **named)
        factory = plugins.load("evaluators", config.evaluator)
        parameters = inspect.signature(factory).parameters
        takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        if refused := [name for name in objects if not takes_all and name not in parameters]:
            what = f"evaluator {config.evaluator!r} takes no {refused[0]} in memory"
            raise BadInput(f"{what}: give its name or folder")
        options = {"progress": progress, **({} if weights else {"weights": False})}
        taken = {name: value for name, value in options.items() if takes_all or name in parameters}
        evaluator: Evaluator = factory(config, **taken, **objects)
        return evaluator


def check_can_tune(evaluator: Evaluator, config: RunConfig) -> TunableEvaluator:
    """The evaluator itself; raises BadInput if it cannot tune a plan in full."""
    if not isinstance(evaluator, TunableEvaluator):
        problem = (
            "cannot fine-tune a plan, it only estimates the loss: use a run of the evaluator quantized-lora"
        )
        raise BadInput(f"evaluator {config.evaluator!r} {problem}")
    return evaluator


@dataclass(frozen=True)
class Workers:
    """Where evaluations run, if not in this process; the kind is `process` or `ray`, which may have an address."""

    count: int
    kind: str = "process"
    address: str | None = None


@dataclass(frozen=True)
class EvaluatorFactory:
    """Builds a run's evaluator in a worker.

    In a worker with a device of its own (`QRA_DEVICE`), a config that asks for GPUs or leaves the device open gets that
    one: of the machine's GPUs a worker sees its own only, whatever their numbers are outside.
    """

    config: RunConfig

    def __call__(self) -> Evaluator:
        config, device = self.config, os.environ.get(DEVICE)
        if device and config.model.device != "cpu":
            config = config.model_copy(update={"model": config.model.model_copy(update={"device": device})})
        evaluator: Evaluator = plugins.load("evaluators", config.evaluator)(config)
        return evaluator


def make_executor(config: RunConfig, workers: Workers) -> WorkerExecutor:
    """The executor of a run's workers, for a `with` block; raises BadInput if there are too few GPUs, or no cluster."""
    if workers.kind not in KINDS:
        raise ValueError(plugins.describe_unknown("executor", workers.kind, KINDS))
    device, factory = config.model.device, EvaluatorFactory(config)
    if device.startswith("cuda:"):
        raise BadInput(
            f"--device {device} names one GPU, and each worker gets its own: use --device cuda, and "
            "CUDA_VISIBLE_DEVICES to say which"
        )
    if workers.kind == "ray":
        with_gpus = None if device == "auto" else device == "cuda"
        return RayExecutor(factory, workers.count, address=workers.address, with_gpus=with_gpus)
    if workers.address is not None:
        raise BadInput("--address is that of a Ray cluster: give --executor ray")
    return ProcessExecutor(factory, devices=assign_devices(device, workers.count))


@contextmanager
def start_workers(
    config: RunConfig, workers: Workers, listener: Listener
) -> Iterator[tuple[Evaluator, Executor]]:
    """An evaluator whose work is done by workers, and their executor; raises BadInput if there cannot be such."""
    stage = f"start {workers.count} workers"
    with convert_to_bad_input():
        executor = make_executor(config, workers)
    with executor:
        listener.progress(stage, 0, 1)
        try:
            evaluator = RemoteEvaluator(executor)
        except WorkerUnusable as error:
            raise BadInput(str(error)) from None
        listener.progress(stage, 1, 1)
        yield evaluator, executor
