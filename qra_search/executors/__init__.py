"""Where evaluations run: in this process, in worker processes, on Ray, or in any pool of `concurrent.futures`."""

from qra_search.executors.base import (
    DeadlineExceeded,
    Executor,
    InProcessExecutor,
    WorkerDied,
    WorkerUnusable,
    first_ended,
)
from qra_search.executors.choose import KINDS, EvaluatorFactory, make_executor
from qra_search.executors.futures import DaskExecutor, FuturesExecutor
from qra_search.executors.process import ProcessExecutor
from qra_search.executors.ray import RayExecutor
from qra_search.executors.work import RemoteEvaluator

__all__ = [
    "KINDS",
    "DaskExecutor",
    "DeadlineExceeded",
    "EvaluatorFactory",
    "Executor",
    "FuturesExecutor",
    "InProcessExecutor",
    "ProcessExecutor",
    "RayExecutor",
    "RemoteEvaluator",
    "WorkerDied",
    "WorkerUnusable",
    "first_ended",
    "make_executor",
]
