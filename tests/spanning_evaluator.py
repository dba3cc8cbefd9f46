"""An evaluator that spans two processes by torch.distributed (gloo), as one over several GPUs does."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
from pathlib import Path

from fakes import AdditiveEvaluator

from qra_search import Evaluation, Plan

END = -1.0


class Spanning(AdditiveEvaluator):
    """Each process sums the loss of every second group; the two shares meet in an all-reduce."""

    def __init__(self, notes: str):
        super().__init__(with_sensitivities=False)
        self.store = tempfile.mkdtemp() + "/store"
        context = multiprocessing.get_context("spawn")
        self.peer = context.Process(target=second, args=(self.store, notes))
        self.peer.start()
        join(self.store, rank=0)
        Path(notes, f"first-{os.getpid()}").touch()

    def evaluate(self, plan: Plan, *, fidelity: float = 1.0, seed: int = 0) -> Evaluation:
        loss = 1.0 + share(self, [*map(float, plan.bits), *map(float, plan.ranks)], rank=0)
        return Evaluation(loss, self.space.memory_bytes(plan), fidelity=fidelity, seed=seed)


def join(store: str, rank: int) -> None:
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)


def share(evaluator: AdditiveEvaluator, choices: list[float] | None, rank: int) -> float:
    """Rank 0 hands out the choices; both return the sum of both shares."""
    import torch
    import torch.distributed as dist

    groups = len(evaluator.space)
    message = torch.tensor(choices if choices is not None else [END] * 2 * groups, dtype=torch.float64)
    dist.broadcast(message, 0)
    bits, ranks = message[:groups].tolist(), message[groups:].tolist()
    own = sum(
        float(w) * 4.0 ** (2 - b) / (1 + r) ** 0.5
        for i, (w, b, r) in enumerate(zip(evaluator.weights, bits, ranks, strict=True))
        if i % 2 == rank
    )
    total = torch.tensor([own], dtype=torch.float64)
    dist.all_reduce(total)
    return float(total)


def second(store: str, notes: str) -> None:
    """The other process: serves until it is ended."""
    evaluator = AdditiveEvaluator(with_sensitivities=False)
    Path(notes, f"second-{os.getpid()}").touch()
    join(store, rank=1)
    while True:
        share(evaluator, None, rank=1)
