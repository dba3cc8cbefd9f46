"""Processes that share the steps of one tuning: each takes a part of the rows, the first alone decides and writes."""

from __future__ import annotations

import atexit
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from qra_eval.tasks.batches import Batch
from qra_search.errors import BadInput, EvaluationFailed
from qra_search.launched import get_rank_and_size

Result = TypeVar("Result")

PATIENCE = timedelta(days=30)
"""The others wait while the first scores and saves; of a process that dies the launcher ends the rest."""


class Processes:
    """This process and its peers, which hold the same model and the same adapters; alone by default.

    Every method but `select_own` is called by all of them, in the same order.
    """

    rank, size = 0, 1

    def select_own(self, batches: Sequence[Batch]) -> list[Batch]:
        """This process's part of the batches of a step: whole ones if they come out even, else rows of each."""
        if len(batches) % self.size == 0:
            return list(batches[self.rank :: self.size])
        parts = (batch.split_rows(-(-len(batch.input_ids) // self.size)) for batch in batches)
        return [own for some in parts for own in some[self.rank : self.rank + 1]]

    def sum_values(self, *own: float) -> list[float]:
        if self.size == 1:
            return list(own)
        sums = torch.tensor(own, dtype=torch.float64)
        dist.all_reduce(sums)
        return sums.tolist()

    def any_process(self, flag: bool) -> bool:
        return self.sum_values(flag)[0] > 0

    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Every gradient becomes its sum over the processes, in one message; None remains where none has one."""
        if self.size == 1:
            return
        there = torch.tensor(
            [p.grad is not None for p in parameters], dtype=torch.float32, device=parameters[0].device
        )
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        message = parameters_to_vector([*grads, there])
        dist.all_reduce(message)
        vector_to_parameters(message, [*grads, there])
        for parameter, grad, count in zip(parameters, grads, there.tolist(), strict=True):
            parameter.grad = grad if count else None

    def run_together(self, work: Callable[[], Result]) -> Result:
        """What `work` gives here; memory that runs out in one process runs out in all, so that none waits for it."""
        if self.size == 1:
            return work()
        result = None
        failure = None
        try:
            result = work()
        except RuntimeError as error:
            failure = error
        if self.any_process(failure is not None):
            raise failure or torch.OutOfMemoryError("another process of this tuning ran out of memory")
        return result  # type: ignore[return-value]


ALONE = Processes()


class LaunchedProcesses(Processes):
    """Processes that a launcher started, joined by `torch.distributed`."""

    def __init__(self, device: torch.device):
        self.rank, self.size = get_rank_and_size()
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" and dist.is_nccl_available() else "gloo"
        dist.init_process_group(backend, timeout=PATIENCE)
        self._broken = False
        if self.rank == 0:
            atexit.register(self._finish)

    @contextmanager
    def lead_request(self, request: dict[str, Any], rows: int) -> Iterator[None]:
        """In the first: the others work on a request as well, for as long as the context lasts.

        Raises BadInput if the rows of a step are fewer than the processes.
        """
        if rows < self.size:
            raise BadInput(
                f"a step has {rows} rows (batch_size times accumulation), fewer than the {self.size} processes. "
                f"Start at most {rows}, or raise training.batch_size"
            )
        self._broadcast(request)
        self._broken = True
        try:
            yield
        except EvaluationFailed:  # all came to the same end
            self._broken = False
            raise
        self._broken = False

    def receive_requests(self) -> Iterator[dict[str, Any]]:
        """In the others: what the first asks for, until it ends."""
        while (request := self._broadcast(None)) is not None:
            yield request

    def _broadcast(self, request: dict[str, Any] | None) -> dict[str, Any] | None:
        message = [request]
        dist.broadcast_object_list(message, device=torch.device("cpu"))
        return message[0]

    def _finish(self) -> None:
        if not self._broken:  # else the others are amid something: the launcher ends them
            self._broadcast(None)
        dist.destroy_process_group()
