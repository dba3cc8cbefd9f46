"""Where evaluations run: in this process, in worker processes, or on Ray."""

from qra_search.executors.base import Executor, InProcessExecutor, WorkerDied, WorkerUnusable
from qra_search.executors.process import ProcessExecutor
from qra_search.executors.ray import RayExecutor
from qra_search.executors.workers import RemoteEvaluator

__all__ = [
    "Executor",
    "InProcessExecutor",
    "ProcessExecutor",
    "RayExecutor",
    "RemoteEvaluator",
    "WorkerDied",
    "WorkerUnusable",
]
