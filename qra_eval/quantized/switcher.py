"""Puts plans in place in a quantized model: what changed is swapped, adapters begin anew."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from qra_backends import Scales
from torch import Tensor, nn

from qra_eval.models.embeddings import Table, install_embeddings
from qra_eval.quantized import adapters
from qra_eval.quantized.adapters import TrainedScales
from qra_eval.quantized.blocks import Blocks
from qra_eval.quantized.model import QuantizedModel
from qra_search.schemas import LevelName, Plan


class PlanSwitcher:
    """On the device are norms, the plan in its packed form (embeddings and head in it, if they are searched), and
    adapters; or dequantized weights, if they are kept ready.

    `trained_scales` are the scales and offsets that training left, by linear; those of the others are the bank's.
    """

    def __init__(self, quantized: QuantizedModel):
        self.quantized_model, self.model = quantized, quantized.model
        self.applied: Plan
        self._wrapped: dict[str, adapters.AdaptedLinear] | None = None
        self._places: dict[str, adapters.AdaptedLinear | Table] = {}
        self._in_place: dict[str, tuple[LevelName, bool]] = {}
        self.trained_scales: dict[str, Scales] = {}
        self._rest: list[Tensor] = []
        self._stored: list[Tensor] | None = None

    @property
    def wrapped(self) -> dict[str, adapters.AdaptedLinear]:
        return self.prepare()

    def prepare(self) -> dict[str, adapters.AdaptedLinear]:
        if self._wrapped is None:
            quantized, bank = self.quantized_model, self.quantized_model.bank
            self._wrapped = adapters.wrap_linears(self.model, list(quantized.linears))
            tables = (
                install_embeddings(self.model, bank.backend, quantized.device) if quantized.tables else {}
            )
            self._places = {**self._wrapped, **tables}
            searched = {id(t) for m in quantized.linears.values() for t in m.parameters()}
            searched |= {id(table.own) for table in tables.values()}
            # Buffers, such as rotary frequencies, lose what matters in fewer bits, and cost nothing in more.
            narrower = quantized.compute.itemsize < quantized.dtype.itemsize
            tensors = [*self.model.parameters(), *(() if narrower else self.model.buffers())]
            self._rest = [t for t in tensors if t.dtype == quantized.dtype and id(t) not in searched]
            self._stored = [t.data for t in self._rest] if narrower else None
            self._cast_unquantized(quantized.compute)
        return self._wrapped

    # -- a plan --------------------------------------------------------------------------------
    def quantize_plan(self, plan: Plan) -> None:
        """Quantize what the bank lacks of a plan, for which nothing may be in place."""
        if not self.quantized_model.is_plan_quantized(plan):
            self.unquantize()
            self.quantized_model.quantize_plan(plan)

    def put_plan(self, plan: Plan, seed: int) -> None:
        """Put a plan in place: bases from the bank, quantized if it lacks them, adapters as the seed has them start."""
        self.quantize_plan(plan)
        quantized, most = self.quantized_model, max(self.quantized_model.space.ranks)
        settings, wrapped = quantized.settings, self.wrapped
        self.applied = plan
        self.trained_scales.clear()
        for group, bits, rank in zip(quantized.space.groups, plan.bits, plan.ranks, strict=True):
            for linear in group.linears:
                name, wrapper = linear.name, wrapped.get(linear.name)
                self.set_base_weight(name, bits)
                if wrapper is None:
                    continue
                wrapper.trained = None
                if rank == 0:
                    wrapper.set_adapter(None, None, 0.0)
                    continue
                A, B = adapters.draw_factors(seed, wrapper, name, most)
                device = quantized.bank.get_device(name)
                wrapper.set_adapter(
                    A[:rank].to(device), B[:, :rank].to(device), settings.alpha / rank, settings.dropout
                )

    def get_base_module(self, name: str, bits: LevelName) -> nn.Module:
        """The base of a linear as a module, with the scales and offsets that training left."""
        module, scales = self.quantized_model.bank.load_module(name, bits), self.trained_scales.get(name)
        return module if scales is None else self.quantized_model.backend.replace_scales(module, scales)

    def set_alone(self, name: str, module: nn.Module | None) -> None:
        """Put a module's dequantized weight in a linear's or a table's place in an unquantized model; None: its own."""
        if module is not None:
            module = module.to(self.quantized_model.bank.get_device(name))
        self._places[name].set_base(weight=None if module is None else self._dequantize(module))

    def set_base_weight(self, name: str, bits: LevelName) -> None:
        """Put a linear's or a table's weight in place, unless it is there: a plan's neighbour differs in a few."""
        quantized, base, trained = self.quantized_model, self._places[name], name in self.trained_scales
        wanted = bits, quantized.keeps_dequantized
        if self._in_place.pop(name, None) != wanted or trained:
            base.set_base()  # what was there goes before the next comes
            module = self.get_base_module(name, bits)
            if quantized.keeps_dequantized:
                base.set_base(weight=self._dequantize(module))
            else:
                base.set_base(module=module)
        if not trained:  # else it is no other plan's
            self._in_place[name] = wanted

    def _dequantize(self, module: nn.Module) -> Tensor:
        """The weight of a base as its module computes, then cast to the dtype of products."""
        # Quantized layers are linears too.
        plain = module.weight.detach() if type(module) is nn.Linear else None
        weight = self.quantized_model.backend.dequantize(module) if plain is None else plain
        return weight.to(self.quantized_model.compute)

    @contextmanager
    def train_scales(self) -> Iterator[None]:
        """Scales and offsets of the plan in place are parameters of its linears, for as long as the context lasts.

        Afterwards they are in place as they are stored, until the next plan is applied. Those of the bank, which are
        mapped and shared, are never written to: the plan in place has copies of its own.
        """
        quantized, bank = self.quantized_model, self.quantized_model.bank
        backend, fast = quantized.backend, quantized.keeps_dequantized
        placed = [
            (linear.name, bits)
            for group, bits in zip(quantized.space.groups, self.applied.bits, strict=True)
            for linear in group.linears
            if linear.name in self.wrapped
            and quantized.count_trained(bits, linear.out_features, linear.in_features)
        ]
        for name, bits in placed:
            module = bank.load_module(name, bits)
            scales = backend.get_scales(module)
            if scales is not None:
                trained = TrainedScales(backend, scales, keep=fast)
                beside = fast and trained.has_one_scale_per_row()
                weight = self._dequantize(module) if beside else None
                self.wrapped[name].set_base(module=None if beside else module, weight=weight)
                self.wrapped[name].trained = trained
        try:
            yield
        finally:
            for name, bits in placed:
                wrapper = self.wrapped[name]
                if wrapper.trained is not None:
                    self.trained_scales[name], wrapper.trained = wrapper.trained.get_scales(), None
                    self.set_base_weight(name, bits)

    # -- other states --------------------------------------------------------------------------
    def unquantize(self) -> None:
        """The model as it was loaded, without quantization and adapters; to be run by `blocks`; nothing is
        quantized for it."""
        for wrapper in (self._wrapped or {}).values():
            wrapper.set_adapter(None, None, 0.0)
            wrapper.trained = None
        self.trained_scales.clear()
        for base in self._places.values():
            base.set_base()
        self._in_place = {}

    @contextmanager
    def use_unquantized(self) -> Iterator[None]:
        """The model as it was loaded, computing as evaluations do."""
        self.unquantize()
        with self.quantized_model.blocks.stream_layers():
            yield

    @contextmanager
    def use_float32(self) -> Iterator[Blocks]:
        """The layers of the unquantized model, computing in float32; for as long as the context lasts."""
        self.unquantize()
        self._cast_unquantized(torch.float32)
        try:
            own = self.quantized_model.blocks
            yield Blocks(self.model, own.device, torch.float32)
        finally:
            self._cast_unquantized(self.quantized_model.compute)

    def _cast_unquantized(self, dtype: torch.dtype) -> None:
        """Cast all that is not quantized; cast back to its own dtype it is exactly as before."""
        kept = self._stored if dtype == self.quantized_model.dtype else None
        for i, tensor in enumerate(self._rest):
            tensor.data = tensor.data.to(dtype) if kept is None else kept[i]
