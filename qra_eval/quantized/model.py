"""A model in which any plan can be put in place: every linear at every bit-width, and adapters on top."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from qra_backends import Backend
from torch import Tensor

from qra_eval.models.linears import find_linears, group_linears, resolve_granularity
from qra_eval.models.loaded import LoadedModel, compute_dtype, computed_in
from qra_eval.quantized import adapters
from qra_eval.quantized.bank import Bank, bank_folder, check_shapes, tensor_bytes
from qra_eval.quantized.calibration import Hessians, input_moments
from qra_eval.quantized.initialisation import Initialiser, input_components
from qra_eval.quantized.space import levels_of, model_space
from qra_eval.tasks.batches import Batch, bucketed
from qra_eval.tasks.rows import Rows
from qra_search.config import QuantizationConfig, SpaceConfig, TrainingConfig
from qra_search.space.memory import UNQUANTIZED_BITS
from qra_search.space.space import Plan

WEIGHT_CACHE_BYTES = 4 << 30
"""Dequantized weights are kept ready if all of them take no more than this."""
CALIBRATION_ROWS = 128
"""Rows whose activations calibrated backends see; their forward pass is charged to the prior."""


class QuantizedModel:
    """Every linear is quantized once at every bit-width (`Bank`); a plan is put in place by setting references.

    While all dequantized weights fit in `weight_cache_bytes`, linears multiply by these, which gives the numbers of
    dequantize-then-multiply without doing the former at every step. They may then be in another dtype (`compute`) than
    the model is stored in: the weights are the same numbers, only sums are rounded otherwise.

    Quantizing waits for the first call that needs it: hours may lie between a look at the space and that.

    Args:
        loaded: the model, frozen.
        backend: that of `quantization`.
        rows: of the task; the first of its calibration split calibrate backends and adapters that ask for it.
        settings: of training: alpha, dropout and batches.
        compute: `auto` or a dtype's name; where weights do not fit in the cache, the dtype is as stored.

    Attributes:
        space: plans, and their exact bytes when the model is at rest.
        linears: the searched ones, by name.
        materialised: whether dequantized weights are kept ready.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        backend: Backend,
        quantization: QuantizationConfig,
        space: SpaceConfig,
        rows: Rows,
        settings: TrainingConfig,
        *,
        device: torch.device,
        compute: str = "auto",
        weight_cache_bytes: int = WEIGHT_CACHE_BYTES,
        progress: Callable[[str, int, int], None] | None = None,
    ):
        self.loaded, self.device, self.progress = loaded, device, progress
        self.model = cast(Any, loaded.model)
        self.rows, self.settings, self.quantization = rows, settings, quantization
        self.backend = backend
        levels = levels_of(space.bits, self.backend)
        found = find_linears(self.model)
        self.granularity = resolve_granularity(found, space.granularity)
        self.linears = {f.name: f.module for f in found}
        dense = sum(m.weight.nbytes for m in self.linears.values())
        self.dtype: torch.dtype = self.model.dtype
        self.compute = compute_dtype(device) if compute == "auto" else getattr(torch, compute)
        if compute == "auto" and self.compute.itemsize < self.dtype.itemsize:
            self.compute = self.dtype  # who keeps a model in float32 wants its digits
        expanded = dense * len(levels) * self.compute.itemsize // self.dtype.itemsize
        self.materialised = expanded <= weight_cache_bytes
        if not self.materialised:
            self.compute = self.dtype
        check_shapes(self.backend, self.linears, levels)  # what it refuses is said before anything is spent
        groups = group_linears(found, self.granularity)
        self.space = model_space(
            groups, self.granularity, space, self.backend, fixed_bytes=tensor_bytes(self.model) - dense
        )
        self._prepared: tuple[Bank, dict[str, adapters.AdaptedLinear]] | None = None
        self._rest: list[Tensor] = []
        self._stored: list[Tensor] | None = None
        self._initialisers: dict[str, Initialiser] = {}

    # -- made at the first call ----------------------------------------------------------------
    @property
    def bank(self) -> Bank:
        """Every linear at every bit-width; quantized, or read from the cache, at the first call."""
        return self.prepare()[0]

    @property
    def wrapped(self) -> dict[str, adapters.AdaptedLinear]:
        """The model's linears with room for adapters, by name."""
        return self.prepare()[1]

    def prepare(self) -> tuple[Bank, dict[str, adapters.AdaptedLinear]]:
        """Quantize, or read what an earlier run quantized, and make room for adapters."""
        if self._prepared is None:
            hessians = None
            if self.backend.calibrated:
                hessians = Hessians(self.model, self.linears, self._calibration(), self.device, compute=self.compute)
            bank = Bank(
                self.linears,
                self.backend,
                self.space.bits,
                bank_folder(self.quantization.cache),
                self.identity,
                hessian=hessians,
                progress=self.progress,
                keep_weights=self.materialised,
                compute=self.compute,
            )
            self._prepared = bank, adapters.install(self.model, list(self.linears))
            searched = {id(t) for m in self.linears.values() for t in m.parameters()}
            # Buffers, such as rotary frequencies, lose what matters in fewer bits, and cost nothing in more.
            narrower = self.compute.itemsize < self.dtype.itemsize
            tensors = [*self.model.parameters(), *(() if narrower else self.model.buffers())]
            self._rest = [t for t in tensors if t.dtype == self.dtype and id(t) not in searched]
            self._stored = [t.data for t in self._rest] if narrower else None
            self._put_rest_in(self.compute)
        return self._prepared

    def initialiser(self, kind: str) -> Initialiser:
        """What gives bases and factors by one kind of initialisation; made at the first call.

        Making it may pass calibration rows through the unquantized model, so no plan is in place afterwards.
        """
        if kind not in self._initialisers:
            components, hessians, max_rank = None, None, max(self.space.ranks)
            if kind == "eva" or (kind == "pissa" and self.backend.calibrated):
                self.unquantize()
                moments, means = input_moments(self.model, self.wrapped, self._calibration(), self.device)
                if kind == "eva":
                    components = input_components(moments, means, max_rank)
                else:
                    hessians = moments
            self._initialisers[kind] = Initialiser(
                kind, self.bank, self.backend, alpha=self.settings.alpha, max_rank=max_rank,
                components=components, hessians=hessians,
            )  # fmt: skip
        return self._initialisers[kind]

    @property
    def identity(self) -> str:
        """What the bank is made from: the weights, and for a calibrated backend the rows that it is calibrated on."""
        base = f"{self.loaded.fingerprint}-{self.dtype}"
        return f"{base}-{self.rows.hash(calibration=CALIBRATION_ROWS)}" if self.backend.calibrated else base

    # -- plans in place ------------------------------------------------------------------------
    def apply(
        self, plan: Plan, seed: int, init: str, *, materialised: bool | None = None, keep_adapters: bool = False
    ) -> None:
        """Put a plan in place: bases from the bank, adapters as their initialisation gives them."""
        start = self.initialiser(init)
        fast = self.materialised if materialised is None else materialised
        for group, bits, rank in zip(self.space.groups, plan.bits, plan.ranks, strict=True):
            for linear in group.linears:
                wrapper = self.wrapped[linear.name]
                if fast:
                    wrapper.set_base(weight=start.weight(linear.name, bits, rank))
                else:
                    wrapper.set_base(module=start.module(linear.name, bits, rank))
                if keep_adapters:
                    continue
                if rank == 0:
                    wrapper.set_adapter(None, None, 0.0)
                    continue
                A, B = start.factors(linear.name, bits, rank, seed)
                scaling = self.settings.alpha / rank
                wrapper.set_adapter(A.to(self.device), B.to(self.device), scaling, self.settings.dropout)

    def unquantize(self) -> None:
        """The model as it was loaded: no quantization, no adapters."""
        for name, wrapper in self.wrapped.items():
            wrapper.set_base(weight=self.bank.weight(name, UNQUANTIZED_BITS))
            wrapper.set_adapter(None, None, 0.0)

    @contextmanager
    def unquantized(self) -> Iterator[None]:
        """The model as it was loaded, computing as evaluations do; nothing is quantized for it."""
        if self._prepared is not None:
            self.unquantize()
            yield
            return
        with computed_in(self.model, self.compute):
            yield

    @contextmanager
    def as_stored(self, plan: Plan, init: str) -> Iterator[Any]:
        """The model as a run's folder gives it: quantized modules, stored dtype; for as long as the context lasts."""
        self.apply(plan, 0, init, materialised=False, keep_adapters=True)
        self._put_rest_in(self.dtype)
        try:
            yield self.model
        finally:
            self._put_rest_in(self.compute)
            self.apply(plan, 0, init, keep_adapters=True)

    @contextmanager
    def in_float32(self) -> Iterator[None]:
        """Passes in float32, each quantized weight widened as it is used; for as long as the context lasts."""
        self.prepare()
        self._put_rest_in(torch.float32)
        try:
            yield
        finally:
            self._put_rest_in(self.compute)

    def close(self) -> None:
        """Give the model its own linears again."""
        if self._prepared is not None:
            adapters.uninstall(self.model, self.wrapped)

    def _put_rest_in(self, dtype: torch.dtype) -> None:
        """All that is not quantized, in a dtype; in its own again it has every digit that it had."""
        kept = self._stored if dtype == self.dtype else None
        for i, tensor in enumerate(self._rest):
            tensor.data = tensor.data.to(dtype) if kept is None else kept[i]

    def _calibration(self) -> list[Batch]:
        return bucketed(self.rows("calibration", CALIBRATION_ROWS), self.settings.batch_size)
