"""One elastic adapter for all plans: trained once over random plans, after which any plan is scored without training.

At every step the smallest plan, the largest one and a random one see the same batch (the sandwich rule of slimmable
networks, Yu and Huang 2019). A plan's adapters are cut from factors of the largest rank, so what is learnt for one
plan serves all. Scores are worth their order alone: no plan has an adapter that was made for its own weights.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from qra_eval.quantized.adapters import AdaptedLinear, first_factors, trainable
from qra_eval.quantized.tensorfile import DamagedFile, open_tensors, write_tensors
from qra_eval.quantized.weight_cache import bank_folder
from qra_eval.tasks.losses import batch_loss, labelled_head
from qra_eval.tuning import training
from qra_eval.tuning.fine_tuner import FineTuner
from qra_search.evaluation.evaluator import Evaluation
from qra_search.space.sampling import leaning_plan
from qra_search.space.space import Plan, SearchSpace

RANDOM_PLANS = 1
"""Random plans of a step, beside the smallest and the largest."""


@dataclass(frozen=True)
class SharedAdapter:
    """Factors A (R, in) and B (out, R) of every linear, R the largest rank; what training them took.

    Attributes:
        tokens: passed forward and backward while it was trained, a plan's pass counted once.
    """

    A: Mapping[str, Tensor]
    B: Mapping[str, Tensor]
    tokens: int


class SharedScores:
    """The lowest fidelity, if it is offered: scores of plans by the one adapter.

    It is trained at the first call, or read if an earlier run kept it.

    Args:
        workbench: with `training.shared_steps` above 0.
        below: all other fidelities are at least this.

    Attributes:
        fidelity: share of a full evaluation that forward passes over the held-out rows are; below all others.
    """

    def __init__(self, workbench: FineTuner, below: float):
        self.workbench = workbench
        held_out = sum(map(len, workbench.rows("validation", workbench.settings.validation_rows)))
        self.fidelity = min(round(held_out / workbench.evaluation_tokens(), 4), 0.99 * below)
        self._adapter: SharedAdapter | None = None
        self._due = 0.0

    def adapter(self) -> SharedAdapter:
        """The adapter for all plans: as an earlier run of the same content kept it, or trained and kept."""
        if self._adapter is None:
            workbench, steps = self.workbench, self.workbench.settings.shared_steps
            content = [workbench.describe(), workbench.space.signature, steps, RANDOM_PLANS]
            digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
            path = bank_folder(workbench.quantized.quantization.cache) / f"shared-{digest}.safetensors"
            try:
                self._adapter = _read(path, workbench)
            except (DamagedFile, OSError):
                self._adapter = made = train_shared(workbench, steps)
                tensors = {f"A::{name}": a for name, a in made.A.items()}
                tensors |= {f"B::{name}": b for name, b in made.B.items()}
                write_tensors({**tensors, "tokens": torch.tensor(made.tokens)}, path)
                self._due = (1 + training.BACKWARD) * made.tokens / workbench.evaluation_tokens()
        return self._adapter

    def due(self) -> float:
        """Evaluations that training the adapter took and nobody was charged for yet."""
        due, self._due = self._due, 0.0
        return due

    def score(self, plan: Plan, seed: int) -> Evaluation:
        """Held-out loss of a plan with adapters cut from the shared one."""
        workbench, start = self.workbench, time.perf_counter()
        put(workbench, self.adapter(), plan)
        loss = workbench.held_out("validation", workbench.settings.validation_rows)
        return Evaluation(
            loss=loss,
            memory_bytes=workbench.space.memory_bytes(plan),
            seconds=time.perf_counter() - start,
            fidelity=self.fidelity,
            seed=seed,
            cost=self.fidelity + self.due(),
        )


def train_shared(workbench: FineTuner, steps: int) -> SharedAdapter:
    """Train the factors over the smallest, the largest and random plans; AdamW and rates as in an evaluation.

    Each plan's gradient is clipped by itself, so that a broken plan does not drown the others.

    Raises:
        ValueError: the space has no rank above 0.
        Diverged: a loss is not finite.
    """
    space, settings, wrapped = workbench.space, workbench.settings, workbench.quantized.wrapped
    ranks = [r for r in space.ranks if r > 0]
    if not ranks:
        raise ValueError("a shared adapter needs a rank above 0 to choose from")
    masters: dict[str, tuple[nn.Parameter, nn.Parameter]] = {}
    for name, linear in wrapped.items():
        A, B = first_factors(0, linear, name, ranks[-1])
        masters[name] = nn.Parameter(A.to(workbench.device)), nn.Parameter(B.to(workbench.device))
    factors = [{name: pair[side].data for name, pair in masters.items()} for side in (0, 1)]
    adapter = SharedAdapter(factors[0], factors[1], 0)
    parameters = [p for pair in masters.values() for p in pair]
    optimizer = torch.optim.AdamW(parameters, lr=settings.learning_rate, weight_decay=0.0)
    batches = workbench.batches(steps, 0)
    edges = [uniform_like(space, 0, ranks[0]), uniform_like(space, -1, ranks[-1])]
    rng, tokens = np.random.default_rng([0, 0x5A5A]), 0
    torch.manual_seed(0)
    model = workbench.model
    model.train()
    with labelled_head(model) as head:
        for step, batch in enumerate(batches):
            batch = batch.to(workbench.device)
            for parameter in parameters:
                parameter.grad = torch.zeros_like(parameter)
            for plan in [*edges, *(leaning_plan(space, rng) for _ in range(RANDOM_PLANS))]:
                put(workbench, adapter, plan)
                loss = batch_loss(model, head, batch)
                if not torch.isfinite(loss):
                    raise training.Diverged(f"the shared adapter's loss is {float(loss)} at step {step + 1}")
                if loss.requires_grad:
                    loss.backward()
                    _gather(wrapped, masters)
                tokens += batch.tokens
            for group in optimizer.param_groups:
                group["lr"] = settings.learning_rate * training.rate_at(step, len(batches), settings.warmup)
            optimizer.step()
            if workbench.progress is not None:
                workbench.progress("train the shared adapter", step + 1, len(batches))
    model.eval()
    return SharedAdapter(adapter.A, adapter.B, tokens)


def put(workbench: FineTuner, adapter: SharedAdapter, plan: Plan) -> None:
    """Put a plan in place with its adapters cut from the shared one; they share its memory."""
    quantized, settings = workbench.quantized, workbench.settings
    quantized.apply(plan, 0, workbench.init, keep_adapters=True)
    for group, rank in zip(workbench.space.groups, plan.ranks, strict=True):
        names = [linear.name for linear in group.linears if linear.name in quantized.wrapped]
        for name, wrapper in ((name, quantized.wrapped[name]) for name in names):
            wrapper.set_adapter(None, None, 0.0)
            if rank > 0:
                wrapper.lora_A = nn.Parameter(adapter.A[name][:rank])
                wrapper.lora_B = nn.Parameter(adapter.B[name][:, :rank])
                wrapper.scaling, wrapper.dropout = settings.alpha / rank, settings.dropout


def _gather(wrapped: Mapping[str, AdaptedLinear], masters: Mapping[str, tuple[nn.Parameter, nn.Parameter]]) -> None:
    """Add the gradients of the cut factors, clipped to norm 1 together, to those of the whole ones."""
    nn.utils.clip_grad_norm_(trainable(wrapped), 1.0)
    for name, wrapper in wrapped.items():
        if wrapper.lora_A is None or wrapper.lora_B is None:
            continue
        A, B = masters[name]
        rank = wrapper.rank
        if A.grad is not None and wrapper.lora_A.grad is not None:
            A.grad[:rank] += wrapper.lora_A.grad
        if B.grad is not None and wrapper.lora_B.grad is not None:
            B.grad[:, :rank] += wrapper.lora_B.grad


def uniform_like(space: SearchSpace, place: int, rank: int) -> Plan:
    """Every group at its first or last allowed bits, and at `rank` or the nearest that it allows."""
    bits = tuple((g.bits or space.bits)[place] for g in space.groups)
    ranks = tuple(min(g.ranks or space.ranks, key=lambda r: abs(r - rank)) for g in space.groups)
    return Plan(bits, ranks)


def _read(path: Path, workbench: FineTuner) -> SharedAdapter:
    file = open_tensors(path)
    names = list(workbench.quantized.wrapped)
    A, B = ({name: file.get_tensor(f"{side}::{name}").to(workbench.device) for name in names} for side in "AB")
    return SharedAdapter(A, B, int(file.get_tensor("tokens")))
