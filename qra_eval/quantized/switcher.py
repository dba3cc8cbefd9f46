"""Puts plans in place in a quantized model: what changed is swapped, adapters begin anew."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from qra_eval.models.embeddings import Table, install_tables, uninstall_tables
from qra_eval.quantized import adapters
from qra_eval.quantized.blocks import Blocks
from qra_eval.quantized.model import QuantizedModel
from qra_eval.quantized.scales import TrainedGroups
from qra_search.space.levels import LevelName
from qra_search.space.space import Plan


class PlanSwitcher:
    """Puts plans in place in a quantized model.

    On the device are norms, the plan in its packed form (embeddings and head in it, if they are searched), and
    adapters; or dequantized weights, if they are kept ready.

    Attributes:
        applied: the plan of the last `apply`.
    """

    def __init__(self, quantized: QuantizedModel):
        self.quantized, self.model = quantized, quantized.model
        self.applied: Plan
        self._wrapped: dict[str, adapters.AdaptedLinear] | None = None
        self._placed: dict[str, Table] = {}
        self._in_place: dict[str, tuple[Any, ...]] = {}
        self._rest: list[Tensor] = []
        self._stored: list[Tensor] | None = None

    @property
    def wrapped(self) -> dict[str, adapters.AdaptedLinear]:
        """The model's linears with room for adapters, by name; made at the first call, which quantizes."""
        return self.prepare()

    def prepare(self) -> dict[str, adapters.AdaptedLinear]:
        """Quantize, or read what an earlier run quantized, and make room for adapters."""
        if self._wrapped is None:
            quantized, bank = self.quantized, self.quantized.bank
            self._wrapped = adapters.install(self.model, list(quantized.linears))
            self._placed = install_tables(self.model, bank.backend, quantized.device) if quantized.tables else {}
            searched = {id(t) for m in quantized.linears.values() for t in m.parameters()}
            searched |= {id(table.own) for table in self._placed.values()}
            # Buffers, such as rotary frequencies, lose what matters in fewer bits, and cost nothing in more.
            narrower = quantized.compute.itemsize < quantized.dtype.itemsize
            tensors = [*self.model.parameters(), *(() if narrower else self.model.buffers())]
            self._rest = [t for t in tensors if t.dtype == quantized.dtype and id(t) not in searched]
            self._stored = [t.data for t in self._rest] if narrower else None
            self._put_rest_in(quantized.compute)
        return self._wrapped

    # -- a plan --------------------------------------------------------------------------------
    def apply(self, plan: Plan, seed: int, *, materialised: bool | None = None, keep_trained: bool = False) -> None:
        """Put a plan in place: bases from the bank, adapters as the seed has them start.

        Args:
            materialised: multiply by dequantized weights; None: if they are kept ready.
            keep_trained: adapters and scales stay as training left them.
        """
        quantized, most = self.quantized, max(self.quantized.space.ranks)
        fast = quantized.materialised if materialised is None else materialised
        self.applied = plan
        for group, bits, rank in zip(quantized.space.groups, plan.bits, plan.ranks, strict=True):
            if group.name in quantized.tables:
                self.put_table(group.name, bits, fast=fast)
                continue
            for linear in group.linears:
                wrapper = self.wrapped[linear.name]
                if not keep_trained:
                    wrapper.trained = wrapper.groups = None
                self._put_base(linear.name, bits, fast)
                if keep_trained:
                    continue
                if rank == 0:
                    wrapper.set_adapter(None, None, 0.0)
                    continue
                A, B = adapters.first_factors(seed, wrapper, linear.name, most)
                device, settings = quantized.bank.device_of(linear.name), quantized.settings
                wrapper.set_adapter(
                    A[:rank].to(device), B[:, :rank].to(device), settings.alpha / rank, settings.dropout
                )

    def base_module(self, name: str, bits: LevelName) -> nn.Module:
        """The base of a linear as a module, with the scales and offsets that training left."""
        module, groups = self.quantized.bank.module(name, bits), self.wrapped[name].groups
        return module if groups is None else self.quantized.backend.with_groups(module, groups)

    def _put_base(self, name: str, bits: LevelName, fast: bool) -> None:
        """Put a linear's base in place, if it is not there already: a plan's neighbour differs in a few linears."""
        wrapper, wanted = self.wrapped[name], (bits, fast)
        if self._in_place.get(name) == wanted and wrapper.groups is None:
            return
        self._in_place.pop(name, None)
        wrapper.set_base()  # what was there goes before the next comes
        if not fast:
            wrapper.set_base(module=self.base_module(name, bits))
        elif wrapper.groups is None:
            wrapper.set_base(weight=self.quantized.bank.weight(name, bits))
        else:
            weight = self.quantized.backend.dequantize(self.base_module(name, bits))
            wrapper.set_base(weight=weight.to(self.quantized.compute))
        if wrapper.groups is None:  # else it is no other plan's
            self._in_place[name] = wanted

    def put_table(self, name: str, bits: LevelName | None, *, fast: bool = True) -> None:
        """Put a table in place at a level; None: as it was loaded. Only if it is not in place already."""
        wanted, table, bank = (bits, fast), self._placed[name], self.quantized.bank
        if self._in_place.get(name) == wanted:
            return
        self._in_place.pop(name, None)
        table.set_base()  # what was there goes before the next comes
        if bits is None:
            return
        if fast:
            table.set_base(weight=bank.weight(name, bits))
        else:
            table.set_base(module=bank.module(name, bits))
        self._in_place[name] = wanted

    @contextmanager
    def scales_in_training(self) -> Iterator[None]:
        """Scales and offsets of the plan in place are parameters of its linears, for as long as the context lasts.

        Afterwards they are in place as they are stored, until the next plan is applied. Those of the bank, which are
        mapped and shared, are never written to: the plan in place has copies of its own.
        """
        quantized, bank = self.quantized, self.quantized.bank
        backend, fast = quantized.backend, quantized.materialised
        placed = [
            (linear.name, bits)
            for group, bits in zip(quantized.space.groups, self.applied.bits, strict=True)
            for linear in group.linears
            if linear.name in self.wrapped and quantized.trained_numbers(bits, linear.out_features, linear.in_features)
        ]
        for name, bits in placed:
            module = bank.module(name, bits)
            groups = backend.trainable(module)
            if groups is not None:
                trained = TrainedGroups(backend, groups, keep=fast)
                beside = fast and trained.of_rows()
                base: dict[str, Any] = {"weight": bank.weight(name, bits)} if beside else {"module": module}
                self.wrapped[name].set_base(**base)
                self.wrapped[name].trained = trained
        try:
            yield
        finally:
            for name, bits in placed:
                wrapper = self.wrapped[name]
                if wrapper.trained is not None:
                    wrapper.groups, wrapper.trained = wrapper.trained.groups(), None
                    self._put_base(name, bits, fast)

    # -- other states --------------------------------------------------------------------------
    def unquantize(self) -> None:
        """The model as it was loaded, without quantization and adapters; to be run by `blocks`; nothing is
        quantized for it."""
        for wrapper in (self._wrapped or {}).values():
            wrapper.set_adapter(None, None, 0.0)
            wrapper.trained = wrapper.groups = None
        self._clear_bases()

    @contextmanager
    def unquantized(self) -> Iterator[None]:
        """The model as it was loaded, computing as evaluations do."""
        self.unquantize()
        with self.quantized.blocks.streamed():
            yield

    @contextmanager
    def as_stored(self, plan: Plan) -> Iterator[Any]:
        """The model as a run's folder gives it: quantized modules, stored dtype; for as long as the context lasts."""
        self.apply(plan, 0, materialised=False, keep_trained=True)
        self._put_rest_in(self.quantized.dtype)
        try:
            yield self.model
        finally:
            self._put_rest_in(self.quantized.compute)
            self.apply(plan, 0, keep_trained=True)

    @contextmanager
    def in_float32(self) -> Iterator[Blocks]:
        """The layers of the unquantized model, computing in float32; for as long as the context lasts."""
        self.unquantize()
        self._put_rest_in(torch.float32)
        try:
            own = self.quantized.blocks
            yield Blocks(self.model, own.device, torch.float32, own.devices)
        finally:
            self._put_rest_in(self.quantized.compute)

    @contextmanager
    def released(self) -> Iterator[None]:
        """Nothing of the model on the device but adapters, nor anything kept dequantized; bases are gone afterwards."""
        self._clear_bases()
        self.quantized.forget()
        own = {id(factor) for factor in adapters.trainable(self.wrapped)}
        tensors = [*self.model.parameters(), *self.model.buffers()]
        moved = [(t, t.device) for t in tensors if t.device.type != "cpu" and id(t) not in own]
        for tensor, _ in moved:
            tensor.data = tensor.data.cpu()
        if moved:
            torch.cuda.empty_cache()
        try:
            yield
        finally:
            for tensor, device in moved:
                tensor.data = tensor.data.to(device)

    def keep_nothing(self) -> bool:
        """From here on keep no weights ready on the device, neither dequantized nor unquantized; whether any were."""
        if not self.quantized.keep_nothing():
            return False
        if self._wrapped is not None:
            self._clear_bases()
            self._put_rest_in(self.quantized.compute)
        return True

    def close(self) -> None:
        """Give the model its own linears again."""
        for handle in self.quantized.connections:
            handle.remove()
        if self._wrapped is not None:
            for table in self._placed.values():
                table.set_base()
            uninstall_tables(self.model)
            adapters.uninstall(self.model, self._wrapped)

    def _clear_bases(self) -> None:
        places: list[Any] = [*(self._wrapped or {}).values(), *self._placed.values()]
        for place in places:
            place.set_base()
        self._in_place = {}

    def _put_rest_in(self, dtype: torch.dtype) -> None:
        """All that is not quantized, in a dtype; in its own again it has every digit that it had."""
        kept = self._stored if dtype == self.quantized.dtype else None
        for i, tensor in enumerate(self._rest):
            tensor.data = tensor.data.to(dtype) if kept is None else kept[i]
