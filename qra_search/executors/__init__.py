"""Where evaluations run: in this process, in worker processes, or on Ray."""

from qra_search.executors.base import Executor, InProcessExecutor, WorkerDied, WorkerUnusable
from qra_search.executors.choose import KINDS, EvaluatorFactory, make_executor
from qra_search.executors.process import ProcessExecutor
from qra_search.executors.ray import RayExecutor
from qra_search.executors.remote import RemoteEvaluator

__all__ = [
    "KINDS",
    "EvaluatorFactory",
    "Executor",
    "InProcessExecutor",
    "ProcessExecutor",
    "RayExecutor",
    "RemoteEvaluator",
    "WorkerDied",
    "WorkerUnusable",
    "make_executor",
]
