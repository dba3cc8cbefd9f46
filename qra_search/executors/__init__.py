"""Where evaluations run: in this process, in worker processes, or on Ray."""

from qra_search.executors.base import (
    Executor,
    InProcessExecutor,
    RemoteEvaluator,
    WorkerDied,
    WorkerExecutor,
    WorkerUnusable,
)
from qra_search.executors.workers import ProcessExecutor, RayExecutor

__all__ = [
    "Executor",
    "InProcessExecutor",
    "ProcessExecutor",
    "RayExecutor",
    "RemoteEvaluator",
    "WorkerDied",
    "WorkerExecutor",
    "WorkerUnusable",
]
